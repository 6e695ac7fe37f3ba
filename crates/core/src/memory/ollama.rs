//! Ollama: what it predicts, how it decides, and what it starts.
//!
//! `llm/llama_server.go`, `server/sched.go` and `server/routes.go` of Ollama at fb30760 (August 2026),
//! which starts llama.cpp's server for each model. What the engine then really takes is
//! [`llama_cpp::offload`](super::llama_cpp::offload); the two differ widely, and Ollama plans with its
//! own figure.

use serde::Serialize;

use super::llama_cpp::LlamaFlags;
use super::llama_cpp::graph::Backend;
use super::llama_cpp::offload::{DeviceFlags, Offload, OffloadFit, Outside};
use crate::model::ModelFacts;
use crate::units::Bytes;

/// Of a GPU's free memory Ollama gives this share, in percent.
const GATE_PERCENT: u64 = 80;

/// A parameter of a model in Ollama.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// No more than this: products of two must still be llama-server's to read.
    pub most: i64,
}

/// The parameters that memory depends on.
pub const PARAMETERS: [Parameter; 3] = [
    Parameter { name: "num_batch", most: 1 << 22 },
    Parameter { name: "num_ctx", most: 1 << 22 },
    Parameter { name: "num_parallel", most: 256 },
];

/// What decides how Ollama starts a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// `num_ctx`, or `OLLAMA_CONTEXT_LENGTH`; none takes the tier.
    pub num_ctx: Option<u64>,
    /// `OLLAMA_NUM_PARALLEL`.
    pub num_parallel: u64,
    /// `num_batch`; none takes what fits.
    pub num_batch: Option<u64>,
}

impl Default for Request {
    fn default() -> Self {
        Self { num_ctx: None, num_parallel: 1, num_batch: None }
    }
}

/// What Ollama decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// Tokens of one request.
    pub num_ctx: u64,
    /// `-b` and `-ub`.
    pub num_batch: u64,
    /// What Ollama believes that the model takes.
    pub predicted: Bytes,
    /// What the batch is reckoned with.
    pub surcharge: Bytes,
    /// Whether it would load beside others that stay: predicted and surcharge within 80 % of what is
    /// free. Else it evicts one of its own first. Models of other engines it can't evict.
    pub passes_gate: bool,
    /// The GPU that it all goes to; none where llama.cpp spreads it over all.
    pub gpu: Option<usize>,
    /// llama-server's words, as far as memory depends on them.
    pub words: Vec<String>,
}

/// The default context by the memory of all GPUs together.
pub fn context_tier(total: Bytes) -> u64 {
    match total {
        total if total >= Bytes::gib(47) => 262_144,
        total if total >= Bytes::gib(23) => 32_768,
        _ => 4096,
    }
}

/// `PredictServerVRAM`: the file, and keys and values in f16 of all layers at full length, with a head
/// as wide as the embedding divided by the heads. Sliding windows, quantised caches, compute buffers
/// and the CUDA context are not in it.
pub fn predicted(facts: &ModelFacts, num_ctx: u64, num_parallel: u64) -> Bytes {
    let tokens = match facts.context_length {
        0 => num_ctx,
        trained => num_ctx.min(trained),
    };
    let tokens = tokens.saturating_mul(num_parallel.max(1));
    let kv_heads = facts.layers.iter().map(|layer| layer.kv_heads).min().unwrap_or(1).max(1);
    let heads = facts.layers.iter().map(|layer| layer.heads).max().unwrap_or(1).max(1);
    let head = facts.embedding_length / heads;
    let layers = facts.layers.len() as u64;
    facts.file_bytes + Bytes(2 * layers) * kv_heads * head * tokens * 2
}

/// Batch and what it is reckoned with: the largest for which enough is left over.
fn batch(num_ctx: u64, predicted: Bytes, free: Bytes) -> (u64, Bytes) {
    let share = |percent: u64| Bytes(free.0 / 100 * percent);
    let steps =
        [(2048, Bytes::gib(2), 60, num_ctx > 32_768), (1024, Bytes::mib(768), 75, num_ctx > 4096)];
    let fits = |(_, surcharge, percent, wanted): &(u64, Bytes, u64, bool)| {
        *wanted && predicted <= share(*percent) && predicted + *surcharge <= share(GATE_PERCENT)
    };
    let found = steps.iter().find(|step| fits(step));
    found.map_or((512, Bytes::ZERO), |(batch, surcharge, ..)| (*batch, *surcharge))
}

/// What Ollama decides, and what llama.cpp then takes of GPUs with so much free.
pub fn fit(
    facts: &ModelFacts,
    request: Request,
    free: &[Bytes],
    total: Bytes,
) -> (Decision, OffloadFit) {
    let decision = decide(facts, request, free, total);
    let split = DeviceFlags::from_args(&decision.words);
    let (mut devices, others) = split.unwrap_or_default();
    if let Some(gpu) = decision.gpu {
        // Ollama shows llama.cpp that GPU alone.
        devices.main = gpu;
    }
    // Numbers are bounded where they are read, so that these words are always good.
    let flags = LlamaFlags::from_args(&others).unwrap_or_default();
    let (flags, devices) = (&flags, &devices);
    let offload = Offload { facts, flags, devices, backend: Backend::Cuda, outside: Outside::CUDA };
    let fit = offload.fit(free);
    (decision, fit)
}

/// What Ollama does with a model on GPUs of which `free` is free and `total` all.
pub fn decide(facts: &ModelFacts, request: Request, free: &[Bytes], total: Bytes) -> Decision {
    let num_ctx = request.num_ctx.unwrap_or_else(|| context_tier(total)).max(4);
    let num_parallel = request.num_parallel.max(1);
    let predicted = predicted(facts, num_ctx, num_parallel);
    let all: Bytes = free.iter().copied().sum();
    let has_room = |free: Bytes| predicted <= Bytes(free.0 / 100 * GATE_PERCENT);
    // With one GPU nothing is chosen: llama.cpp sees it anyhow.
    let best = free.iter().enumerate().filter(|(_, free)| has_room(**free));
    let best = best.max_by_key(|(index, free)| (**free, std::cmp::Reverse(*index)));
    let gpu = best.map(|(index, _)| index).filter(|_| free.len() > 1);
    let available = gpu.map_or(all, |gpu| free[gpu]);
    let capped = match facts.context_length {
        0 => num_ctx,
        trained => num_ctx.min(trained),
    };
    let (num_batch, surcharge) = match request.num_batch {
        Some(batch) => (batch, Bytes::ZERO),
        None => batch(capped.saturating_mul(num_parallel), predicted, available),
    };
    let word = |name: &str, value: u64| [name.to_owned(), value.to_string()];
    let mut words: Vec<String> = word("-c", capped.saturating_mul(num_parallel)).into();
    words.extend(word("-np", num_parallel));
    words.extend(word("-b", num_batch));
    words.extend(word("-ub", num_batch));
    if gpu.is_some() {
        words.extend(["--split-mode", "none", "--main-gpu", "0"].map(str::to_owned));
    }
    Decision {
        num_ctx: capped,
        num_batch,
        predicted,
        surcharge,
        passes_gate: predicted + surcharge <= Bytes(available.0 / 100 * GATE_PERCENT),
        gpu,
        words,
    }
}
