//! A request to a model, passed on to the gateway: the page may only talk to the server that it came from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse as _;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::Shared;
use crate::api::refused;
use crate::source::Refusal;

const PATH: &str = "/v1/chat/completions";

pub(crate) async fn pass_on(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    match passed(here(shared.settings.gateway), request).await {
        Ok(answer) => answer,
        Err(error) => refused(Refusal {
            status: StatusCode::BAD_GATEWAY.as_u16(),
            error: format!("the gateway does not answer: {error}"),
            hint: Some("with a certificate of its own it has to be asked directly".to_owned()),
        })
        .into_response(),
    }
}

async fn passed(
    gateway: SocketAddr,
    request: Request,
) -> Result<Response<Body>, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(gateway).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let (head, body) = request.into_parts();
    let mut asked = axum::http::Request::post(PATH).header(HOST, gateway.to_string());
    for name in [CONTENT_TYPE, CONTENT_LENGTH, AUTHORIZATION] {
        if let Some(value) = head.headers.get(&name) {
            asked = asked.header(name, value);
        }
    }
    let (head, body) = sender.send_request(asked.body(body)?).await?.into_parts();
    let mut answer = Response::new(Body::new(body));
    *answer.status_mut() = head.status;
    if let Some(kind) = head.headers.get(CONTENT_TYPE) {
        answer.headers_mut().insert(CONTENT_TYPE, kind.clone());
    }
    Ok(answer)
}

/// Where a gateway that listens everywhere is reached from its own machine.
fn here(gateway: SocketAddr) -> SocketAddr {
    let ip = match gateway.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, gateway.port())
}
