//! What doesn't change while the gateway runs.

use std::time::Duration;

use tokio_rustls::TlsAcceptor;

use crate::spans::Spans;

/// Limits, and what is told.
#[derive(Clone)]
pub struct Settings {
    /// Larger bodies are refused.
    pub max_body: u64,
    /// An engine that hasn't begun to answer after this long has got stuck.
    pub first_byte_limit: Duration,
    /// An engine that says nothing in the middle of an answer for this long has got stuck.
    pub idle_limit: Duration,
    /// No request waits longer for room.
    pub queue_limit: Duration,
    /// Whether each request gets a line in the log.
    pub access_log: bool,
    /// Threads that serve; as many as there are processors where it isn't said.
    pub workers: Option<usize>,
    /// Where spans of requests go.
    pub spans: Spans,
    /// What https is made with; plain http where there is none.
    pub tls: Option<TlsAcceptor>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_body: 64 << 20,
            first_byte_limit: Duration::from_secs(600),
            idle_limit: Duration::from_secs(300),
            queue_limit: Duration::from_secs(60),
            access_log: false,
            workers: None,
            spans: Spans::none(),
            tls: None,
        }
    }
}
