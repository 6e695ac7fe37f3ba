//! Emulated machines and engines behind real sockets, so that a plan can be rehearsed without a GPU, and so
//! that what needs GPUs can be tested.
//!
//! What is emulated speaks the real protocol and fails the way the real one does; what it answers is never a
//! measurement, and says so: every answer has the header `x-berth-emulated`.
//!
//! - [`ray`]: the dashboard of a Ray cluster: nodes, GPUs, Serve's applications
//! - [`vllm`]: an engine: its start by the memory model, its batches by the model of speed
//! - [`ollama`]: a server with a library: pulls, loads, evictions
//! - [`engine`]: requests in a continuous batch, whichever engine makes it
//! - [`fault`]: what can go wrong on command
//! - `openai`: completions as all engines give them
//! - `http`: a small server
//!
//! Start with [`ray::Cluster::start`].

pub mod engine;
pub mod fault;
mod http;
pub mod ollama;
mod openai;
pub mod ray;
pub mod vllm;
