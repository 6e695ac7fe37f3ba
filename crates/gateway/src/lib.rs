//! One OpenAI-compatible address in front of many models.
//!
//! Bodies and streams pass as bytes: of a request only a few fields are looked at, of an answer its end.
//!
//! - [`table`]: what the gateway is told: instances, aliases, rules
//! - [`mod@settings`]: limits; [`tls`]: https
//! - [`routes`]: what the table comes to while requests run; swapped as a whole
//! - [`keys`]: who may use what, and how much
//! - `serve`: threads, connections, and draining at the end
//! - `handle`: one request: which endpoint, and what is answered from here
//! - `endpoint`: which paths there are
//! - `peek`: model, prompt and size out of a body
//! - `rules`: which rule a request meets
//! - `forward`: to an instance, and to another where that one can't answer
//! - `retry`: how often that may be
//! - `balance`: which instance; `affinity`: where a prompt's beginning was seen
//! - `admit`: requests that wait for room
//! - `flight`: what a request holds, and what is counted of it
//! - `upstream`: the way to an engine and back
//! - `health`: whether engines are well
//! - [`error`]: one error type, one place that turns it into an OpenAI-shaped answer
//! - [`metrics`]: what Prometheus sees
//!
//! Start with [`Gateway`].

mod admit;
mod affinity;
mod balance;
mod endpoint;
pub mod error;
mod flight;
mod forward;
mod handle;
mod health;
pub mod keys;
pub mod metrics;
mod peek;
mod retry;
pub mod routes;
mod rules;
mod serve;
pub mod settings;
pub mod table;
pub mod tls;
mod upstream;

pub use error::GatewayError;
pub use routes::Routes;
pub use serve::Gateway;
pub use settings::Settings;
pub use table::{Instance, Rule, Table, UpstreamState};
