//! One request: which endpoint, which model, which instance.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode};
use serde_json::json;

use crate::endpoint::Endpoint;
use crate::error::GatewayError;
use crate::flight::{Flight, Underway};
use crate::forward::{self, Asked};
use crate::keys::Allowed;
use crate::routing::routes::Routes;
use crate::routing::rules;
use crate::shared::Shared;
use crate::upstream::pool::Pool;
use crate::upstream::relay::Relay;

/// What is sent to the client.
pub(crate) type Answer = Response<AnswerBody>;

/// A body: the gateway's own words, or an engine's.
pub(crate) enum AnswerBody {
    Own(Option<Bytes>),
    Engine(Box<Relay<Flight>>),
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match &mut *self {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Engine(relay) => Pin::new(relay.as_mut()).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Engine(relay) => relay.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Engine(relay) => relay.size_hint(),
        }
    }
}

const JSON: &str = "application/json";
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// A body has to be here after this long.
const BODY_LIMIT: Duration = Duration::from_secs(60);
/// Model and outcome of requests that never got as far as a model.
const NO_MODEL: &str = "";

/// Answers one request.
pub(crate) async fn handle(shared: Arc<Shared>, pool: Pool, request: Request<Incoming>) -> Answer {
    let arrived = Instant::now();
    let is_http1 = request.version() <= hyper::Version::HTTP_11;
    let mut answer = match answered(&shared, pool, request, arrived).await {
        Ok(answer) => answer,
        Err(error) => refuse(&shared, &error, arrived),
    };
    if is_http1 && shared.is_draining() {
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

async fn answered(
    shared: &Arc<Shared>,
    pool: Pool,
    request: Request<Incoming>,
    arrived: Instant,
) -> Result<Answer, GatewayError> {
    let (mut head, body) = request.into_parts();
    let rules = rules::of_head(&shared.routes.load().table.rules, &mut head);
    let path = head.uri.path();
    let endpoint = Endpoint::of(&head.method, path).ok_or_else(|| GatewayError::NoEndpoint {
        method: head.method.to_string(),
        path: path.to_owned(),
    })?;
    match endpoint {
        Endpoint::Json | Endpoint::Form => {
            let underway = Underway::new(shared);
            if shared.is_draining() {
                return Err(GatewayError::Draining);
            }
            // Nobody without a key has a body read.
            allowed(shared, &head)?;
            let body = collect(body, shared.settings.max_body).await?;
            let read = Instant::now();
            let asked = Asked { head: &head, body, endpoint, rules, arrived, read };
            forward::forward(shared, &pool, &asked, underway).await
        }
        Endpoint::Models => {
            let allowed = allowed(shared, &head)?;
            Ok(text(StatusCode::OK, JSON, models(&shared.routes.load(), &allowed)))
        }
        Endpoint::Tags => {
            let allowed = allowed(shared, &head)?;
            Ok(text(StatusCode::OK, JSON, tags(&shared.routes.load(), &allowed)))
        }
        Endpoint::Health => Ok(text(StatusCode::OK, JSON, r#"{"status":"ok"}"#.to_owned())),
        Endpoint::Ready => Ok(ready(shared)),
        Endpoint::Metrics => {
            allowed(shared, &head)?;
            Ok(text(StatusCode::OK, METRICS, shared.metrics.encode(&shared.routes.load())))
        }
    }
}

/// The models that whoever asks may use. Where keys are wanted, those without one are told nothing.
pub(crate) fn allowed(shared: &Shared, head: &Parts) -> Result<Allowed, GatewayError> {
    match &**shared.keys.load() {
        Some(keys) => keys.allowed(secret(&head.headers)),
        None => Ok(Allowed::default()),
    }
}

/// The key that a request shows: OpenAI's way, or Anthropic's.
pub(crate) fn secret(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| {
        let (scheme, secret) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim())
    });
    bearer.or_else(|| headers.get("x-api-key").and_then(|value| value.to_str().ok()))
}

/// The whole body; without a copy where it came in one piece.
async fn collect(mut body: Incoming, limit: u64) -> Result<Bytes, GatewayError> {
    if body.size_hint().lower() > limit {
        return Err(GatewayError::TooLarge { limit });
    }
    let expected = usize::try_from(body.size_hint().exact().unwrap_or(0)).unwrap_or(0);
    let collecting = async {
        let (mut first, mut all) = (Bytes::new(), BytesMut::new());
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| GatewayError::BodyBroken)?.into_data() else {
                continue;
            };
            if (first.len() + all.len() + data.len()) as u64 > limit {
                return Err(GatewayError::TooLarge { limit });
            }
            if first.is_empty() && all.is_empty() {
                first = data;
                continue;
            }
            if all.is_empty() {
                all.reserve(expected.max(2 * first.len()));
                all.extend_from_slice(&std::mem::take(&mut first));
            }
            all.extend_from_slice(&data);
        }
        Ok(if all.is_empty() { first } else { all.freeze() })
    };
    tokio::time::timeout(BODY_LIMIT, collecting).await.map_err(|_| GatewayError::BodySlow)?
}

fn models(routes: &Routes, allowed: &Allowed) -> String {
    let one = |id| json!({ "id": id, "object": "model", "created": 0, "owned_by": "berth" });
    let data: Vec<_> = routes.names_for(allowed).into_iter().map(one).collect();
    json!({ "object": "list", "data": data }).to_string()
}

fn tags(routes: &Routes, allowed: &Allowed) -> String {
    let one = |name: String| json!({ "name": name, "model": name, "size": 0, "digest": "", "details": {} });
    let models: Vec<_> = routes.names_for(allowed).into_iter().map(one).collect();
    json!({ "models": models }).to_string()
}

/// 200 once every model has an instance that takes requests, and until draining starts.
fn ready(shared: &Shared) -> Answer {
    let routes = shared.routes.load();
    let draining = shared.is_draining();
    let ok = routes.is_ready() && !draining;
    let one = |name: String| {
        let ready = routes.serves(&name);
        (name, ready.into())
    };
    let models: serde_json::Map<_, _> = routes.names().into_iter().map(one).collect();
    let body = json!({ "ready": ok, "draining": draining, "models": models }).to_string();
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    text(status, JSON, body)
}

/// What a client is told that is not answered. What got as far as a model is counted and logged with that.
fn refuse(shared: &Shared, error: &GatewayError, arrived: Instant) -> Answer {
    if !error.is_of_a_model() {
        shared.metrics.count(NO_MODEL, error.code());
    }
    if shared.settings.access_log && !error.is_of_a_flight() {
        let (status, ms) = (error.status().as_u16(), arrived.elapsed().as_millis());
        tracing::info!(target: "berth::access", outcome = error.code(), status, ms);
    }
    let mut answer = text(error.status(), JSON, error.body());
    if let Some(seconds) = error.retry_after() {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    answer
}

fn text(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let mut answer = Response::new(AnswerBody::Own(Some(Bytes::from(body))));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
