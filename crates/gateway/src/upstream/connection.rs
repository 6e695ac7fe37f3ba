//! One exchange on one connection.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::head::{self, AnswerHead, MOST_HEAD};

/// An instance that takes no connection in this time takes none.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Of an answer's head so much is read at once.
const READ: usize = 4 * 1024;

/// A connection to an engine.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) address: SocketAddr,
    pub(crate) stream: TcpStream,
    /// What was read and not used yet.
    pub(crate) read: BytesMut,
}

impl Connection {
    /// Opens one.
    pub(crate) async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        Ok(Self { address, stream, read: BytesMut::new() })
    }

    /// Whether the engine has neither closed it nor said anything that nobody asked for.
    pub(crate) fn is_idle(&self) -> bool {
        let read = self.stream.try_read(&mut [0]);
        self.read.is_empty() && read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Sends a request, and reads until the answer's head is there.
    ///
    /// # Errors
    /// Where the connection breaks before that: nothing of an answer was seen.
    pub(crate) async fn ask(&mut self, head: &[u8], body: &[u8]) -> io::Result<AnswerHead> {
        if let Err(error) = self.write(head, body).await {
            // An engine may answer before it has read everything, and close.
            return self.answer().await.map_err(|_| error);
        }
        self.answer().await
    }

    async fn write(&mut self, mut head: &[u8], mut body: &[u8]) -> io::Result<()> {
        while !head.is_empty() {
            let written =
                self.stream.write_vectored(&[IoSlice::new(head), IoSlice::new(body)]).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            let of_head = written.min(head.len());
            (head, body) = (&head[of_head..], &body[written - of_head..]);
        }
        self.stream.write_all(body).await
    }

    async fn answer(&mut self) -> io::Result<AnswerHead> {
        loop {
            if let Some(head) = head::parse(&mut self.read)? {
                return Ok(head);
            }
            if self.read.len() > MOST_HEAD {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the answer's head is too large",
                ));
            }
            self.read.reserve(READ);
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
