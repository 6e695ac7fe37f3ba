//! Connections of one thread, kept and used again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;

use super::connection::Connection;

/// Idle connections to one engine.
const MOST_IDLE: usize = 256;

/// The connections that wait for something to do, by engine. A thread's own: nothing is locked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pool(Rc<RefCell<HashMap<SocketAddr, Vec<Connection>>>>);

impl Pool {
    /// The connection that was used last of those that are still good.
    pub(crate) fn take(&self, address: SocketAddr) -> Option<Connection> {
        let mut idle = self.0.borrow_mut();
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
        let mut idle = self.0.borrow_mut();
        let idle = idle.entry(connection.address).or_default();
        if idle.len() < MOST_IDLE {
            connection.is_used = true;
            idle.push(connection);
        }
    }

    /// Lets go of those whose engine has closed them, and of engines that nothing is left of.
    pub(crate) fn sweep(&self) {
        self.0.borrow_mut().retain(|_, idle| {
            idle.retain(Connection::is_idle);
            !idle.is_empty()
        });
    }
}
