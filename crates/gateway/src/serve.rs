//! Connections, and draining at the end.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::forward;
use crate::handle::{Shared, handle};
use crate::metrics::Metrics;
use crate::routes::Routes;

/// A client that doesn't finish its headers in this time is let go.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// The gateway. Cheap to clone: all clones share routes, metrics and connections.
#[derive(Clone)]
pub struct Gateway {
    shared: Arc<Shared>,
}

impl Gateway {
    /// A gateway without routes that takes bodies of at most `max_body` bytes.
    pub fn new(max_body: u64) -> Self {
        Self {
            shared: Arc::new(Shared {
                routes: ArcSwap::default(),
                metrics: Metrics::default(),
                pool: forward::pool(),
                max_body,
                draining: watch::Sender::new(false),
            }),
        }
    }

    /// Replaces the routes. Requests in flight go on.
    pub fn set_routes(&self, routes: Routes) {
        self.shared.routes.store(Arc::new(routes));
    }

    /// The routes now.
    pub fn routes(&self) -> Arc<Routes> {
        self.shared.routes.load_full()
    }

    /// Ends [`Gateway::serve`] once what runs is answered.
    pub fn drain(&self) {
        self.shared.draining.send_replace(true);
    }

    /// Serves until [`Gateway::drain`], then finishes what runs, for at most `drain_limit`.
    ///
    /// # Errors
    /// Where the listener fails for good.
    pub async fn serve(&self, listener: TcpListener, drain_limit: Duration) -> io::Result<()> {
        let graceful = GracefulShutdown::new();
        let mut draining = self.shared.draining.subscribe();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = draining.wait_for(|draining| *draining) => break,
            };
            match accepted {
                Ok((stream, peer)) => self.connection(stream, peer, &graceful),
                // Out of file descriptors, or the client is gone already: go on after a breath.
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        drop(listener);
        if tokio::time::timeout(drain_limit, graceful.shutdown()).await.is_err() {
            tracing::warn!("requests were still running when the time to drain was over");
        }
        Ok(())
    }

    fn connection(
        &self,
        stream: tokio::net::TcpStream,
        peer: SocketAddr,
        graceful: &GracefulShutdown,
    ) {
        // Small chunks of a stream leave at once.
        drop(stream.set_nodelay(true));
        let shared = Arc::clone(&self.shared);
        let service = service_fn(move |request| {
            let shared = Arc::clone(&shared);
            async move { Ok::<_, Infallible>(handle(shared, request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%peer, %error, "connection ended");
            }
        });
    }
}
