//! The cluster as a page that people leave open: what is planned and what is held, live; strategies, changes, proofs.
//!
//! - [`source`]: what the page shows and what it may have done, as whoever serves it says
//! - `page`: the files of the page, which are part of the program
//! - `guard`: who may ask: this machine, or whoever knows the password
//! - `session`: passwords and cookies
//! - `live`: what changes, as server-sent events
//! - `api`: what is asked for
//! - `chat`: a request to a model, passed on to the gateway
//!
//! It knows no other part of berth: JSON goes through it as it is.

mod api;
mod chat;
mod guard;
mod live;
mod page;
mod session;
pub mod source;

pub use source::{Act, Live, Read, Refusal, Source};

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use session::Sessions;

/// So much is read and done at once.
const WORKS: usize = 4;

/// How it is served.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What a person has to know; without it only this machine is answered.
    pub password: Option<String>,
    /// Where the gateway listens, which answers what is asked of models.
    pub gateway: SocketAddr,
    /// berth's version.
    pub version: &'static str,
}

/// What every request can see.
struct Shared {
    source: Arc<dyn Source>,
    live: Live,
    sessions: Sessions,
    /// What is read and done beside the server: planning takes a processor.
    works: Arc<Semaphore>,
    settings: Settings,
}

/// Serves the page until the task is ended.
///
/// # Errors
/// Where the listener can't be used any more.
pub async fn serve(
    listener: TcpListener,
    settings: Settings,
    source: Arc<dyn Source>,
    live: Live,
) -> io::Result<()> {
    let works = Arc::new(Semaphore::new(WORKS));
    let sessions = Sessions::new(settings.password.as_deref());
    let shared = Arc::new(Shared { source, live, sessions, works, settings });
    let app = Router::new()
        .merge(api::routes())
        .route("/api/live", get(live::events))
        .route("/v1/chat/completions", axum::routing::post(chat::pass_on))
        .fallback(page::file)
        .layer(from_fn_with_state(Arc::clone(&shared), guard::guard))
        .with_state(shared);
    axum::serve(listener, app).await
}
