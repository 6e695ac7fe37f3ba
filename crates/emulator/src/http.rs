//! A small server: a function from requests to answers, behind a socket that can be closed.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

/// What every answer carries.
const MARK: &str = "x-berth-emulated";

/// A request, read.
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) body: Bytes,
}

impl Asked {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// An answer.
pub(crate) enum Answer {
    /// All at once.
    Whole { status: u16, kind: &'static str, body: Bytes },
    /// As it comes; it breaks off where the sender sends an error.
    Stream { kind: &'static str, chunks: mpsc::Receiver<Result<Bytes, io::Error>> },
    /// The connection is closed without one.
    Nothing,
}

impl Answer {
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        let body = Bytes::from(body.to_string());
        Self::Whole { status, kind: "application/json", body }
    }

    pub(crate) fn text(status: u16, text: impl Into<String>) -> Self {
        Self::Whole { status, kind: "text/plain", body: Bytes::from(text.into()) }
    }
}

/// What answers requests.
pub(crate) trait Answers: Send + Sync + 'static {
    fn answer(&self, asked: Asked) -> impl Future<Output = Answer> + Send;
}

/// A server; it ends, with all its connections, when it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    task: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens at an address.
pub(crate) async fn serve(address: SocketAddr, handler: Arc<impl Answers>) -> io::Result<Server> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            drop(stream.set_nodelay(true));
            let handler = Arc::clone(&handler);
            connections.spawn(async move {
                let service = service_fn(|request| handle(Arc::clone(&handler), request));
                let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                drop(served.await);
            });
            while connections.try_join_next().is_some() {}
        }
    });
    Ok(Server { address, task: task.abort_handle() })
}

async fn handle(
    handler: Arc<impl Answers>,
    request: Request<Incoming>,
) -> Result<Response<Chunks>, io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let (status, kind, chunks) =
        match handler.answer(Asked { method: head.method, path, body }).await {
            Answer::Whole { status, kind, body } => (status, kind, Chunks::Whole(Some(body))),
            Answer::Stream { kind, chunks } => (200, kind, Chunks::Stream(chunks)),
            Answer::Nothing => return Err(io::ErrorKind::ConnectionReset.into()),
        };
    let response = Response::builder().status(status).header("content-type", kind);
    response.header(MARK, "true").body(chunks).map_err(io::Error::other)
}

enum Chunks {
    Whole(Option<Bytes>),
    Stream(mpsc::Receiver<Result<Bytes, io::Error>>),
}

impl Body for Chunks {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match &mut *self {
            Self::Whole(body) => Poll::Ready(body.take().map(|body| Ok(Frame::data(body)))),
            Self::Stream(chunks) => {
                chunks.poll_recv(context).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
            }
        }
    }
}
