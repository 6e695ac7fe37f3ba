//! Connections of one thread, kept and used again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead as _, ReadBuf};

use super::connection::Connection;
use super::gather::Gather;

/// Idle connections to one engine.
const MOST_IDLE: usize = 256;

/// What is read at once, at most.
const READ: usize = 64 * 1024;

/// The connections that wait for something to do, by engine, and what all connections read into. A thread's own:
/// nothing is locked.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    idle: Rc<RefCell<HashMap<SocketAddr, Vec<Connection>>>>,
    /// One for all, so that a connection that waits holds no memory.
    scratch: Rc<RefCell<Box<[u8]>>>,
    gather: Arc<Gather>,
}

impl Pool {
    /// The pool of a thread that rests by `gather`.
    pub(crate) fn new(gather: Arc<Gather>) -> Self {
        let scratch = vec![0; READ].into_boxed_slice();
        Self { idle: Rc::default(), scratch: Rc::new(RefCell::new(scratch)), gather }
    }

    /// The connection that was used last of those that are still good.
    pub(crate) fn take(&self, address: SocketAddr) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        let idle = idle.get_mut(&address)?;
        while let Some(connection) = idle.pop() {
            if connection.is_idle() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps one for later.
    pub(crate) fn give_back(&self, mut connection: Connection) {
        // What it needed for the last answer it may never need again.
        connection.read = BytesMut::new();
        let mut idle = self.idle.borrow_mut();
        let idle = idle.entry(connection.address).or_default();
        if idle.len() < MOST_IDLE {
            idle.push(connection);
        }
    }

    /// Reads what has arrived of a body: so many bytes more are in the connection's buffer.
    pub(crate) fn poll_read(
        &self,
        connection: &mut Connection,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut scratch = self.scratch.borrow_mut();
        let mut read = ReadBuf::new(&mut scratch);
        // It knows that there is no more where less came than there was room for: `try_read` would ask again.
        ready!(Pin::new(&mut connection.stream).poll_read(context, &mut read))?;
        connection.read.extend_from_slice(read.filled());
        self.gather.passed();
        Poll::Ready(Ok(read.filled().len()))
    }

    /// Lets go of those whose engine has closed them, and of engines that nothing is left of.
    pub(crate) fn sweep(&self) {
        self.idle.borrow_mut().retain(|_, idle| {
            idle.retain(Connection::is_idle);
            !idle.is_empty()
        });
    }
}
