//! An answer's body on its way to the client.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::chunked::Chunked;
use super::connection::Connection;
use super::head::{AnswerHead, Framing};
use super::pool::Pool;

/// Told what became of an answer.
pub(crate) trait Witness {
    /// Bytes are on their way to the client.
    fn passed(&mut self, bytes: &Bytes);
    /// The body is complete, or why it isn't.
    fn ended(&mut self, how: Result<(), &io::Error>);
}

/// A body. Dropping it closes the connection, by which the engine knows that nobody waits any more; at its end the
/// connection is kept.
pub(crate) struct Relay<W: Witness> {
    connection: Option<Connection>,
    pool: Pool,
    rest: Rest,
    is_reusable: bool,
    /// What ends a stream of events that broke off; none in any other body.
    broken_event: Option<&'static [u8]>,
    idle: Idle,
    witness: W,
}

/// What is left of the body.
enum Rest {
    Length(u64),
    Chunked(Chunked),
    Close,
}

/// An engine that says nothing for too long has got stuck.
struct Idle {
    limit: Duration,
    heard: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl Idle {
    fn new(limit: Duration) -> Self {
        Self { limit, heard: Instant::now(), sleep: Box::pin(tokio::time::sleep(limit)) }
    }

    /// Ready once the limit has passed since something was heard. The timer is only set anew when it rings.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.sleep.as_mut().poll(context));
            if self.heard.elapsed() >= self.limit {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(self.heard + self.limit);
        }
    }
}

impl<W: Witness> Relay<W> {
    pub(crate) fn new(
        connection: Connection,
        head: &AnswerHead,
        pool: Pool,
        idle_limit: Duration,
        (broken_event, witness): (&'static [u8], W),
    ) -> Self {
        let rest = match head.framing {
            Framing::Length(length) => Rest::Length(length),
            Framing::Chunked => Rest::Chunked(Chunked::Size),
            Framing::Close => Rest::Close,
        };
        Self {
            connection: Some(connection),
            pool,
            rest,
            is_reusable: head.is_reusable,
            // Where a length was said there is no room for one more event.
            broken_event: Some(broken_event)
                .filter(|_| head.is_event_stream && !matches!(head.framing, Framing::Length(_))),
            idle: Idle::new(idle_limit),
            witness,
        }
    }

    fn is_complete(&self) -> bool {
        matches!(self.rest, Rest::Length(0) | Rest::Chunked(Chunked::Done))
    }

    /// What has arrived, as one piece; none at the end.
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            let Some(connection) = &mut self.connection else { return Poll::Ready(Ok(None)) };
            if !connection.read.is_empty() {
                let piece = self.rest.take(&mut connection.read)?;
                if !piece.is_empty() {
                    return Poll::Ready(Ok(Some(piece)));
                }
            }
            if self.is_complete() {
                return Poll::Ready(Ok(None));
            }
            let connection = self.connection.as_mut().expect("it is there");
            match self.pool.poll_read(connection, context) {
                Poll::Ready(Ok(0)) if matches!(self.rest, Rest::Close) => {
                    return Poll::Ready(Ok(None));
                }
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(Ok(_)) => self.idle.heard = Instant::now(),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    ready!(self.idle.poll(context));
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
        }
    }

    /// At the end the connection waits for the next request.
    fn end(&mut self) {
        if let Some(connection) = self.connection.take() {
            if self.is_reusable && connection.read.is_empty() {
                self.pool.give_back(connection);
            }
            self.witness.ended(Ok(()));
        }
    }

    /// What a client is told whose answer broke off: in a stream of events, an event that says so.
    fn broken(&mut self, error: io::Error) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.connection = None;
        self.witness.ended(Err(&error));
        Poll::Ready(Some(match self.broken_event {
            Some(event) => Ok(Frame::data(Bytes::from_static(event))),
            None => Err(error),
        }))
    }
}

/// The event that ends a stream of Anthropic's messages that broke off.
pub(crate) const BROKEN_MESSAGE: &[u8] =
    b"\n\nevent: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\
\"message\":\"the engine's answer broke off; try again\"}}\n\n";

/// The event that ends any other stream that broke off. The blank line before it ends an event that is not complete.
pub(crate) const BROKEN_EVENT: &[u8] =
    b"\n\ndata: {\"error\":{\"message\":\"the engine's answer broke off; try again\",\
\"type\":\"server_error\",\"param\":null,\"code\":\"upstream_broken\"}}\n\n";

impl Rest {
    /// The data of what was read.
    fn take(&mut self, read: &mut BytesMut) -> io::Result<Bytes> {
        match self {
            Self::Length(left) => {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(read.len());
                *left -= here as u64;
                Ok(read.split_to(here).freeze())
            }
            Self::Chunked(state) => {
                let mut out = BytesMut::with_capacity(read.len());
                state.decode(read, &mut out)?;
                Ok(out.freeze())
            }
            Self::Close => Ok(read.split().freeze()),
        }
    }
}

impl<W: Witness + Unpin> Body for Relay<W> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match ready!(self.poll_piece(context)) {
            Ok(Some(piece)) => {
                self.witness.passed(&piece);
                if self.is_complete() {
                    self.end();
                }
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            Ok(None) => {
                self.end();
                Poll::Ready(None)
            }
            Err(error) => self.broken(error),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.connection.is_none() || self.is_complete()
    }

    fn size_hint(&self) -> SizeHint {
        match self.rest {
            Rest::Length(left) => SizeHint::with_exact(left),
            Rest::Chunked(_) | Rest::Close => SizeHint::default(),
        }
    }
}

impl<W: Witness> Drop for Relay<W> {
    fn drop(&mut self) {
        // A body without a byte is let go without being asked for one.
        if self.is_complete() {
            self.end();
        }
    }
}
