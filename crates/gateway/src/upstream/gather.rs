//! A moment's rest where pieces of streams come in bursts.
//!
//! An engine answers all requests of a step at about the same time, and a fast one writes faster than pieces can be
//! passed on one by one. A thread that rests a moment before it looks again finds several streams ready at one
//! wake-up, and several pieces of one stream to be sent at once. Where there is time between pieces it never rests: so
//! a lone stream, and streams that keep their own time, lose nothing.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a rest is. The timer adds some 50 µs.
const REST: Duration = Duration::from_micros(200);
/// So many pieces without time between them are a burst.
const BURST: u32 = 16;
/// A thread that waited longer than this had time.
const TIME_BETWEEN: Duration = Duration::from_micros(50);

/// What a thread has passed on without time between, and since when it waits. A thread's own; shared only because a
/// runtime's hooks must be.
#[derive(Debug)]
pub(crate) struct Gather {
    start: Instant,
    pieces: AtomicU32,
    waits_since_ns: AtomicU64,
}

impl Default for Gather {
    fn default() -> Self {
        Self { start: Instant::now(), pieces: AtomicU32::new(0), waits_since_ns: AtomicU64::new(0) }
    }
}

impl Gather {
    /// A piece was passed on.
    pub(crate) fn passed(&self) {
        self.pieces.fetch_add(1, Ordering::Relaxed);
    }

    /// The thread has nothing to do: it rests in the midst of a burst, and then waits.
    pub(crate) fn waits(&self) {
        if self.is_in_a_burst() {
            thread::sleep(REST);
        }
        self.waits_since_ns.store(self.now_ns(), Ordering::Relaxed);
    }

    /// There is something to do again.
    pub(crate) fn is_woken(&self) {
        let waited_ns = self.now_ns().saturating_sub(self.waits_since_ns.load(Ordering::Relaxed));
        self.has_waited(Duration::from_nanos(waited_ns));
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn has_waited(&self, waited: Duration) {
        if waited > TIME_BETWEEN {
            self.pieces.store(0, Ordering::Relaxed);
        }
    }

    /// Each burst is worth one rest: what comes meanwhile is the next.
    fn is_in_a_burst(&self) -> bool {
        let is_burst = self.pieces.load(Ordering::Relaxed) >= BURST;
        if is_burst {
            self.pieces.store(0, Ordering::Relaxed);
        }
        is_burst
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rests_only_where_pieces_come_together() {
        let (soon, later) = (Duration::from_micros(10), Duration::from_micros(100));
        // The wait before each wake-up, the pieces that were passed on then, and whether the thread rests after it.
        for (what, wake_ups) in [
            ("one at a time", vec![(later, 1, false); 50]),
            ("a few, with time between", vec![(later, BURST - 1, false); 50]),
            ("many at once", vec![(later, 64, true), (soon, 0, false), (later, 1, false)]),
            ("one after the other", (1..=BURST).map(|at| (soon, 1, at == BURST)).collect()),
            ("a burst after a burst", vec![(later, 64, true), (soon, 64, true), (later, 1, false)]),
            ("not quite a burst", vec![(soon, BURST - 1, false), (later, BURST - 1, false)]),
        ] {
            let gather = Gather::default();
            for (waited, pieces, rests) in wake_ups {
                gather.has_waited(waited);
                (0..pieces).for_each(|_| gather.passed());
                assert_eq!(gather.is_in_a_burst(), rests, "{what}");
            }
        }
    }
}
