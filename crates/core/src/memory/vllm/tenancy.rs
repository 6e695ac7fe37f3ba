//! Several engines on the same GPUs, started one after the other.
//!
//! An engine sees what the earlier ones hold. They are taken to serve already, as they may when the
//! next one starts; two that start at once mis-size each other, so none do.

use serde::Serialize;
use serde_json::Value;

use super::{Engine, Gpu, VllmArgs, VllmFit, fit, version};
use crate::memory::Verdict;
use crate::model::hf_config::Transformer;
use crate::units::Bytes;

/// An engine to start.
#[derive(Clone, Copy, Debug)]
pub struct Tenant<'a> {
    /// What it is called in messages.
    pub name: &'a str,
    /// Its model.
    pub model: &'a Transformer,
    /// Its arguments, by vLLM's own names.
    pub args: &'a Value,
    /// The first of the GPUs that it uses, as an index; it takes as many as its layout needs.
    pub first_gpu: usize,
}

/// What becomes of several engines.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tenancy {
    /// Each start, in order.
    pub starts: Vec<Started>,
    /// Each GPU once all serve.
    pub gpus: Vec<SharedGpu>,
    /// `ready` where all start and stay; else what happens first.
    pub verdict: Verdict,
    /// Why, where they don't.
    pub message: Option<String>,
}

/// One start.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Started {
    /// The engine's name.
    pub name: String,
    /// What others held on the fullest of its GPUs when it started.
    pub used_by_others: Bytes,
    /// What it does.
    pub fit: VllmFit,
}

/// A GPU in the steady state.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SharedGpu {
    /// All its memory.
    pub total: Bytes,
    /// What foreign processes hold.
    pub foreign: Bytes,
    /// What each engine holds after load.
    pub engines: Vec<(String, Bytes)>,
    /// The most that was held at any moment, starts included.
    pub peak: Bytes,
}

impl SharedGpu {
    /// What all hold together.
    pub fn used(&self) -> Bytes {
        self.foreign + self.engines.iter().map(|(_, bytes)| *bytes).sum()
    }
}

/// GPUs that engines are started on, one after the other.
#[derive(Clone, Debug)]
pub struct Sharing<'a> {
    gpus: &'a [Gpu],
    state: Vec<SharedGpu>,
    starts: Vec<Started>,
    trouble: Option<(Verdict, String)>,
}

impl<'a> Sharing<'a> {
    /// `gpus` as they are: their `used_by_others` is what foreign processes hold.
    pub fn new(gpus: &'a [Gpu]) -> Self {
        let shared = |gpu: &Gpu| SharedGpu {
            total: gpu.total,
            foreign: gpu.used_by_others,
            peak: gpu.used_by_others,
            ..SharedGpu::default()
        };
        let state = gpus.iter().map(shared).collect();
        Self { gpus, state, starts: Vec::new(), trouble: None }
    }

    /// What is free on each GPU now.
    pub fn free(&self) -> Vec<Bytes> {
        self.state.iter().map(|gpu| gpu.total - gpu.used()).collect()
    }

    /// Starts vLLM; gives its answer.
    pub fn start(&mut self, tenant: &Tenant<'_>, engine: &Engine<'_>) -> VllmFit {
        let ranks = ranks(tenant, self.gpus, engine);
        let range = tenant.first_gpu..tenant.first_gpu.saturating_add(ranks);
        let Some(here) = self.gpus.get(range.clone()).filter(|here| !here.is_empty()) else {
            let (first, given) = (tenant.first_gpu, self.gpus.len());
            let message = format!("it needs {ranks} GPUs from number {first} on, of {given}");
            self.fail(tenant.name, Verdict::Unsupported, &message);
            return VllmFit::ended(Verdict::Unsupported, message);
        };
        let as_it_is = |(gpu, shared): (&Gpu, &SharedGpu)| gpu.with_others(shared.used());
        let now: Vec<Gpu> = here.iter().zip(&self.state[range.clone()]).map(as_it_is).collect();
        let fit = fit(tenant.model, tenant.args, &now, engine);
        if let Some(message) = &fit.message {
            self.fail(tenant.name, fit.verdict, message);
        }
        settle(&mut self.state[range], tenant.name, &fit);
        let used_by_others = now.iter().map(|gpu| gpu.used_by_others).max().unwrap_or_default();
        self.starts.push(Started {
            name: tenant.name.to_owned(),
            used_by_others,
            fit: fit.clone(),
        });
        fit
    }

    /// Each GPU as it is now.
    pub fn gpus(&self) -> &[SharedGpu] {
        &self.state
    }

    /// Lets another engine hold so much of each GPU, from the first on.
    pub fn hold(&mut self, name: &str, bytes: &[Bytes]) {
        for (gpu, bytes) in
            self.state.iter_mut().zip(bytes).filter(|(_, bytes)| **bytes > Bytes::ZERO)
        {
            gpu.engines.push((name.to_owned(), *bytes));
            gpu.peak = gpu.peak.max(gpu.used());
        }
    }

    /// Notes that something does not start.
    pub fn fail(&mut self, name: &str, verdict: Verdict, message: &str) {
        self.trouble.get_or_insert_with(|| (verdict, format!("{name}: {message}")));
    }

    /// What has become of all.
    pub fn finish(mut self) -> Tenancy {
        let overfull = self.state.iter().position(|gpu| gpu.used() > gpu.total);
        if let Some(index) = overfull {
            let (used, total) = (self.state[index].used(), self.state[index].total);
            let message = format!("all engines together hold {used} of {total} under load");
            self.fail(&format!("GPU {index}"), Verdict::OomAtRuntime, &message);
        }
        let (verdict, message) = match self.trouble {
            Some((verdict, message)) => (verdict, Some(message)),
            None => (Verdict::Ready, None),
        };
        Tenancy { starts: self.starts, gpus: self.state, verdict, message }
    }
}

/// Starts several vLLMs in order on `gpus`.
pub fn start_in_order(tenants: &[Tenant<'_>], gpus: &[Gpu], engine: &Engine<'_>) -> Tenancy {
    let mut sharing = Sharing::new(gpus);
    for tenant in tenants {
        sharing.start(tenant, engine);
    }
    sharing.finish()
}

/// How many GPUs a tenant takes; where its arguments can't be read, `fit` says why.
fn ranks(tenant: &Tenant<'_>, gpus: &[Gpu], engine: &Engine<'_>) -> usize {
    let resolved = gpus.first().zip(version::parse(engine.version)).and_then(|(gpu, version)| {
        VllmArgs::resolve(tenant.args, tenant.model, gpu, version, engine.entry_point).ok()
    });
    let of = |args: VllmArgs| (args.tensor_parallel as usize).saturating_mul(args.stages());
    resolved.map_or(1, of)
}

/// Puts an engine that has started (or tried to) onto its GPUs. One that was refused holds nothing
/// afterwards, but its peak was there.
fn settle(gpus: &mut [SharedGpu], name: &str, fit: &VllmFit) {
    let ranks = gpus.len().checked_div(fit.stages.len()).unwrap_or(0).max(1);
    for (index, gpu) in gpus.iter_mut().enumerate() {
        let Some(stage) = fit.stages.get(index / ranks) else { continue };
        gpu.peak = gpu.peak.max(gpu.used() + stage.peak);
        if fit.verdict.is_ready() {
            gpu.engines.push((name.to_owned(), stage.served));
        }
    }
}
