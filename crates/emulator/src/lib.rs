//! Emulated machines and engines behind real sockets, so that a plan can be rehearsed without a GPU, and so
//! that what needs GPUs can be tested.
//!
//! What is emulated speaks the real protocol and fails the way the real one does; what it answers is never a
//! measurement, and says so: every answer has the header `x-berth-emulated`.
//!
//! - [`ray`]: the dashboard of a Ray cluster: nodes, GPUs, Serve's applications
//! - [`vllm`]: an engine: its start by the memory model, its batches by the model of speed
//! - [`fault`]: what can go wrong on command
//! - `http`: a small server
//!
//! Start with [`ray::Cluster::start`].

pub mod fault;
mod http;
pub mod ray;
pub mod vllm;
