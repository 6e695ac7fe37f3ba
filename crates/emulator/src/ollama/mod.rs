//! Ollama, emulated (routes and answers of fb30760, August 2026): a library that models are pulled from, one model
//! in memory until its time is up, and the answers of an engine behind it.
//!
//! - `library`: what can be pulled, what is there, what is loaded
//! - `api`: its HTTP
//! - `when`: durations and times as Ollama writes them

mod api;
mod library;
mod when;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

pub use library::{Environment, Model, Ollama, Pulled};

use crate::http::Server;

/// A server that listens; it ends when it is dropped.
#[derive(Debug)]
pub struct Running(Server);

impl Running {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }
}

/// Serves Ollama's HTTP at an address.
///
/// # Errors
/// Where somebody else listens there.
pub async fn serve(address: SocketAddr, ollama: Arc<Ollama>) -> io::Result<Running> {
    Ok(Running(crate::http::serve(address, Arc::new(api::Api(ollama))).await?))
}
