//! Who may ask, and what a browser is told to keep to.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{
    CONTENT_SECURITY_POLICY, HOST, HeaderName, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use crate::Shared;
use crate::api::refused;
use crate::source::Refusal;

/// Only what this server has, and nothing written into the page.
const POLICY: &str = "default-src 'self'; img-src 'self' data:; style-src 'self'; script-src 'self'; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
/// A report is a page with its style within, and without scripts.
const REPORT_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'";
/// A form of another site can't send it.
const OWN: HeaderName = HeaderName::from_static("x-berth");

pub(crate) async fn guard(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    let is_report = request.uri().path().starts_with("/proofs/");
    let mut response = match refusal(&shared, &request) {
        Some(refusal) => refused(refusal),
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    let policy = if is_report { REPORT_POLICY } else { POLICY };
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response.into_response()
}

/// Why a request is not answered.
fn refusal(shared: &Shared, request: &Request) -> Option<Refusal> {
    let (headers, path) = (request.headers(), request.uri().path());
    let refuse = |status: StatusCode, error: &str, hint: &str| {
        let (error, hint) = (error.to_owned(), Some(hint.to_owned()));
        Some(Refusal { status: status.as_u16(), error, hint })
    };
    // A page elsewhere whose name leads here asks under that name.
    if !shared.sessions.needs_password() && !names_this_machine(headers) {
        let hint =
            "open it as http://127.0.0.1:PORT or http://localhost:PORT, or give it a password";
        return refuse(
            StatusCode::FORBIDDEN,
            "it is asked for under a name that isn't this machine's",
            hint,
        );
    }
    // Nor may it have work done by asking for pictures that are none.
    let site = headers.get("sec-fetch-site").and_then(|value| value.to_str().ok());
    if is_guarded(path) && matches!(site, Some("cross-site" | "same-site")) {
        return refuse(
            StatusCode::FORBIDDEN,
            "another site may not ask that",
            "open the page itself",
        );
    }
    if request.method() != Method::GET && !headers.contains_key(&OWN) {
        return refuse(
            StatusCode::FORBIDDEN,
            "another site may not do this",
            "send the header `x-berth: 1`",
        );
    }
    let is_open = path == "/api/session" || !is_guarded(path);
    if !is_open && !shared.sessions.is_in(headers) {
        return refuse(StatusCode::UNAUTHORIZED, "it has a password", "log in at the page first");
    }
    None
}

/// The page itself has no secrets: what it shows comes from these.
fn is_guarded(path: &str) -> bool {
    ["/api/", "/proofs/", "/v1/"].iter().any(|start| path.starts_with(start))
}

fn names_this_machine(headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((name, _)) => name,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let is_loopback =
        |name: &str| name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    name.eq_ignore_ascii_case("localhost") || is_loopback(name)
}
