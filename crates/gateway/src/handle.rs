//! One request: which endpoint, which model, which instance.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode, http};
use serde_json::json;
use tokio::sync::watch;

use crate::error::GatewayError;
use crate::forward::{self, Held, Pool};
use crate::metrics::{Metrics, Model, Outcome};
use crate::peek;
use crate::routes::{Routes, Ticket, Upstream, UpstreamState};

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
/// Further instances that a request is sent to, where one takes no connection.
const MOST_TRIES: usize = 2;
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
    // Only models that there are become labels.
    if let Err(error) = known(&shared.routes.load(), &model) {
        return refuse(shared, NO_MODEL, &error);
    }
    let label = Model { model: model.clone() };
    let gauge = InFlight::new(shared.metrics.in_flight.get_or_create(&label).clone());
    match send(shared, &model, &head, &body).await {
        Ok(response) => {
            let waited = arrived.elapsed().as_secs_f64();
            shared.metrics.first_byte_seconds.get_or_create(&label).observe(waited);
            count(shared, &model, outcome(response.status()));
            response.map(|body| Held::new(body, gauge).boxed())
        }
        Err(error) => refuse(shared, &model, &error),
    }
}

/// Sends a request to the instance that has the least to do. One that takes no connection has seen nothing of
/// it: the request goes to another.
async fn send(
    shared: &Shared,
    model: &str,
    head: &http::request::Parts,
    body: &Bytes,
) -> Result<Response<Held<Incoming, Ticket>>, GatewayError> {
    let mut tried: Vec<String> = Vec::new();
    loop {
        let upstream = match choose(&shared.routes.load(), model, &tried) {
            Ok(upstream) => upstream,
            Err(_) if !tried.is_empty() => {
                return Err(GatewayError::Unreachable { model: model.to_owned() });
            }
            Err(error) => return Err(error),
        };
        let body = match &upstream.name {
            Some(name) => peek::renamed(body, name),
            None => body.clone(),
        };
        match forward::send(&shared.pool, &upstream, head, body).await {
            Ok(response) => return Ok(response),
            Err(error) => {
                tracing::warn!(instance = %upstream.id, %error, "instance could not be reached");
                upstream.put_out();
                if !error.is_connect() || tried.len() >= MOST_TRIES {
                    return Err(GatewayError::Unreachable { model: model.to_owned() });
                }
                tried.push(upstream.id.clone());
            }
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

fn known<'a>(routes: &'a Routes, model: &str) -> Result<&'a [Arc<Upstream>], GatewayError> {
    routes.model(model).ok_or_else(|| GatewayError::UnknownModel {
        model: model.to_owned(),
        known: routes.names(),
    })
}

/// The instance of a model that has the least to do, of those that were not tried; one that could not be
/// reached just now only where there is no other.
fn choose(routes: &Routes, model: &str, tried: &[String]) -> Result<Arc<Upstream>, GatewayError> {
    let upstreams = known(routes, model)?;
    let ready = upstreams.iter().filter(|one| one.is_ready() && !tried.contains(&one.id));
    let order = |one: &&Arc<Upstream>| (one.is_out(), one.in_flight());
    ready.min_by_key(order).cloned().ok_or_else(|| {
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
