//! vLLM, emulated: its start by the memory model, its answers at the pace of the model of speed.
//!
//! - [`start`]: the start: its log, and how it ends where there is no room
//! - `api`: its HTTP

mod api;
pub mod start;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::engine::Engine;
use crate::http::Server;

/// A server that listens until it is dropped.
#[derive(Debug)]
pub struct Running(#[expect(dead_code, reason = "it is held")] Server);

/// Serves an engine's HTTP at an address.
///
/// # Errors
/// Where somebody else listens there.
pub async fn serve(address: SocketAddr, engine: Arc<Engine>) -> io::Result<Running> {
    Ok(Running(crate::http::serve(address, Arc::new(api::Api(engine))).await?))
}
