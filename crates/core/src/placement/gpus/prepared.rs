//! A deployment with what its memory depends on, and its start beside others.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::super::facts::{Facts, Found, LocatedModel};
use super::super::launch::ollama_request;
use super::super::plan::PlanError;
use crate::memory::Verdict;
use crate::memory::llama_cpp::graph::Backend;
use crate::memory::llama_cpp::offload::{DeviceFlags, Offload, OffloadFit, Outside};
use crate::memory::llama_cpp::{LlamaFlags, process};
use crate::memory::ollama::{self, Request};
use crate::memory::vllm::calibration::Subject;
use crate::memory::vllm::communicators::Transport;
use crate::memory::vllm::tenancy::{Sharing, Tenant};
use crate::memory::vllm::{Engine, Gpu, VllmFit, host, version};
use crate::model::ModelFacts;
use crate::model::hf_config::Transformer;
use crate::spec::{Deployment, EngineKind, FlagValue, Flags};
use crate::units::Bytes;

/// What a vision tower takes beside its weights: what Ollama itself sets aside for it.
const PROJECTOR_BUFFERS: Bytes = Bytes::gib(1);

/// What CUDA may take on the host beside llama.cpp: not measured, so a bound.
const CUDA_ON_HOST: Bytes = Bytes::gib(1);

/// A deployment, ready to be placed.
#[derive(Clone, Debug)]
pub struct Prepared<'a> {
    /// The deployment.
    pub deployment: &'a Deployment,
    /// Its model.
    pub located: &'a LocatedModel,
    /// GPUs that one instance takes, side by side.
    pub gpus: usize,
    /// The GPUs that it is kept to; empty means any.
    pub pinned: BTreeSet<usize>,
    pub(super) engine: EngineArgs<'a>,
}

/// An engine's own view of a deployment.
#[derive(Clone, Debug)]
pub(super) enum EngineArgs<'a> {
    Vllm { model: &'a Transformer, args: Value },
    Ollama { facts: &'a ModelFacts, request: Request },
    LlamaCpp { facts: &'a ModelFacts, flags: LlamaFlags, devices: DeviceFlags },
}

/// A start of an instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Started {
    /// What the engine does.
    pub verdict: Verdict,
    /// Its message, where it doesn't start.
    pub message: Option<String>,
    /// What it holds of each GPU that it takes, after load.
    pub bytes: Vec<Bytes>,
    /// The most that it ever holds of one, loading included.
    pub peak: Bytes,
    /// Tokens that its cache holds.
    pub cache_tokens: u64,
    /// Requests of the longest length at once.
    pub max_concurrency: f64,
    /// Bytes of the cache of a token on all its GPUs.
    pub cache_bytes_per_token: f64,
    /// Bytes of weights on all its GPUs.
    pub weights: Bytes,
    /// Host memory that its processes hold for themselves: as it likely is, and at the pessimistic end.
    pub host: (Bytes, Bytes),
    /// What a person should know of it although it starts.
    pub note: Option<String>,
    /// vLLM's whole answer.
    pub vllm: Option<Box<VllmFit>>,
}

/// Prepares a deployment.
///
/// # Errors
/// Where nothing is known of its model.
pub fn prepare<'a>(
    deployment: &'a Deployment,
    found: &'a Found,
) -> Result<Prepared<'a>, PlanError> {
    let no_facts = || PlanError::NoFacts(deployment.name.clone());
    let located = found.model(deployment).ok_or_else(no_facts)?;
    let pinned: BTreeSet<usize> = deployment.gpu_indices().collect();
    let (engine, gpus) = match (&located.facts, deployment.engine) {
        (Facts::Transformer(model), EngineKind::Vllm) => {
            let args = arguments(&deployment.flags);
            let size = |name: &str| args[name].as_u64().unwrap_or(1).clamp(1, 1024) as usize;
            let gpus = size("tensor_parallel_size") * size("pipeline_parallel_size");
            (EngineArgs::Vllm { model, args }, gpus)
        }
        (Facts::Gguf(facts), EngineKind::Ollama) => {
            let engine = EngineArgs::Ollama { facts, request: ollama_request(&deployment.flags) };
            (engine, pinned.len())
        }
        (Facts::Gguf(facts), EngineKind::LlamaServer) => {
            let words = super::super::launch::memory_args(deployment);
            let (devices, others) =
                DeviceFlags::from_args(&words).unwrap_or_else(|_| (DeviceFlags::default(), words));
            let flags = LlamaFlags::from_args(&others).unwrap_or_default();
            (EngineArgs::LlamaCpp { facts, flags, devices }, pinned.len())
        }
        _ => return Err(no_facts()),
    };
    Ok(Prepared { deployment, located, gpus, pinned, engine })
}

/// vLLM's arguments of a spec's flags.
pub fn arguments(flags: &Flags) -> Value {
    let value = |value: &FlagValue| serde_json::to_value(value).unwrap_or_default();
    Value::Object(
        flags.iter().map(|(name, flag)| (name.clone(), value(flag))).collect::<Map<_, _>>(),
    )
}

impl Prepared<'_> {
    /// Whether an instance may be on so many GPUs from `first` on.
    pub fn may_be_at(&self, first: usize, count: usize) -> bool {
        self.pinned.is_empty() || (first..first + count).all(|gpu| self.pinned.contains(&gpu))
    }

    /// The first GPU that it is kept to.
    pub fn first_gpu(&self) -> usize {
        self.pinned.first().copied().unwrap_or(0)
    }

    /// The first GPUs of the windows that it may take of a node with so many.
    pub fn windows(&self, gpus: usize) -> Vec<usize> {
        let count = self.gpus_of(gpus);
        if count == 0 || count > gpus {
            return Vec::new();
        }
        (0..=gpus - count).filter(|first| self.may_be_at(*first, count)).collect()
    }

    /// GPUs that it takes of a node that has so many: those that it says, or all.
    pub fn gpus_of(&self, count: usize) -> usize {
        if self.gpus == 0 { count } else { self.gpus }
    }

    /// Starts an instance on the GPUs from `first` on, beside what is there.
    pub fn start(
        &self,
        name: &str,
        first: usize,
        gpus: &[Gpu],
        sharing: &mut Sharing<'_>,
        engine: &Engine<'_>,
    ) -> Started {
        let count = self.gpus_of(gpus.len());
        let Some(here) = gpus.get(first..first.saturating_add(count)) else {
            let message = format!("it needs {count} GPUs side by side; a node has {}", gpus.len());
            return Started::refused(Verdict::Unsupported, message);
        };
        match &self.engine {
            EngineArgs::Vllm { model, args } => {
                let fit = sharing.start(&Tenant { name, model, args, first_gpu: first }, engine);
                let (likely, most) = host_of_vllm(engine, model, args, here);
                let started = Started::of_vllm(fit, count);
                let pinned = started.pinned_at(self.deployment.sleep_level.unwrap_or(0));
                Started { host: (likely + pinned, most + pinned), ..started }
            }
            EngineArgs::Ollama { facts, request } => {
                let free = &sharing.free()[first..first + count];
                let (fit, note) = self.ollama(facts, *request, here, free);
                self.hold(name, first, (facts, fit), note, sharing)
            }
            EngineArgs::LlamaCpp { facts, flags, devices } => {
                let (backend, outside) = (Backend::Cuda, Outside::CUDA);
                let offload = Offload { facts, flags, devices, backend, outside };
                let fit = offload.fit(&sharing.free()[first..first + count]);
                self.hold(name, first, (facts, fit), None, sharing)
            }
        }
    }

    fn ollama(
        &self,
        facts: &ModelFacts,
        request: Request,
        gpus: &[Gpu],
        free: &[Bytes],
    ) -> (OffloadFit, Option<String>) {
        let total = gpus.iter().map(|gpu| gpu.total).sum();
        let (decision, fit) = ollama::fit(facts, request, free, total);
        let all = facts.layers.len() as u64 + 1;
        let on_gpus: u64 = fit.devices.iter().map(|device| device.layers).sum();
        let note = match () {
            () if on_gpus < all => Some(format!(
                "Ollama leaves {} of {all} layers on the host, without a word: slow",
                all - on_gpus
            )),
            () if !decision.passes_gate => Some(format!(
                "Ollama predicts {}, more than 80 % of what is free, and loads it only while it has no \
                 other model",
                decision.predicted
            )),
            () => None,
        };
        (fit, note)
    }

    /// Puts what llama.cpp takes onto its GPUs.
    fn hold(
        &self,
        name: &str,
        first: usize,
        (facts, fit): (&ModelFacts, OffloadFit),
        note: Option<String>,
        sharing: &mut Sharing<'_>,
    ) -> Started {
        let mut bytes: Vec<Bytes> = fit.devices.iter().map(|device| device.terms.total()).collect();
        if self.located.projector > Bytes::ZERO {
            let with_layers = fit.devices.iter().position(|device| device.layers > 0).unwrap_or(0);
            if let Some(main) = bytes.get_mut(with_layers) {
                *main = *main + self.located.projector + PROJECTOR_BUFFERS;
            }
        }
        let weights = fit.devices.iter().map(|device| device.terms.get("weights")).sum::<Bytes>();
        let cache: Bytes = fit.devices.iter().map(|device| device.terms.get("kv_cache")).sum();
        let cells = fit.context.cells;
        let host = host_of_llama_cpp(facts, &fit, weights);
        if !fit.verdict.is_ready() {
            let why = fit.message.unwrap_or_else(|| fit.verdict.as_str().to_owned());
            let most = sharing.free()[first..].iter().copied().max().unwrap_or_default();
            let message = format!("{why}: it would run on the host's processors; {most} are free");
            return Started::refused(fit.verdict, message);
        }
        let mut on_all = vec![Bytes::ZERO; first];
        on_all.extend(&bytes);
        sharing.hold(name, &on_all);
        Started {
            verdict: Verdict::Ready,
            message: None,
            peak: bytes.iter().copied().max().unwrap_or_default(),
            bytes,
            cache_tokens: cells,
            max_concurrency: self.parallel() as f64,
            cache_bytes_per_token: cache.0 as f64 / cells.max(1) as f64,
            weights,
            host,
            note,
            vllm: None,
        }
    }

    /// Requests at once that the engine allows.
    pub fn parallel(&self) -> u64 {
        match &self.engine {
            EngineArgs::Vllm { args, .. } => args["max_num_seqs"].as_u64().unwrap_or(256),
            EngineArgs::Ollama { request, .. } => request.num_parallel,
            EngineArgs::LlamaCpp { .. } => 1,
        }
    }
}

fn host_of_vllm(
    engine: &Engine<'_>,
    model: &Transformer,
    args: &Value,
    gpus: &[Gpu],
) -> (Bytes, Bytes) {
    let size = |name: &str| args[name].as_u64().unwrap_or(1).clamp(1, 1024);
    let Some(version) = version::parse(engine.version) else { return Default::default() };
    let subject = Subject {
        gpu: gpus.first().and_then(|gpu| gpu.kind).map(|kind| kind.name.as_str()),
        version,
        model,
        tensor_parallel: size("tensor_parallel_size"),
        stages: size("pipeline_parallel_size") as usize,
        transport: Transport::Bus,
    };
    host::memory(engine, &subject, args)
}

/// Weights that are not on GPUs are in the host's memory; what CUDA itself takes there was not measured.
fn host_of_llama_cpp(facts: &ModelFacts, fit: &OffloadFit, on_gpus: Bytes) -> (Bytes, Bytes) {
    let all: Bytes = facts.tensors.iter().map(|tensor| Bytes(tensor.bytes)).sum();
    let likely = all - on_gpus + process::on_host(facts, &fit.context);
    (likely, likely + CUDA_ON_HOST)
}

impl Started {
    /// A start that was refused: it holds nothing.
    pub(super) fn refused(verdict: Verdict, message: String) -> Self {
        Self {
            verdict,
            message: Some(message),
            bytes: Vec::new(),
            peak: Bytes::ZERO,
            cache_tokens: 0,
            max_concurrency: 0.0,
            cache_bytes_per_token: 0.0,
            weights: Bytes::ZERO,
            host: (Bytes::ZERO, Bytes::ZERO),
            note: None,
            vllm: None,
        }
    }

    /// Host memory that its weights take while it sleeps at a level.
    pub(crate) fn pinned_at(&self, level: u8) -> Bytes {
        let stages = self.vllm.iter().flat_map(|fit| fit.stages.iter().map(|stage| stage.pinned));
        let ranks = self.vllm.as_ref().map_or(0, |fit| fit.tensor_parallel);
        if level == 1 { stages.sum::<Bytes>() * ranks } else { Bytes::ZERO }
    }

    fn of_vllm(fit: VllmFit, gpus: usize) -> Self {
        let ranks = gpus.checked_div(fit.stages.len()).unwrap_or(0).max(1);
        let of = |rank: usize| fit.stages.get(rank / ranks);
        let sum = |bytes: &dyn Fn(&crate::memory::vllm::StageFit) -> u64| -> f64 {
            (0..gpus).filter_map(of).map(|stage| bytes(stage) as f64).sum()
        };
        let cache = sum(&|stage| stage.kv_cache.max(0).unsigned_abs());
        Self {
            verdict: fit.verdict,
            message: fit.message.clone(),
            bytes: (0..gpus).filter_map(of).map(|stage| stage.served).collect(),
            peak: fit.stages.iter().map(|stage| stage.peak).max().unwrap_or_default(),
            cache_tokens: fit.kv_cache_tokens,
            max_concurrency: fit.max_concurrency,
            cache_bytes_per_token: cache / fit.kv_cache_tokens.max(1) as f64,
            weights: Bytes(sum(&|stage| stage.weights.0) as u64),
            host: (Bytes::ZERO, Bytes::ZERO),
            note: None,
            vllm: Some(Box::new(fit)),
        }
    }
}
