//! Wakes the generator when a request is due.
//!
//! A thread of its own, as the timers of an async runtime wait for whole milliseconds, and a thread
//! that sleeps is woken by the kernel within a tenth of one. Where all cores are busy that takes longer;
//! but then answers are being read, and whoever reads one gives the sign as well.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// That something is due.
#[derive(Debug, Default)]
pub(crate) struct Sign {
    /// When the next request is, in nanoseconds since the run's start.
    next_ns: AtomicU64,
    notify: Notify,
}

impl Sign {
    /// Sets when the next request is due; none is the end.
    pub(crate) fn set_next(&self, next: Option<Duration>) {
        self.next_ns.store(next.map_or(u64::MAX, nanoseconds), Ordering::Relaxed);
    }

    /// Gives the sign, if it is time.
    pub(crate) fn look(&self, now: Duration) {
        if nanoseconds(now) >= self.next_ns.load(Ordering::Relaxed) {
            self.notify.notify_one();
        }
    }

    /// Waits for it; those that nobody waited for are one.
    pub(crate) async fn wait(&self) {
        self.notify.notified().await;
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A thread that gives a sign at each of many times.
pub(crate) struct Metronome {
    /// Its end ends the thread.
    _alive: mpsc::Sender<()>,
}

impl Metronome {
    /// Gives a sign at each of these times, which are in order.
    pub(crate) fn start(sign: &Arc<Sign>, times: Vec<Instant>) -> io::Result<Self> {
        let (alive, is_alive) = mpsc::channel();
        let sign = sign.clone();
        std::thread::Builder::new().name("metronome".to_owned()).spawn(move || {
            for time in times {
                let left = time.saturating_duration_since(Instant::now());
                if is_alive.recv_timeout(left) == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
                sign.notify.notify_one();
            }
        })?;
        Ok(Self { _alive: alive })
    }
}
