//! One request: which endpoint, which model, which instance.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;
use tokio::sync::watch;

use crate::error::GatewayError;
use crate::forward::{self, Held, Pool};
use crate::metrics::{Metrics, Model, Outcome};
use crate::peek;
use crate::routes::{Routes, Upstream, UpstreamState};

/// What is sent to the client.
pub(crate) type Answer = Response<BoxBody<Bytes, hyper::Error>>;

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) routes: ArcSwap<Routes>,
    pub(crate) metrics: Metrics,
    pub(crate) pool: Pool,
    pub(crate) max_body: u64,
    pub(crate) draining: watch::Sender<bool>,
}

const JSON: &str = "application/json";
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// A body has to be here after this long.
const BODY_LIMIT: Duration = Duration::from_secs(60);
/// Model and outcome of requests that never got as far as a model.
const NO_MODEL: &str = "";

/// Answers one request.
pub(crate) async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> Answer {
    match (request.method(), request.uri().path()) {
        (
            &Method::POST,
            "/v1/chat/completions" | "/v1/completions" | "/v1/embeddings" | "/v1/responses",
        ) => forwarded(&shared, request).await,
        (&Method::GET, "/v1/models") => text(StatusCode::OK, JSON, models(&shared.routes.load())),
        (&Method::GET, "/health") => text(StatusCode::OK, JSON, r#"{"status":"ok"}"#.to_owned()),
        (&Method::GET, "/ready") => ready(&shared),
        (&Method::GET, "/metrics") => text(StatusCode::OK, METRICS, shared.metrics.encode()),
        (method, path) => {
            let error =
                GatewayError::NoEndpoint { method: method.to_string(), path: path.to_owned() };
            refuse(&shared, NO_MODEL, &error)
        }
    }
}

async fn forwarded(shared: &Shared, request: Request<Incoming>) -> Answer {
    let arrived = Instant::now();
    let (head, body) = request.into_parts();
    let body = match collect(body, shared.max_body).await {
        Ok(body) => body,
        Err(error) => return refuse(shared, NO_MODEL, &error),
    };
    let model = match peek::model(&body) {
        Ok(model) => model.into_owned(),
        Err(error) => return refuse(shared, NO_MODEL, &error),
    };
    let upstream = match choose(&shared.routes.load(), &model) {
        Ok(upstream) => upstream,
        Err(error @ GatewayError::UnknownModel { .. }) => return refuse(shared, NO_MODEL, &error),
        Err(error) => return refuse(shared, &model, &error),
    };
    let label = Model { model: model.clone() };
    let gauge = InFlight::new(shared.metrics.in_flight.get_or_create(&label).clone());
    let body = match &upstream.name {
        Some(name) => peek::renamed(&body, name),
        None => body,
    };
    match forward::send(&shared.pool, &upstream, &head, body).await {
        Ok(response) => {
            let waited = arrived.elapsed().as_secs_f64();
            shared.metrics.first_byte_seconds.get_or_create(&label).observe(waited);
            count(shared, &model, outcome(response.status()));
            response.map(|body| Held::new(body, gauge).boxed())
        }
        Err(error) => {
            tracing::warn!(instance = %upstream.id, %error, "instance could not be reached");
            refuse(shared, &model, &GatewayError::Unreachable { model: model.clone() })
        }
    }
}

async fn collect(body: Incoming, limit: u64) -> Result<Bytes, GatewayError> {
    if body.size_hint().lower() > limit {
        return Err(GatewayError::TooLarge { limit });
    }
    let limited = Limited::new(body, usize::try_from(limit).unwrap_or(usize::MAX));
    let collected = tokio::time::timeout(BODY_LIMIT, limited.collect()).await;
    match collected.map_err(|_| GatewayError::BodySlow)? {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(GatewayError::TooLarge { limit }),
        Err(_) => Err(GatewayError::BodyBroken),
    }
}

/// The instance of a model that has the least to do.
fn choose(routes: &Routes, model: &str) -> Result<Arc<Upstream>, GatewayError> {
    let upstreams = routes.model(model).ok_or_else(|| GatewayError::UnknownModel {
        model: model.to_owned(),
        known: routes.names(),
    })?;
    let ready = upstreams.iter().filter(|upstream| upstream.is_ready());
    ready.min_by_key(|upstream| upstream.in_flight()).cloned().ok_or_else(|| {
        let any = |state| upstreams.iter().any(|upstream| upstream.state == state);
        let reason = match () {
            () if any(UpstreamState::Starting) => "it is starting",
            () if any(UpstreamState::Failed) => "its engine failed; `berth status` says why",
            () => "it is being stopped",
        };
        GatewayError::NotReady { model: model.to_owned(), reason }
    })
}

fn models(routes: &Routes) -> String {
    let data: Vec<_> = routes
        .names()
        .into_iter()
        .map(|id| json!({ "id": id, "object": "model", "created": 0, "owned_by": "berth" }))
        .collect();
    json!({ "object": "list", "data": data }).to_string()
}

/// 200 once every model has an instance that takes requests, and until draining starts.
fn ready(shared: &Shared) -> Answer {
    let routes = shared.routes.load();
    let draining = *shared.draining.borrow();
    let ok = routes.is_ready() && !draining;
    let models: serde_json::Map<_, _> = routes
        .names()
        .into_iter()
        .map(|name| {
            let ready = routes.serves(&name);
            (name, ready.into())
        })
        .collect();
    let body = json!({ "ready": ok, "draining": draining, "models": models }).to_string();
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    text(status, JSON, body)
}

fn refuse(shared: &Shared, model: &str, error: &GatewayError) -> Answer {
    count(shared, model, error.code());
    let mut answer = text(error.status(), JSON, error.body());
    if let Some(seconds) = error.retry_after() {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    answer
}

fn text(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

fn outcome(status: StatusCode) -> &'static str {
    match status.as_u16() {
        200..300 => "ok",
        400..500 => "client_error",
        _ => "engine_error",
    }
}

fn count(shared: &Shared, model: &str, outcome: &'static str) {
    shared.metrics.requests.get_or_create(&Outcome { model: model.to_owned(), outcome }).inc();
}

/// Raises a gauge until it is dropped.
struct InFlight(prometheus_client::metrics::gauge::Gauge);

impl InFlight {
    fn new(gauge: prometheus_client::metrics::gauge::Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}
