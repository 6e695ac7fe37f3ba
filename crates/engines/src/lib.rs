//! The engines that berth runs: what they need, what they say, and why they fail.
//!
//! - [`source`]: a model's file, found on disk or fetched from a hub, and its header read
//! - [`binary`]: an engine's program, found
//! - [`health`]: whether an engine is ready, asked at its own endpoint
//! - [`metrics`]: what an engine says of its load and its cache
//! - [`llama_server`]: llama.cpp's server: its log and its ways to fail
//! - [`serve_replica`]: what Ray Serve says of an engine that ended
//! - [`vllm`]: vLLM's log
//! - [`diagnosis`]: a failed start in words
//!
//! The words that an engine is started with are part of the plan, and so of `berth-core`.

pub mod binary;
pub mod diagnosis;
pub mod health;
pub mod llama_server;
pub mod metrics;
pub mod serve_replica;
pub mod source;
pub mod vllm;

pub use diagnosis::{Cause, Diagnosis, ExitKind};
pub use health::Health;
