//! No spans: berth was built without the feature `otel`.

use hyper::http::request::Parts;

use super::{SpansError, Told};

/// Where spans go: nowhere.
#[derive(Clone, Debug)]
pub struct Spans;

impl Spans {
    /// Nowhere.
    pub fn none() -> Self {
        Self
    }

    /// Nowhere, which is told where `OTEL_EXPORTER_OTLP_ENDPOINT` names a collector.
    ///
    /// # Errors
    /// None: with the feature there are some.
    pub fn by_environment() -> Result<Self, SpansError> {
        if super::is_wanted() {
            tracing::warn!("spans are wanted, and this berth was built without the feature `otel`");
        }
        Ok(Self)
    }

    pub(crate) fn begin(&self, _: &Parts) -> Span {
        Span
    }
}

/// The span of a request: none.
pub(crate) struct Span;

impl Span {
    pub(crate) fn traceparent(&self) -> Option<&str> {
        None
    }

    pub(crate) fn end(&mut self, _: &Told<'_>) {}
}
