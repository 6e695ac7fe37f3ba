//! One connection to a server, driven by the task that waits for what comes on it: nothing that comes
//! has to be handed from one task to another.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::body::Pieces;
use crate::target::Target;

/// A connection.
pub(crate) struct Connection {
    sender: http1::SendRequest<Pieces>,
    driver: http1::Connection<TokioIo<TcpStream>, Pieces>,
    /// It has ended, and may not be driven any more.
    is_over: bool,
}

impl Connection {
    /// Opens one, at the first address that takes it.
    pub(crate) async fn open(target: &Target) -> io::Result<Self> {
        let stream = TcpStream::connect(&*target.addresses).await?;
        stream.set_nodelay(true)?;
        let (sender, driver) =
            http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        Ok(Self { sender, driver, is_over: false })
    }

    /// Sends a request, and waits for the head of its answer.
    pub(crate) async fn send(
        &mut self,
        request: Request<Pieces>,
    ) -> hyper::Result<Response<Incoming>> {
        let answer = self.sender.send_request(request);
        self.drive(std::pin::pin!(answer)).await
    }

    /// The next part of an answer; none at its end.
    pub(crate) async fn next(&mut self, body: &mut Incoming) -> Option<hyper::Result<Bytes>> {
        loop {
            match self.drive(Pin::new(&mut body.frame())).await? {
                Ok(frame) => match frame.into_data() {
                    Ok(data) => return Some(Ok(data)),
                    // Trailers say nothing of tokens.
                    Err(_) => continue,
                },
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Waits for something that comes on this connection.
    pub(crate) async fn drive<F: Future>(&mut self, mut wanted: Pin<&mut F>) -> F::Output {
        std::future::poll_fn(|context| {
            // First, so that what has come is there when it is asked for.
            self.advance(context);
            wanted.as_mut().poll(context)
        })
        .await
    }

    /// Whether it takes a request now: the last answer is read, and the server hasn't hung up.
    pub(crate) fn is_usable(&mut self, context: &mut Context<'_>) -> bool {
        self.advance(context);
        !self.is_over && matches!(self.sender.poll_ready(context), Poll::Ready(Ok(())))
    }

    fn advance(&mut self, context: &mut Context<'_>) {
        if !self.is_over {
            self.is_over = Pin::new(&mut self.driver).poll(context).is_ready();
        }
    }
}
