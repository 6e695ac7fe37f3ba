//! One OpenAI-compatible address in front of many models.
//!
//! Bodies and streams pass as bytes: of a request only `model` is looked at, of an answer nothing.
//!
//! - [`routes`]: which instances serve a model now; swapped as a whole, without locks
//! - `serve`: connections, and draining at the end
//! - `handle`: one request: which endpoint, which model, which instance
//! - `forward`: to the instance and back, cancelled when the client goes
//! - `peek`: the model's name out of a body
//! - [`error`]: one error type, one place that turns it into an OpenAI-shaped answer
//! - [`metrics`]: what Prometheus sees
//!
//! Start with [`Gateway`].

pub mod error;
mod forward;
mod handle;
pub mod metrics;
mod peek;
pub mod routes;
mod serve;

pub use error::GatewayError;
pub use routes::{Instance, Routes, Upstream, UpstreamState};
pub use serve::Gateway;
