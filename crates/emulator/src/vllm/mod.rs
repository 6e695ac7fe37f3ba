//! vLLM, emulated: its start by the memory model, its answers at the pace of the model of speed.
//!
//! - [`start`]: the start: its log, and how it ends where there is no room
//! - `engine`: requests in a continuous batch over a cache of so many tokens
//! - `api`: its HTTP

mod api;
mod engine;
pub mod start;

pub use engine::{Ended, Engine, Pace};

/// Serves an engine's HTTP at an address.
///
/// # Errors
/// Where somebody else listens there.
pub(crate) async fn serve(
    address: std::net::SocketAddr,
    engine: std::sync::Arc<Engine>,
) -> std::io::Result<crate::http::Server> {
    crate::http::serve(address, std::sync::Arc::new(api::Api(engine))).await
}
