//! All that is fitted. From 13 starts of vLLM 0.26.0 (CUDA 13) on an H100 80GB, in
//! `data/vllm-h100.jsonl`; the rows of `data/vllm-h200.jsonl` were measured after it was frozen.

use crate::units::Bytes;

/// The CUDA context before the first snapshot (logged as total less free: .514 to .524 GiB).
pub const CONTEXT: Bytes = Bytes(555_124_523);
/// What a context takes less where another process has one on the device already.
pub const CONTEXT_SHARED: Bytes = Bytes::mib(10);
/// Modules loaded between vLLM's snapshots ("non-torch memory", .22 GiB in every row).
pub const NON_TORCH: Bytes = Bytes(240_840_146);
/// cuBLAS' workspace on Hopper (ATen's default).
pub const CUBLAS_WORKSPACE: u64 = (32 << 20) + 8192;
/// Kernels loaded after profiling. 15 MiB fits best; this much keeps every eager row above -0.2 %.
pub const LATE_KERNELS: Bytes = Bytes::mib(60);
/// Kernels loaded by the first requests.
pub const FIRST_REQUESTS: Bytes = Bytes::mib(4);
/// What is there beside torch's segments at the peak of loading. From one refused start.
pub const WHILE_LOADING: Bytes = Bytes::mib(160);
/// Bytes of a captured graph for each layer. From two rows; three later ones were met within
/// 60 MiB, one with `max_num_seqs` 512 was 330 MiB under.
pub const GRAPH_LAYER: u64 = 155_000;
/// The graphs' private pool, in activations of one layer at the largest captured size.
pub const GRAPH_POOL_LAYERS: u64 = 3;
/// Multiprocessors of an H100 and an H200.
pub const MULTIPROCESSORS: u64 = 132;
