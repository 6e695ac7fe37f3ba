//! The memory of vLLM, from a model's `config.json` and vLLM's own arguments.
//!
//! - [`args`]: the arguments that memory depends on, resolved as vLLM resolves them
//! - [`flags`]: vLLM's command line as arguments
//! - [`device`]: the GPUs that it starts on
//! - [`communicators`]: what ranks take to talk to each other
//! - [`version`]: what differs between versions
//! - [`quantization`], [`weights`]: the tensors of a rank
//! - [`caching_allocator`]: PyTorch's allocator, replayed: what the device sees of tensors
//! - [`loading`]: building the model, whose peak is above what stays
//! - [`activations`], [`compiled`]: the passes that profile, warm up and serve
//! - [`kv_cache`]: groups of layers, blocks, tokens
//! - [`graphs`]: captured CUDA graphs
//! - [`calibration`]: all that is fitted, as data with its source
//! - [`learning`]: from vLLM's log to calibration
//! - [`startup`], [`answer`]: the sequence of a start; what is said of it
//! - [`tenancy`]: several engines on the same GPUs, started in order
//! - [`search`], [`advice`]: from what is wanted to the arguments that give it
//!
//! `gpu_memory_utilization` is not a cap: sampler state, block tables, retained activations, graphs
//! and late kernels come on top of it, and are terms of their own here.
//!
//! Read in the sources of vLLM 0.26 to 0.33; measured with 0.26.0 on an H100 and on one to four H200s.

pub mod activations;
pub mod advice;
pub mod answer;
pub mod args;
pub mod caching_allocator;
pub mod calibration;
pub mod communicators;
pub mod compiled;
pub mod device;
pub mod flags;
pub mod graphs;
pub mod host;
pub mod kv_cache;
pub mod learning;
pub mod loading;
mod messages;
pub mod quantization;
mod refusals;
pub mod search;
pub mod startup;
pub mod tenancy;
mod terms;
pub mod version;
pub mod weights;

pub use answer::{StageFit, VllmFit};
pub use args::{DEFAULT_UTILIZATION, EntryPoint, VllmArgs};
pub use calibration::{Calibration, Estimate};
pub use device::{Card, Gpu};
pub use startup::{CompileCache, Engine, blocks_for, fit};
