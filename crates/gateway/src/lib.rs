//! One OpenAI-compatible address in front of many models.
//!
//! Bodies and streams pass as bytes: of a request only a few fields are looked at, of an answer its end.
//!
//! - `serve`: threads, connections, and draining at the end; [`tls`]: https
//! - `shared`: what all requests share
//! - `handle`: one request: which endpoint, and what is answered from here
//! - `endpoint`: which paths there are
//! - [`keys`]: who may use what, and how much
//! - `peek`: model, prompt and size out of a body
//! - [`routing`]: which instance, and when
//! - `forward`: to an instance, and to another where that one can't answer
//! - `flight`: what a request holds, and what is counted of it
//! - `upstream`: the way to an engine and back
//! - [`error`]: one error type, one place that turns it into an OpenAI-shaped answer
//! - [`metrics`]: what Prometheus sees
//! - [`spans`]: spans of requests, with the feature `otel`
//! - [`settings`](mod@settings): limits, and what is told
//!
//! Start with [`Gateway`].

mod endpoint;
pub mod error;
mod flight;
mod forward;
mod handle;
pub mod keys;
pub mod metrics;
mod peek;
pub mod routing;
mod serve;
pub mod settings;
mod shared;
pub mod spans;
pub mod tls;
mod upstream;

pub use error::GatewayError;
pub use routing::routes::Routes;
pub use routing::table::{Instance, Rule, Table, UpstreamState};
pub use serve::Gateway;
pub use settings::Settings;
