//! Spans by OTLP over HTTP, sent in batches by a thread of their own.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use hyper::http::request::Parts;
use hyper::{Request, Response};
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{
    SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HeaderExtractor, HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use super::{SpansError, Told};

/// A collector that takes longer has lost a batch.
const SEND_LIMIT: Duration = Duration::from_secs(10);

/// Where spans go.
#[derive(Clone, Debug)]
pub struct Spans(Option<Kept>);

#[derive(Clone, Debug)]
struct Kept {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Spans {
    /// Nowhere.
    pub fn none() -> Self {
        Self(None)
    }

    /// To the collector that `OTEL_EXPORTER_OTLP_ENDPOINT` names, and nowhere where none is named. OpenTelemetry's
    /// other variables hold, too (`OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`...).
    ///
    /// # Errors
    /// Where what they say can't be used.
    pub fn by_environment() -> Result<Self, SpansError> {
        match super::is_wanted() {
            true => Self::to(None),
            false => Ok(Self(None)),
        }
    }

    /// To a collector: `http://HOST:PORT/v1/traces`, or where the environment says.
    ///
    /// # Errors
    /// Where that is no address.
    pub fn to(collector: Option<&str>) -> Result<Self, SpansError> {
        let agent = ureq::Agent::config_builder().timeout_global(Some(SEND_LIMIT)).build();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Sender(agent.into()))
            .with_protocol(Protocol::HttpBinary);
        let exporter = match collector {
            Some(address) => exporter.with_endpoint(address),
            None => exporter,
        };
        let exporter = exporter.build().map_err(|error| SpansError(error.to_string()))?;
        let resource = match std::env::var_os("OTEL_SERVICE_NAME") {
            Some(_) => Resource::builder(),
            None => Resource::builder().with_service_name("berth-gateway"),
        };
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        let tracer = provider.tracer("berth");
        Ok(Self(Some(Kept { provider, tracer })))
    }

    /// Sends what has not been sent yet.
    pub fn flush(&self) {
        if let Some(Err(error)) = self.0.as_ref().map(|kept| kept.provider.force_flush()) {
            tracing::warn!(%error, "spans could not be sent");
        }
    }

    /// The span of a request that has just arrived.
    pub(crate) fn begin(&self, head: &Parts) -> Span {
        let Some(Kept { tracer, .. }) = &self.0 else { return Span(None) };
        let propagator = TraceContextPropagator::new();
        let parent =
            propagator.extract_with_context(&Context::new(), &HeaderExtractor(&head.headers));
        let method = KeyValue::new("http.request.method", head.method.to_string());
        let path = KeyValue::new("url.path", head.uri.path().to_owned());
        let span = tracer
            .span_builder(format!("{} {}", head.method, head.uri.path()))
            .with_kind(SpanKind::Server)
            .with_start_time(SystemTime::now())
            .with_attributes([method, path])
            .start_with_context(tracer, &parent);
        let context = parent.with_span(span);
        let mut said = std::collections::HashMap::new();
        propagator.inject_context(&context, &mut said);
        Span(Some(Underway { context, traceparent: said.remove("traceparent") }))
    }
}

/// The span of a request.
pub(crate) struct Span(Option<Underway>);

struct Underway {
    context: Context,
    traceparent: Option<String>,
}

impl Span {
    /// What the engine is told.
    pub(crate) fn traceparent(&self) -> Option<&str> {
        self.0.as_ref()?.traceparent.as_deref()
    }

    /// The request is over. Names are those of OpenTelemetry's conventions for generative AI.
    pub(crate) fn end(&mut self, told: &Told<'_>) {
        let Some(Underway { context, .. }) = self.0.take() else { return };
        let span = context.span();
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        span.set_attributes([
            KeyValue::new("gen_ai.request.model", told.model.to_owned()),
            KeyValue::new("gen_ai.usage.input_tokens", number(told.prompt_tokens)),
            KeyValue::new("gen_ai.usage.output_tokens", number(told.answer_tokens)),
            KeyValue::new("http.response.status_code", i64::from(told.status)),
            KeyValue::new("berth.instance", told.instance.to_owned()),
            KeyValue::new("berth.outcome", told.outcome),
        ]);
        if let Some(first) = told.first_byte {
            span.set_attribute(KeyValue::new(
                "gen_ai.server.time_to_first_token",
                first.as_secs_f64(),
            ));
        }
        if told.outcome != "ok" {
            span.set_status(Status::error(told.outcome));
        }
        span.end();
    }
}

/// Sends batches, from the exporter's own thread.
#[derive(Debug)]
struct Sender(ureq::Agent);

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (head, body) = request.into_parts();
        let answer = self.0.run(Request::from_parts(head, body.to_vec()))?;
        let (head, mut body) = answer.into_parts();
        Ok(Response::from_parts(head, Bytes::from(body.read_to_vec()?)))
    }
}
