//! Whether an engine is ready, asked at its own health endpoint.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;

/// An engine that doesn't answer for this long is not well.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What an engine's health endpoint says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It serves.
    Ready,
    /// It answers, but doesn't serve yet.
    Loading,
    /// Nothing listens there yet.
    Unreachable,
    /// Something listens and doesn't answer in time, or answers nonsense.
    Silent,
}

/// Asks `GET /health` on a loopback port: 200 is ready, 503 is loading (llama-server b10434, vLLM).
pub async fn ask(port: u16) -> Health {
    ask_at(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), "/health").await
}

/// The same of a server anywhere, at a path of its own.
pub async fn ask_at(address: SocketAddr, path: &'static str) -> Health {
    let Ok(Ok(stream)) = tokio::time::timeout(TIMEOUT, TcpStream::connect(address)).await else {
        return Health::Unreachable;
    };
    match tokio::time::timeout(TIMEOUT, get(stream, path)).await {
        Ok(Ok(StatusCode::OK)) => Health::Ready,
        Ok(Ok(StatusCode::SERVICE_UNAVAILABLE)) => Health::Loading,
        Ok(_) | Err(_) => Health::Silent,
    }
}

/// A first token of a large model on a busy processor may take this long.
const PROBE_TIMEOUT: Duration = Duration::from_secs(120);

/// Whether a server answers a request for one token: anything but an error of the server's own, since
/// a model that writes no text may say so.
pub async fn probe(address: SocketAddr, model: &str) -> bool {
    let body = json!({ "model": model, "prompt": "1", "max_tokens": 1 }).to_string();
    let request = Request::post("/v1/completions")
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .expect("a constant request is valid");
    let asking = async {
        let stream = TcpStream::connect(address).await.ok()?;
        send(stream, request, async |_| ()).await.ok()
    };
    let answer = tokio::time::timeout(PROBE_TIMEOUT, asking).await.ok().flatten();
    let is_its_own_error =
        |status: StatusCode| status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED;
    answer.is_some_and(|(status, ())| !is_its_own_error(status))
}

/// A page longer than this is none of an engine's.
const MOST_PAGE: usize = 4 << 20;

/// Whether vLLM sleeps; none where it doesn't say.
pub async fn is_asleep(address: SocketAddr) -> Option<bool> {
    let said: serde_json::Value =
        serde_json::from_str(&page(address, "/is_sleeping").await?).ok()?;
    said["is_sleeping"].as_bool()
}

/// What a server has at a path, as text; none where it doesn't answer with 200 in time.
pub(crate) async fn page(address: SocketAddr, path: &'static str) -> Option<String> {
    let stream = tokio::time::timeout(TIMEOUT, TcpStream::connect(address)).await.ok()?.ok()?;
    let asking = exchange(stream, path, async |answer| {
        let body = Limited::new(answer.into_body(), MOST_PAGE).collect().await.ok()?;
        Some(String::from_utf8_lossy(&body.to_bytes()).into_owned())
    });
    let (status, text) = tokio::time::timeout(TIMEOUT, asking).await.ok()?.ok()?;
    text.filter(|_| status == StatusCode::OK)
}

async fn get(stream: TcpStream, path: &'static str) -> hyper::Result<StatusCode> {
    exchange(stream, path, async |_| ()).await.map(|(status, ())| status)
}

/// One request on a connection, and what is made of its answer while that is open.
async fn exchange<T>(
    stream: TcpStream,
    path: &'static str,
    take: impl AsyncFnOnce(Response<Incoming>) -> T,
) -> hyper::Result<(StatusCode, T)> {
    let request = Request::get(path)
        .header("host", "localhost")
        .body(Empty::<Bytes>::new())
        .expect("a constant request is valid");
    send(stream, request, take).await
}

async fn send<T, B>(
    stream: TcpStream,
    request: Request<B>,
    take: impl AsyncFnOnce(Response<Incoming>) -> T,
) -> hyper::Result<(StatusCode, T)>
where
    B: Body<Data = Bytes, Error = Infallible> + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Moved in, so that the connection ends once there is an answer.
    let answer = async move {
        let answer = sender.send_request(request).await?;
        Ok((answer.status(), take(answer).await))
    };
    let (answer, _closed) = tokio::join!(answer, connection);
    answer
}
