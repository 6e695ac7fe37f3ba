//! Spans of requests, for OpenTelemetry: made where berth is built with the feature `otel`, and nothing otherwise.
//!
//! The span of a request that got as far as a model lasts from its arrival to the last byte of its answer. Its parent
//! is the client's `traceparent`, and the engine is told the span as its own parent. What was asked and answered is in
//! none.

#[cfg(not(feature = "otel"))]
mod none;
#[cfg(feature = "otel")]
mod otel;

#[cfg(not(feature = "otel"))]
pub use none::Spans;
#[cfg(feature = "otel")]
pub use otel::Spans;

#[cfg(not(feature = "otel"))]
pub(crate) use none::Span;
#[cfg(feature = "otel")]
pub(crate) use otel::Span;

/// Whether the environment names a collector, and doesn't forbid it.
fn is_wanted() -> bool {
    let says = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let names = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
    let is_off = says("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    !is_off && names.into_iter().any(|name| says(name).is_some())
}

/// Why no spans can be sent.
#[derive(Debug, thiserror::Error)]
#[error("spans can't be sent: {0}")]
pub struct SpansError(pub String);

/// What a span says of its request.
#[cfg_attr(not(feature = "otel"), allow(dead_code, reason = "nobody is told"))]
pub(crate) struct Told<'a> {
    pub(crate) model: &'a str,
    pub(crate) instance: &'a str,
    pub(crate) outcome: &'static str,
    pub(crate) status: u16,
    pub(crate) prompt_tokens: u64,
    pub(crate) answer_tokens: u64,
    /// From its arrival to the first byte of the answer.
    pub(crate) first_byte: Option<std::time::Duration>,
}
