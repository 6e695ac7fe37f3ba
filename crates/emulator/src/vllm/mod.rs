//! vLLM, emulated: its start by the memory model, its answers at the pace of the model of speed.
//!
//! - [`start`]: the start: its log, and how it ends where there is no room
//! - `api`: its HTTP

mod api;
pub mod start;

/// Serves an engine's HTTP at an address.
///
/// # Errors
/// Where somebody else listens there.
pub(crate) async fn serve(
    address: std::net::SocketAddr,
    engine: std::sync::Arc<crate::engine::Engine>,
) -> std::io::Result<crate::http::Server> {
    crate::http::serve(address, std::sync::Arc::new(api::Api(engine))).await
}
