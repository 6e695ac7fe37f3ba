//! What is said of a start: its verdict, what it logs, and what each rank takes.

use serde::Serialize;

use crate::memory::{Footprint, Verdict};
use crate::units::Bytes;

/// The answer for a model in vLLM.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VllmFit {
    /// What vLLM does.
    pub verdict: Verdict,
    /// Its message, where it doesn't start.
    pub message: Option<String>,
    /// What it takes on the GPUs of each pipeline stage; empty where it ends before it takes any.
    pub stages: Vec<StageFit>,
    /// GPUs that each layer is spread over.
    pub tensor_parallel: u64,
    /// Blocks of the KV cache.
    pub kv_cache_blocks: u64,
    /// Tokens that the KV cache holds, as logged.
    pub kv_cache_tokens: u64,
    /// Requests of the longest length at once, as logged.
    pub max_concurrency: f64,
    /// `max_model_len`, found where it is automatic.
    pub max_model_len: u64,
    /// Whether this kind of GPU and layout was measured; else each figure has a band.
    pub is_measured: bool,
}

impl VllmFit {
    /// A start that ends before it takes any memory.
    pub(super) fn ended(verdict: Verdict, message: String) -> Self {
        Self {
            verdict,
            message: Some(message),
            stages: Vec::new(),
            tensor_parallel: 1,
            kv_cache_blocks: 0,
            kv_cache_tokens: 0,
            max_concurrency: 0.0,
            max_model_len: 0,
            is_measured: false,
        }
    }
}

/// What a rank of one pipeline stage takes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StageFit {
    /// Bytes of tensors, as logged.
    pub weights: Bytes,
    /// "Peak activation", as logged.
    pub activation_peak: Bytes,
    /// "Non-torch memory", as logged.
    pub non_torch: Bytes,
    /// Captured graphs, as logged.
    pub cuda_graphs: Bytes,
    /// The KV cache; below zero where there is no room for it, so signed.
    pub kv_cache: i64,
    /// PyTorch's segments when ready, and after load.
    pub reserved_ready: Bytes,
    /// The same after load.
    pub reserved_served: Bytes,
    /// What the process holds once it is ready.
    pub ready: Bytes,
    /// What it holds after load.
    pub served: Bytes,
    /// The most that it ever holds, loading included.
    pub peak: Bytes,
    /// The most while it loads.
    pub load_peak: Bytes,
    /// What it holds while it sleeps; none where it can't.
    pub asleep: Option<Bytes>,
    /// Pinned host memory that it takes for that at level 1; it keeps it once it is awake again.
    pub pinned: Bytes,
    /// The bytes by term.
    pub terms: Footprint,
}
