//! What the page asks for, and what it has done.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::header::{CONTENT_TYPE, SET_COOKIE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use crate::Shared;
use crate::source::{Act, Read, Refusal};

const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";

pub(crate) fn routes() -> Router<Arc<Shared>> {
    let read =
        |what: Read| get(move |State(shared): State<Arc<Shared>>| answer(shared, what, JSON));
    Router::new()
        .route("/api/session", get(session).post(enter).delete(leave))
        .route("/api/plan", read(Read::Plan))
        .route("/api/strategies", read(Read::Strategies))
        .route("/api/ledger", read(Read::Ledger))
        .route("/api/changes", read(Read::Changes))
        .route("/api/proofs", read(Read::Proofs))
        .route("/proofs/{name}", get(report))
        .route("/api/apply", post(apply))
        .route("/api/advice", post(advice))
        .route("/api/rollback", post(roll_back))
}

async fn answer(shared: Arc<Shared>, what: Read, kind: &'static str) -> Response {
    let (source, permit) = (Arc::clone(&shared.source), permit(&shared).await);
    // It may read files, ask a cluster, or plan for seconds; it goes on when nobody waits for it any more.
    match tokio::task::spawn_blocking(move || with(permit, || source.read(&what))).await {
        Ok(Ok(text)) => ([(CONTENT_TYPE, kind)], text).into_response(),
        Ok(Err(refusal)) => refused(refusal),
        Err(_) => refused(broken()),
    }
}

async fn act(shared: Arc<Shared>, act: Act) -> Response {
    let (source, permit) = (Arc::clone(&shared.source), permit(&shared).await);
    match tokio::task::spawn_blocking(move || with(permit, || source.act(&act))).await {
        Ok(Ok(())) => (StatusCode::ACCEPTED, Json(json!({}))).into_response(),
        Ok(Err(refusal)) => refused(refusal),
        Err(_) => refused(broken()),
    }
}

/// Leave to work; none only where the server ends.
async fn permit(shared: &Shared) -> Option<OwnedSemaphorePermit> {
    Arc::clone(&shared.works).acquire_owned().await.ok()
}

fn with<T>(permit: Option<OwnedSemaphorePermit>, work: impl FnOnce() -> T) -> T {
    let done = work();
    drop(permit);
    done
}

pub(crate) fn refused(Refusal { status, error, hint }: Refusal) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, Json(json!({ "error": error, "hint": hint }))).into_response()
}

fn broken() -> Refusal {
    let hint = "berth's own log says what it was doing";
    Refusal { status: 500, error: "it broke off".to_owned(), hint: Some(hint.to_owned()) }
}

async fn session(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Json<Value> {
    let sessions = &shared.sessions;
    Json(json!({
        "needs_password": sessions.needs_password(),
        "is_in": sessions.is_in(&headers),
        "version": shared.settings.version,
    }))
}

#[derive(Deserialize)]
struct Password {
    password: String,
}

async fn enter(
    State(shared): State<Arc<Shared>>,
    Json(Password { password }): Json<Password>,
) -> Response {
    match shared.sessions.enter(&password).await.and_then(|cookie| cookie.parse().ok()) {
        Some(cookie) => with_cookie(cookie),
        None => refused(Refusal {
            status: StatusCode::UNAUTHORIZED.as_u16(),
            error: "it is another password".to_owned(),
            hint: Some("it is in the file that --dashboard-password names".to_owned()),
        }),
    }
}

async fn leave(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let gone = shared.sessions.leave(&headers);
    with_cookie(gone.parse().unwrap_or(HeaderValue::from_static("")))
}

fn with_cookie(cookie: HeaderValue) -> Response {
    (StatusCode::NO_CONTENT, [(SET_COOKIE, cookie)]).into_response()
}

async fn report(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Response {
    answer(shared, Read::Proof(name), HTML).await
}

#[derive(Deserialize)]
struct Apply {
    strategy: Option<String>,
    spec: Option<String>,
}

async fn apply(State(shared): State<Arc<Shared>>, Json(asked): Json<Apply>) -> Response {
    act(shared, Act::Apply { strategy: asked.strategy, spec: asked.spec }).await
}

#[derive(Deserialize)]
struct Advice {
    digest: Option<String>,
    approve: bool,
}

async fn advice(State(shared): State<Arc<Shared>>, Json(asked): Json<Advice>) -> Response {
    let Advice { digest, approve } = asked;
    act(shared, Act::Advice { digest, approve }).await
}

#[derive(Deserialize)]
struct RollBack {
    seq: i64,
}

async fn roll_back(State(shared): State<Arc<Shared>>, Json(asked): Json<RollBack>) -> Response {
    act(shared, Act::RollBack { seq: asked.seq }).await
}
