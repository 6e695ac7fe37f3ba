//! To the instance and back.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, TRANSFER_ENCODING};
use hyper::{Request, Response, Uri, http};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::TokioExecutor;

use crate::routes::{Ticket, Upstream};

/// Connections to engines, kept and used again.
pub(crate) type Pool = Client<HttpConnector, Full<Bytes>>;

pub(crate) fn pool() -> Pool {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(std::time::Duration::from_secs(5)));
    Client::builder(TokioExecutor::new()).pool_max_idle_per_host(256).build(connector)
}

/// Sends the request to an instance. Dropping the future, or the body of its answer, closes the
/// connection, by which the engine knows that nobody waits any more.
pub(crate) async fn send(
    pool: &Pool,
    upstream: &Upstream,
    head: &http::request::Parts,
    body: Bytes,
) -> Result<Response<Held<Incoming, Ticket>>, Error> {
    let ticket = upstream.ticket();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let uri = Uri::builder().scheme("http").authority(upstream.address.to_string());
    let uri = uri.path_and_query(path).build().expect("an address and a valid path");
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = end_to_end(&head.headers);
    let (mut head, body) = pool.request(request).await?.into_parts();
    head.headers = end_to_end(&head.headers);
    Ok(Response::from_parts(head, Held::new(body, ticket)))
}

/// Headers that only concern one of the two connections.
const HOP_BY_HOP: &[&str] =
    &["keep-alive", "proxy-connection", "te", "trailer", "upgrade", "expect"];

/// The headers that pass. Length and encoding of the body are set anew where it is sent.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let mut passed = headers.clone();
    let named: Vec<String> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(|name| name.trim().to_owned()))
        .collect();
    for name in named.iter().map(String::as_str).chain(HOP_BY_HOP.iter().copied()) {
        passed.remove(name);
    }
    for name in [CONNECTION, TRANSFER_ENCODING, HOST, CONTENT_LENGTH] {
        passed.remove(name);
    }
    passed
}

/// A body that keeps something alive until its end.
pub(crate) struct Held<B, G> {
    body: B,
    _guard: G,
}

impl<B, G> Held<B, G> {
    pub(crate) fn new(body: B, guard: G) -> Self {
        Self { body, _guard: guard }
    }
}

impl<B: Body + Unpin, G: Unpin> Body for Held<B, G> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
