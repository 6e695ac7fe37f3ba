//! What becomes of one strategy, on every GPU.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::report::{GpuReport, GpuShare, ModelReport, StrategyReport, StrategyVerdict, Worst};
use super::words::Finding;
use crate::digest::Digest;
use crate::inventory::Node;
use crate::memory::vllm::search::Question;
use crate::memory::vllm::tenancy::SharedGpu;
use crate::memory::vllm::{Engine, Gpu, calibration};
use crate::model::hf_config::Transformer;
use crate::perf::{Estimate, Speed, Speeds};
use crate::placement::gpus::{Layout, NodeLayout, Prepared, Seat, lay_out, pace, prepare};
use crate::placement::{Found, PlanError};
use crate::spec::{EngineKind, Running, Spec, Written};
use crate::units::Bytes;

/// Reading weights and making graphs, where nothing was measured: bytes a second from disk, and
/// seconds for all else.
const READING: f64 = 1e9;
const BESIDES: f64 = 45.0;
const CAPTURE: f64 = 60.0;

/// What all strategies are tried on.
#[derive(Clone, Copy, Debug)]
pub struct Cluster<'a> {
    /// The machines, where a strategy doesn't bring its own.
    pub nodes: &'a [Node],
    /// The models.
    pub found: &'a Found,
    /// vLLM, with what was measured.
    pub engine: Engine<'a>,
    /// What speeds are reckoned with.
    pub speeds: &'a Speeds,
}

impl<'a> Cluster<'a> {
    /// vLLM at the pessimistic end of what was measured: what is proposed must hold there.
    pub(super) fn pessimistic(&self) -> Engine<'a> {
        Engine { estimate: calibration::Estimate::High, ..self.engine }
    }

    /// What to search a model's arguments with, at that end.
    pub(super) fn question<'b>(
        &self,
        model: &'b Transformer,
        args: &'b Value,
        gpus: &'b [Gpu],
    ) -> Question<'b>
    where
        'a: 'b,
    {
        Question { model, args, gpus, engine: self.pessimistic() }
    }
}

/// A strategy to try.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it is, in a line.
    pub title: Option<&'a str>,
    /// Whether berth found it.
    pub is_found: bool,
    /// What somebody else reckoned.
    pub written: Option<Written>,
    /// Its text, where it isn't in the spec's file.
    pub toml: Option<&'a str>,
    /// The whole spec with it.
    pub spec: &'a Spec,
}

/// What runs today, to compare with: of each model its smallest cache and its tokens a second.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Today {
    models: BTreeMap<String, (u64, Estimate)>,
}

impl Today {
    /// What a report of today's instances says.
    pub fn new(report: &StrategyReport) -> Self {
        let of = |model: &ModelReport| {
            (model.name.clone(), (model.smallest_kv_cache_tokens, model.tokens_per_second))
        };
        Self { models: report.models.iter().map(of).collect() }
    }
}

/// A spec, laid out on its nodes.
pub(super) struct Laid<'a> {
    pub(super) spec: &'a Spec,
    pub(super) cluster: &'a Cluster<'a>,
    pub(super) nodes: &'a [Node],
    pub(super) gpus: &'a [Vec<Gpu>],
    pub(super) wanted: &'a [Prepared<'a>],
    pub(super) running: &'a [(&'a Running, Prepared<'a>)],
    pub(super) layout: &'a Layout,
}

/// Lays a spec out, and looks at it.
///
/// # Errors
/// Where nothing is known of a model.
pub(super) fn lay<T>(
    cluster: &Cluster<'_>,
    spec: &Spec,
    look: impl FnOnce(&Laid<'_>) -> T,
) -> Result<T, PlanError> {
    let nodes = nodes(cluster, spec);
    let gpus = gpus(nodes);
    let wanted = spec.deployments.iter().map(|one| prepare(one, cluster.found));
    let wanted: Vec<Prepared<'_>> = wanted.collect::<Result<_, _>>()?;
    let running = spec.running.iter();
    let running: Vec<_> = running
        .map(|one| Ok((one, prepare(&one.deployment, cluster.found)?)))
        .collect::<Result<_, PlanError>>()?;
    let layout = lay_out(&wanted, &running, nodes, &gpus, &cluster.engine);
    let (gpus, wanted, running, layout) = (&gpus, &wanted, &running, &layout);
    Ok(look(&Laid { spec, cluster, nodes, gpus, wanted, running, layout }))
}

/// Lays a strategy out, and says what becomes of it.
///
/// # Errors
/// Where nothing is known of a model.
pub fn evaluate(
    cluster: &Cluster<'_>,
    candidate: &Candidate<'_>,
    today: &Today,
) -> Result<StrategyReport, PlanError> {
    lay(cluster, candidate.spec, |laid| laid.report(candidate, today))
}

/// The machines of a strategy.
pub(super) fn nodes<'a>(cluster: &Cluster<'a>, spec: &'a Spec) -> &'a [Node] {
    match spec.cluster.nodes.as_slice() {
        [] => cluster.nodes,
        planned => planned,
    }
}

/// The GPUs of each node.
pub(super) fn gpus(nodes: &[Node]) -> Vec<Vec<Gpu>> {
    nodes.iter().map(|node| node.devices.iter().filter_map(Gpu::of_device).collect()).collect()
}

/// What shall stay free of a GPU.
pub(super) fn kept_free(spec: &Spec, total: Bytes) -> Bytes {
    spec.cluster.kept_free(total)
}

fn left(gpu: &SharedGpu) -> Bytes {
    gpu.total - gpu.used().max(gpu.peak)
}

impl Laid<'_> {
    fn report(&self, candidate: &Candidate<'_>, today: &Today) -> StrategyReport {
        let worst = self.worst();
        let complexity = self.complexity();
        let (verdict, mut reasons) = self.verdict(worst.as_ref());
        let models = self.models(today);
        let restarts = self.layout.stopped.len() as u32;
        let restart_seconds = self.restart_seconds();
        if verdict != StrategyVerdict::Impossible {
            reasons.extend(models.iter().map(|model| Finding::Has {
                model: model.name.clone(),
                instances: model.instances,
                tokens: model.kv_cache_tokens,
                requests: model.max_concurrency,
                speed: model.tokens_per_second,
            }));
            reasons.push(Finding::Restarts { count: restarts, seconds: restart_seconds });
        }
        reasons.extend(models.iter().filter_map(|model| {
            let (tokens, _) = today.models.get(&model.name)?;
            let smallest = model.smallest_kv_cache_tokens;
            (model.instances > 0 && smallest < *tokens).then(|| Finding::CacheKept {
                model: model.name.clone(),
                tokens: smallest,
                today: *tokens,
            })
        }));
        StrategyReport {
            name: candidate.name.to_owned(),
            title: candidate.title.map(str::to_owned),
            is_found: candidate.is_found,
            verdict,
            reasons,
            written: candidate.written.and_then(|written| self.beside(written)),
            gpus: self.gpu_reports(),
            worst,
            toml: candidate.toml.map(str::to_owned),
            models,
            restarts,
            restart_seconds,
            is_calibrated: self.is_calibrated(),
            complexity,
            plan_digest: self.digest(),
            solver: None,
        }
    }

    /// Whether speeds on all kinds of GPU here were measured.
    fn is_calibrated(&self) -> bool {
        let mut kinds = self.gpus.iter().flatten().map(|gpu| gpu.kind);
        kinds.all(|kind| kind.is_some_and(|kind| self.cluster.speeds.is_calibrated(kind)))
    }

    fn digest(&self) -> Digest {
        let seats = self.layout.seats.iter().map(|seat| {
            let deployment = self.wanted[seat.deployment].deployment;
            (&seat.id, &self.nodes[seat.node].name, seat.first_gpu, seat.gpus, deployment)
        });
        Digest::of(&seats.collect::<Vec<_>>())
    }

    fn gpu_index(&self, node: usize, gpu: usize) -> Option<&crate::inventory::DeviceId> {
        let devices = self.nodes[node].devices.iter();
        devices.filter(|device| Gpu::of_device(device).is_some()).nth(gpu).map(|device| &device.id)
    }

    /// Nodes on which anything changes; all where nothing does.
    fn changed(&self) -> BTreeSet<usize> {
        let started = self.layout.seats.iter().filter(|seat| !seat.is_kept).map(|seat| seat.node);
        let stopped = self.layout.stopped.iter().map(|(_, node)| *node);
        let changed: BTreeSet<usize> = started.chain(stopped).collect();
        if changed.is_empty() { (0..self.nodes.len()).collect() } else { changed }
    }

    fn worst(&self) -> Option<Worst> {
        let of = |node: usize| {
            let NodeLayout { likely, high } = &self.layout.nodes[node];
            likely.iter().zip(high).enumerate().filter_map(move |(index, (likely, high))| {
                // What may not start leaves nothing to rely on.
                let mut here = self.layout.on(node);
                let is_risky =
                    here.any(|seat| seat.risk.is_some() && seat.range().contains(&index));
                let low = if is_risky { Bytes::ZERO } else { left(high) };
                let taken = !likely.engines.is_empty();
                // Cards of several sizes are compared by what is left beyond what shall be.
                let spare = left(likely).0 as i128 - kept_free(self.spec, likely.total).0 as i128;
                taken.then(|| (spare, left(likely), low, node, index))
            })
        };
        let (_, bytes, low, node, gpu) = self.changed().into_iter().flat_map(of).min()?;
        Some(Worst {
            node: self.nodes[node].name.clone(),
            gpu: self.gpu_index(node, gpu)?.clone(),
            headroom_bytes: bytes,
            headroom_bytes_low: low,
            kept_free_bytes: kept_free(self.spec, self.layout.nodes[node].likely[gpu].total),
        })
    }

    fn verdict(&self, worst: Option<&Worst>) -> (StrategyVerdict, Vec<Finding>) {
        let layout = self.layout;
        let mut reasons: Vec<Finding> = layout
            .missing
            .iter()
            .map(|missing| Finding::NoPlace {
                placed: missing.placed,
                wanted: missing.wanted,
                reason: missing.reason.clone(),
            })
            .collect();
        let risks = self.risks();
        let mut verdict = StrategyVerdict::Fits;
        if risks.iter().any(|one| !matches!(one, Finding::RunsButWouldNotStart { .. })) {
            verdict = StrategyVerdict::Tight;
        }
        reasons.extend(risks);
        if let Some(worst) = worst {
            let wanted = worst.kept_free_bytes;
            if worst.headroom_bytes < wanted {
                verdict = StrategyVerdict::Tight;
                reasons.push(Finding::LeftTooLittle { bytes: worst.headroom_bytes, wanted });
            }
            if layout.missing.is_empty() {
                reasons.push(Finding::Left {
                    gpu: format!("{} {}", worst.node, worst.gpu),
                    bytes: worst.headroom_bytes,
                    low: worst.headroom_bytes_low,
                });
            }
        }
        if !layout.missing.is_empty() {
            verdict = StrategyVerdict::Impossible;
        }
        (verdict, reasons)
    }

    fn changes_nothing(&self) -> bool {
        let Layout { seats, missing, .. } = self.layout;
        missing.is_empty() && seats.iter().all(|seat| seat.is_kept)
    }

    /// What may go wrong with instances that have a place; the same of a deployment's others is said
    /// once.
    fn risks(&self) -> Vec<Finding> {
        let is_untouched = self.changes_nothing();
        let mut said = BTreeSet::new();
        let mut found = Vec::new();
        for seat in &self.layout.seats {
            let (instance, node) = (seat.id.to_string(), self.nodes[seat.node].name.clone());
            let mut is_new = |text: &String| said.insert((seat.deployment, text.clone()));
            if let Some(message) = seat.risk.as_ref().filter(|text| is_new(text)) {
                let (instance, message) = (instance.clone(), message.clone());
                found.push(Finding::Risk { instance, node, message });
            }
            if let Some(note) = seat.started.note.as_ref().filter(|text| is_new(text)) {
                found.push(Finding::Note { instance: instance.clone(), note: note.clone() });
            }
            // Said of what runs today, and not again of every strategy that leaves it alone.
            let message = seat.started.message.as_ref().filter(|_| is_untouched);
            if let Some(message) = message.filter(|text| is_new(text)) {
                found.push(Finding::RunsButWouldNotStart { instance, message: message.clone() });
            }
        }
        found
    }

    fn gpu_reports(&self) -> Vec<GpuReport> {
        let mut reports = Vec::new();
        let models = self.models_of_instances();
        for (node, layout) in self.layout.nodes.iter().enumerate() {
            for (index, gpu) in layout.likely.iter().enumerate() {
                let Some(id) = self.gpu_index(node, index) else { continue };
                let share = |(instance, bytes): &(String, Bytes)| GpuShare {
                    model: models.get(instance.as_str()).copied().unwrap_or_default().to_owned(),
                    instance: instance.clone(),
                    bytes: *bytes,
                };
                reports.push(GpuReport {
                    node: self.nodes[node].name.clone(),
                    gpu: id.clone(),
                    total_bytes: gpu.total,
                    planned_bytes: gpu.used(),
                    headroom_bytes: left(gpu),
                    instances: gpu.engines.iter().map(share).collect(),
                });
            }
        }
        reports
    }

    pub(super) fn models_of_instances(&self) -> BTreeMap<&str, &str> {
        let model = |seat: &Seat| self.wanted[seat.deployment].deployment.model.as_str();
        self.layout.seats.iter().map(|seat| (seat.id.0.as_str(), model(seat))).collect()
    }

    fn speed(&self, seat: &Seat) -> Speed {
        let kind = self.gpus[seat.node].get(seat.first_gpu).and_then(|gpu| gpu.kind);
        let wanted = &self.wanted[seat.deployment];
        pace::speed(seat, self.layout, wanted, kind, self.cluster.speeds).unwrap_or_default()
    }

    fn models(&self, today: &Today) -> Vec<ModelReport> {
        let mut models: BTreeMap<&str, ModelReport> = BTreeMap::new();
        let mut served: BTreeMap<&str, f64> = BTreeMap::new();
        let names = self.wanted.iter().map(|wanted| wanted.deployment.model.as_str());
        let runs = self.running.iter().map(|(running, _)| running.deployment.model.as_str());
        for name in names.chain(runs) {
            let empty = ModelReport {
                name: name.to_owned(),
                instances: 0,
                kv_cache_tokens: 0,
                max_concurrency: 0.0,
                smallest_kv_cache_tokens: 0,
                tokens_per_second: Estimate::default(),
                capacity: None,
                unserved_requests_per_second: 0.0,
            };
            models.insert(name, empty);
        }
        for seat in &self.layout.seats {
            let name = self.wanted[seat.deployment].deployment.model.as_str();
            let Some(model) = models.get_mut(name) else { continue };
            let (tokens, speed) = (seat.started.cache_tokens, self.speed(seat));
            model.smallest_kv_cache_tokens = match model.instances {
                0 => tokens,
                _ => model.smallest_kv_cache_tokens.min(tokens),
            };
            model.instances += 1;
            model.kv_cache_tokens += tokens;
            model.max_concurrency += seat.started.max_concurrency;
            model.tokens_per_second = model.tokens_per_second.plus(speed.tokens_per_second);
            *served.entry(name).or_default() += speed.requests_per_second;
        }
        for (name, model) in &mut models {
            let before = today.models.get(*name).map(|(_, speed)| speed.mid);
            let before = before.filter(|speed| *speed > 0.0);
            model.capacity = before.map(|before| model.tokens_per_second.mid / before);
            let demands = self.wanted.iter().filter(|wanted| wanted.deployment.model == **name);
            let demand = demands.filter_map(|wanted| wanted.deployment.demand).next();
            let asked = demand.map_or(0.0, |demand| demand.requests_per_second);
            let got = served.get(name).copied().unwrap_or(0.0);
            model.unserved_requests_per_second = (asked - got).max(0.0);
        }
        models.into_values().collect()
    }

    /// Starts on a GPU come one after the other; GPUs work at the same time.
    fn restart_seconds(&self) -> Estimate {
        let touched: BTreeSet<usize> = self.layout.stopped.iter().map(|(_, node)| *node).collect();
        let seconds = |seat: &Seat| {
            // The ranks of a node read from one disk.
            let reading = seat.started.weights.0 as f64 / READING;
            let vllm = seat.started.vllm.as_ref();
            let captures = vllm
                .is_some_and(|fit| fit.stages.iter().any(|stage| stage.cuda_graphs > Bytes::ZERO));
            reading + BESIDES + if captures { CAPTURE } else { 0.0 }
        };
        let on = |node: usize| -> f64 {
            let new = || self.layout.on(node).filter(|seat| !seat.is_kept);
            let of = |gpu| new().filter(|seat| seat.range().contains(&gpu)).map(seconds).sum();
            (0..self.gpus[node].len()).map(of).fold(0.0, f64::max)
        };
        let longest = touched.into_iter().map(on).fold(0.0, f64::max);
        Estimate { low: longest / 2.0, mid: longest, high: longest * 2.0 }
    }

    fn complexity(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let shared = self.layout.nodes.iter().flat_map(|node| &node.likely);
        let shared = shared.filter(|gpu| gpu.engines.len() > 1).count();
        if shared > 0 {
            found.push(Finding::Shared { gpus: shared });
        }
        let mut engines: BTreeSet<EngineKind> =
            self.running.iter().map(|(running, _)| running.deployment.engine).collect();
        let mut parts: BTreeMap<&str, usize> = BTreeMap::new();
        for Prepared { deployment, .. } in self.wanted {
            *parts.entry(&deployment.model).or_default() += 1;
            if !self.running.is_empty() && engines.insert(deployment.engine) {
                let engine = deployment.engine.as_str().to_owned();
                found.push(Finding::OtherEngine { engine });
            }
            let assumed = deployment.facts.as_ref().map(|facts| facts.tensor_type.clone());
            let quantised = deployment.flags.get("quantization").map(|how| match how {
                crate::spec::FlagValue::Text(how) => how.clone(),
                _ => "quantised".to_owned(),
            });
            if let Some(form) = assumed.or(quantised) {
                found.push(Finding::OtherWeights { model: deployment.model.clone(), form });
            }
        }
        let divided = parts.into_iter().filter(|(_, parts)| *parts > 1);
        found.extend(
            divided.map(|(model, parts)| Finding::Divided { model: model.to_owned(), parts }),
        );
        found
    }
}
