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

    /// To the collector that `OTEL_EXPORTER_OTLP_ENDPOINT` names.
    ///
    /// # Errors
    /// Where one is named.
    pub fn by_environment() -> Result<Self, SpansError> {
        let names = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
        match names.into_iter().find(|name| std::env::var_os(name).is_some()) {
            None => Ok(Self),
            Some(name) => Err(SpansError(format!(
                "{name} is set, and this berth was built without the feature `otel`"
            ))),
        }
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
