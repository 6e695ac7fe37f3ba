//! The connections to one server that wait for a request, kept and opened ahead.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Context;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::connection::Connection;
use crate::metronome::Sign;
use crate::target::Target;

/// So many are opened at a time: a server's queue of those to accept is short, and what it has no room
/// for is tried again after a whole second.
const AT_A_TIME: usize = 32;
/// What isn't open by then isn't waited for.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A server and the idle connections to it.
pub(crate) struct Wire {
    pub(crate) target: Target,
    /// Whoever reads an answer looks whether a request is due.
    pub(crate) sign: Arc<Sign>,
    idle: Mutex<Vec<Connection>>,
    opening: AtomicUsize,
}

impl Wire {
    pub(crate) fn new(target: Target) -> Arc<Self> {
        let (sign, idle) = (Arc::default(), Mutex::default());
        Arc::new(Self { target, sign, idle, opening: AtomicUsize::new(0) })
    }

    /// A connection that takes a request at once, the one used last first.
    pub(crate) fn take(&self, context: &mut Context<'_>) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(mut connection) = idle.pop() {
            if connection.is_usable(context) {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection for the next request.
    pub(crate) fn keep(&self, connection: Connection) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }

    /// How many are missing to have so many.
    pub(crate) fn missing(&self, wanted: usize) -> usize {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).len();
        wanted.saturating_sub(idle + self.opening.load(Ordering::Relaxed))
    }

    /// Opens so many more. A server that takes none will be found out by the requests.
    pub(crate) async fn open(self: Arc<Self>, how_many: usize) {
        self.opening.fetch_add(how_many, Ordering::Relaxed);
        let mut openers = JoinSet::new();
        for nth in 0..AT_A_TIME.min(how_many) {
            let share = (how_many - nth).div_ceil(AT_A_TIME);
            openers.spawn(self.clone().open_in_turn(share));
        }
        let _late = tokio::time::timeout(TIMEOUT, openers.join_all()).await;
        self.opening.fetch_sub(how_many, Ordering::Relaxed);
    }

    async fn open_in_turn(self: Arc<Self>, how_many: usize) {
        for _ in 0..how_many {
            match Connection::open(&self.target).await {
                Ok(connection) => self.keep(connection),
                Err(_) => return,
            }
        }
    }
}
