//! The memory of vLLM, from a model's `config.json` and vLLM's own arguments.
//!
//! - [`args`]: the arguments that memory depends on, resolved as vLLM resolves them
//! - [`version`]: what differs between versions
//! - [`weights`]: the tensors of a rank
//! - [`caching_allocator`]: PyTorch's allocator, replayed: what the device sees of tensors
//! - [`loading`]: building the model, whose peak is above what stays
//! - [`activations`]: the passes that profile, warm up and serve
//! - [`kv_cache`]: groups of layers, blocks, tokens
//! - [`graphs`]: captured CUDA graphs (calibrated)
//! - [`calibration`]: all that is fitted, and from what
//! - [`startup`]: the sequence of a start, its verdicts and its messages
//!
//! `gpu_memory_utilization` is not a cap: sampler state, block tables, retained activations, graphs
//! and late kernels come on top of it, and are terms of their own here.
//!
//! Read in the sources of vLLM 0.26 to 0.30 and 0.33 (0.31 and 0.32 are taken to be as 0.33);
//! measured with 0.26.0 on an H100 and an H200, one GPU. Tensor and pipeline parallelism follow the
//! source and were not measured; communicators' buffers are missing.

pub mod activations;
pub mod args;
pub mod caching_allocator;
pub mod calibration;
pub mod graphs;
pub mod kv_cache;
pub mod loading;
pub mod startup;
pub mod version;
pub mod weights;

pub use args::VllmArgs;
pub use startup::{Gpu, VllmFit, fit};
