//! What is asked, apart from the queue that a lack of instances has made.
//!
//! By Little's law (1961) requests at once are arrivals a second times the seconds of each. While all instances are busy
//! and others start, those that wait are many and say little of how many instances are needed: counted as they are,
//! they would call for ever more of them. So arrivals and seconds are measured, and the queue counts for no more than
//! what drains it in ten minutes, and for no more than a quarter of an instance.

use std::collections::VecDeque;

/// Arrivals and ends are counted over so long.
const WINDOW_MS: u64 = 120_000;
/// Less says nothing.
const LEAST_MS: u64 = 30_000;
const LEAST_ENDED: u64 = 5;
/// What waits shall have been served after so long.
const DRAIN_S: f64 = 600.0;

/// What a deployment's gateways count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Requests on instances.
    pub in_flight: u64,
    /// Requests that wait for room.
    pub waiting: u64,
    /// Requests that have ended since counting began.
    pub ended: u64,
}

/// What was counted in the last two minutes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flow(VecDeque<(u64, Asked)>);

impl Flow {
    /// Takes a count in, and gives the requests at once that instances should have room for, where each has room for
    /// `target`.
    pub fn ongoing(&mut self, asked: Asked, target: f64, now_ms: u64) -> f64 {
        // A count that began anew, since a gateway left.
        if self.0.back().is_some_and(|(_, last)| asked.ended < last.ended) {
            self.0.clear();
        }
        self.0.push_back((now_ms, asked));
        while self.0.front().is_some_and(|(at, _)| at.saturating_add(WINDOW_MS) < now_ms) {
            self.0.pop_front();
        }
        let all = asked.in_flight.saturating_add(asked.waiting) as f64;
        if asked.waiting == 0 {
            return all;
        }
        let measured = self.measured(asked, target, now_ms);
        measured.map_or(all, |ongoing| ongoing.min(all))
    }

    fn measured(&self, now: Asked, target: f64, now_ms: u64) -> Option<f64> {
        let (since_ms, then) = *self.0.front()?;
        let ms = now_ms.saturating_sub(since_ms);
        let ended = now.ended - then.ended;
        if ms < LEAST_MS || ended < LEAST_ENDED {
            return None;
        }
        let per_second = |count: f64| count / (ms as f64 / 1e3);
        let there = |one: Asked| (one.in_flight + one.waiting) as f64;
        let arrivals = per_second(ended as f64 + there(now) - there(then));
        let seconds = self.request_seconds() / ended as f64;
        let drains = (now.waiting as f64 * seconds / DRAIN_S).min(target / 4.0);
        Some(arrivals.max(0.0) * seconds + drains)
    }

    /// Seconds that requests have spent on instances, all together: counts come at no even distance.
    fn request_seconds(&self) -> f64 {
        let between = |((from, one), (to, other)): (&(u64, Asked), &(u64, Asked))| {
            to.saturating_sub(*from) as f64 / 1e3 * (one.in_flight + other.in_flight) as f64 / 2.0
        };
        self.0.iter().zip(self.0.iter().skip(1)).map(between).sum()
    }
}
