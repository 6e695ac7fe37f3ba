//! How fast an instance is where it is: beside others it gets its part of each GPU's time.

use super::layout::{Layout, Seat};
use super::prepared::{EngineArgs, Prepared, Started};
use crate::gpu::GpuKind;
use crate::perf::{Speed, Speeds, Workload};
use crate::spec::Demand;

/// What is asked where the spec doesn't say.
pub const USUAL: Demand =
    Demand { requests_per_second: 0.0, prompt_tokens: 1000, answer_tokens: 250, token_ms: None };

/// The speed of an instance; none on a kind of GPU that nothing is known of.
pub fn speed(
    seat: &Seat,
    layout: &Layout,
    wanted: &Prepared<'_>,
    kind: Option<&GpuKind>,
    speeds: &Speeds,
) -> Option<Speed> {
    let demand = wanted.deployment.demand.unwrap_or(USUAL);
    let neighbours = |gpu: usize| {
        layout.on(seat.node).filter(|other| other.range().contains(&gpu)).count().max(1)
    };
    let most = seat.range().map(neighbours).max().unwrap_or(1);
    let kind = kind?;
    let workload = workload(&seat.started, wanted, kind, 1.0 / most as f64);
    Some(workload.speed(&demand, &speeds.of(kind)))
}

/// What the speed of a start depends on.
pub fn workload<'a>(
    started: &Started,
    wanted: &Prepared<'_>,
    kind: &'a GpuKind,
    share: f64,
) -> Workload<'a> {
    let (layers, hidden, ranks, stages) = match &wanted.engine {
        EngineArgs::Vllm { model, args } => {
            let size = |name: &str| args[name].as_f64().unwrap_or(1.0).max(1.0);
            let (ranks, stages) = (size("tensor_parallel_size"), size("pipeline_parallel_size"));
            (model.layers(), model.hidden, ranks, stages)
        }
        EngineArgs::Ollama { facts, .. } | EngineArgs::LlamaCpp { facts, .. } => {
            (facts.layers.len(), facts.embedding_length, 1.0, 1.0)
        }
    };
    Workload {
        kind,
        ranks,
        stages,
        weight_bytes: started.weights.0 as f64,
        active_parameters: wanted.located.active_parameters as f64,
        layers: layers as f64,
        hidden: hidden as f64,
        cache_bytes: started.cache_bytes_per_token,
        cache_tokens: started.cache_tokens as f64,
        sequences: wanted.parallel() as f64,
        share,
    }
}
