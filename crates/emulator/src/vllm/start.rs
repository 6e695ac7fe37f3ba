//! A start: what vLLM logs, what it takes, or how it ends.

use berth_core::gpu::GpuKind;
use berth_core::memory::vllm::calibration::Estimate;
use berth_core::memory::vllm::{self, Engine, Gpu, VllmFit, flags};
use berth_core::model::hf_config::Transformer;
use berth_core::units::Bytes;
use serde_json::Value;

use crate::engine::Pace;

/// What a start came to.
#[derive(Clone, Debug)]
pub struct Started {
    /// What vLLM logs.
    pub log: Vec<String>,
    /// What it takes of each GPU; or why it ended.
    pub outcome: Result<Taken, String>,
}

/// What an engine has once it is ready.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Bytes of each GPU.
    pub bytes: Vec<Bytes>,
    /// The same while it sleeps; empty where it can't.
    pub asleep: Vec<Bytes>,
    /// What its pace depends on.
    pub pace: Pace,
    /// Seconds that the real one would take to get there, as far as that is reckoned.
    pub seconds: f64,
}

/// Starts a model with a command line's words on GPUs that hold what others left there. It is taken to be as
/// small as the memory model allows: what certainly fails fails.
pub fn start(model: &Transformer, words: &[String], gpus: &[Gpu], version: &str) -> Started {
    let mut log = vec![
        format!("INFO [utils.py:233] vLLM API server version {version} (emulated)"),
        format!("INFO [utils.py:233] non-default args: {}", words.join(" ")),
    ];
    let args = match flags::from_words(words) {
        Ok(args) => args,
        Err(error) => {
            let message = format!("vllm serve: error: {error}");
            log.push(message.clone());
            return Started { log, outcome: Err(message) };
        }
    };
    let engine = Engine { estimate: Estimate::Low, ..Engine::of_version(version) };
    let fit = vllm::fit(model, &args, gpus, &engine);
    if !fit.verdict.is_ready() {
        let message = fit.message.unwrap_or_else(|| fit.verdict.as_str().to_owned());
        log.push(format!("ERROR [core.py:1108] EngineCore failed to start. {message}"));
        return Started { log, outcome: Err(message) };
    }
    log.extend(lines(&fit));
    let ranks = gpus.len().checked_div(fit.stages.len()).unwrap_or(1).max(1);
    let stages: Vec<_> = (0..gpus.len()).filter_map(|gpu| fit.stages.get(gpu / ranks)).collect();
    let weights: u64 = stages.iter().map(|stage| stage.weights.0).sum();
    let taken = Taken {
        bytes: stages.iter().map(|stage| stage.served).collect(),
        asleep: stages.iter().filter_map(|stage| stage.asleep).collect(),
        pace: pace(model, &args, &fit, gpus.first().and_then(|gpu| gpu.kind)),
        seconds: 20.0 + weights as f64 / 1e9,
    };
    Started { log, outcome: Ok(taken) }
}

/// The lines that people, and berth, look for.
fn lines(fit: &VllmFit) -> Vec<String> {
    let gib = |bytes: Bytes| bytes.0 as f64 / (1_u64 << 30) as f64;
    let Some(first) = fit.stages.first() else { return Vec::new() };
    let cache = Bytes(first.kv_cache.max(0).unsigned_abs());
    vec![
        format!(
            "INFO [gpu_model_runner.py:5121] Model loading took {:.2} GiB memory",
            gib(first.weights)
        ),
        format!("INFO [gpu_worker.py:541] Available KV cache memory: {:.2} GiB", gib(cache)),
        format!("INFO [kv_cache_utils.py:1710] GPU KV cache size: {} tokens", fit.kv_cache_tokens),
        format!(
            "INFO [kv_cache_utils.py:1715] Maximum concurrency for {} tokens per request: {:.2}x",
            fit.max_model_len, fit.max_concurrency
        ),
        "INFO:     Application startup complete.".to_owned(),
    ]
}

fn pace(model: &Transformer, args: &Value, fit: &VllmFit, kind: Option<&GpuKind>) -> Pace {
    let ranks = fit.tensor_parallel.max(1) as f64;
    let weights: f64 = fit.stages.iter().map(|stage| stage.weights.0 as f64 * ranks).sum();
    let cache: f64 = fit.stages.iter().map(|stage| stage.kv_cache.max(0) as f64 * ranks).sum();
    let gpus = ranks * fit.stages.len().max(1) as f64;
    // Cards that nothing is known of are as slow as an L4.
    let bandwidth = kind.map_or(300.0, |kind| kind.bandwidth_gb_s) * 1e9;
    let arithmetic = kind.map_or(121.0, |kind| kind.tflops_16bit) * 1e12;
    Pace {
        // Two thirds of the bandwidth, two fifths of the arithmetic: as berth reckons uncalibrated.
        weights_s: weights / (gpus * bandwidth * 0.65),
        cache_s_per_token: cache / fit.kv_cache_tokens.max(1) as f64 / (gpus * bandwidth * 0.65),
        prefill_s_per_token: 2.0 * model.active_parameters() as f64 / (gpus * arithmetic * 0.4),
        cache_tokens: fit.kv_cache_tokens,
        sequences: args["max_num_seqs"].as_u64().unwrap_or(256),
        longest: fit.max_model_len,
    }
}
