//! Requests that wait for room: in the gateway, where it is known who waits, and not in an engine that would push
//! others' caches out.
//!
//! The most important go first; among equals, whoever has been given the fewest tokens so far. A large request is
//! passed over by smaller ones a few times only, and then room is kept for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::balance::{self, Chosen, Lack, Wanted};
use crate::routes::Model;

/// Requests of a model that wait, at most.
const MOST_WAITING: usize = 1024;
/// So often may smaller requests pass a larger one.
const MOST_PASSED: u32 = 8;
/// So many are tried when there may be room again.
const MOST_TRIED: usize = 16;

/// Who asks, as far as fairness goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asker {
    /// The key's name; empty without one.
    pub(crate) key: String,
    /// Higher goes first.
    pub(crate) priority: i32,
}

/// The requests of a model that wait for room.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    /// How many, without the lock.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Waiting {
    /// In the order in which they came.
    all: Vec<Waiter>,
    /// Tokens that each key was given while others waited.
    given: HashMap<String, u64>,
}

#[derive(Debug)]
struct Waiter {
    asker: Asker,
    wanted: Wanted,
    passed: u32,
    wake: oneshot::Sender<Chosen>,
}

/// No more may wait.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Queue {
    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Waits in turn: the receiver gets an instance with room. Dropping it ends the wait.
    ///
    /// # Errors
    /// Where too many wait.
    pub(crate) fn enter(
        &self,
        asker: Asker,
        wanted: Wanted,
    ) -> Result<oneshot::Receiver<Chosen>, Full> {
        let mut waiting = self.lock();
        waiting.all.retain(|waiter| !waiter.wake.is_closed());
        if waiting.all.len() >= MOST_WAITING {
            return Err(Full);
        }
        if waiting.all.is_empty() {
            waiting.given.clear();
        }
        // Whoever comes later begins where the least served of the others is.
        let least = waiting.given.values().copied().min().unwrap_or(0);
        waiting.given.entry(asker.key.clone()).or_insert(least);
        let (wake, woken) = oneshot::channel();
        waiting.all.push(Waiter { asker, wanted, passed: 0, wake });
        self.count.store(waiting.all.len(), Ordering::Relaxed);
        Ok(woken)
    }

    /// Gives room to those who wait, as far as there is any.
    pub(crate) fn pump(&self, model: &Model) {
        if self.len() == 0 {
            return;
        }
        let mut waiting = self.lock();
        waiting.all.retain(|waiter| !waiter.wake.is_closed());
        let mut skipped = 0;
        while let Some(at) = waiting.next(skipped) {
            match balance::choose(model, &waiting.all[at].wanted, &[]) {
                Ok(chosen) => {
                    let waiter = waiting.all.remove(at);
                    let given = waiting.given.entry(waiter.asker.key.clone()).or_default();
                    *given = given.saturating_add(waiter.wanted.tokens);
                    waiting.pass(&waiter);
                    // Whoever has gone meanwhile leaves the room to the next.
                    drop(waiter.wake.send(chosen));
                }
                Err(Lack::Ready) => break,
                Err(Lack::Room)
                    if waiting.all[at].passed >= MOST_PASSED || skipped >= MOST_TRIED =>
                {
                    break;
                }
                Err(Lack::Room) => skipped += 1,
            }
        }
        self.count.store(waiting.all.len(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Whose turn it is, but for so many.
    fn next(&self, skipped: usize) -> Option<usize> {
        let order = |at: &usize| {
            let Asker { key, priority } = &self.all[*at].asker;
            (std::cmp::Reverse(*priority), self.given.get(key).copied().unwrap_or(0), *at)
        };
        let mut turns: Vec<usize> = (0..self.all.len()).collect();
        turns.sort_by_key(order);
        turns.get(skipped).copied()
    }

    /// Notes who was passed over: those who came earlier and are as important.
    fn pass(&mut self, by: &Waiter) {
        let larger = self.all.iter_mut().filter(|waiter| {
            waiter.asker.priority >= by.asker.priority && waiter.wanted.tokens > by.wanted.tokens
        });
        for waiter in larger {
            waiter.passed += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::routes::{Routes, Ticket};
    use crate::table::{Instance, Table, UpstreamState};

    /// In which order requests are let in, as `KEY TOKENS PRIORITY` each, by a cache of 100 tokens that is full and
    /// is then let go of, ten tokens at a time.
    fn check(requests: &[(&str, u64, i32)], expected: &[usize]) {
        let address = ([127, 0, 0, 1], 1).into();
        let mut instance = Instance::new("m", "m-0", address, UpstreamState::Ready);
        instance.cache_tokens = Some(100);
        let table = Table { instances: vec![instance], ..Table::default() };
        let routes = Routes::new(table, &Routes::default(), &Metrics::default());
        let model = routes.model("m").unwrap();
        let upstream = model.upstreams().next().unwrap();
        let mut full: Vec<Ticket> = (0..10).map(|_| upstream.take(10).unwrap()).collect();
        let mut waiting: Vec<_> = requests
            .iter()
            .map(|(key, tokens, priority)| {
                let asker = Asker { key: (*key).to_owned(), priority: *priority };
                let wanted = Wanted { tokens: *tokens, ..Wanted::default() };
                Some(model.life.queue.enter(asker, wanted).unwrap())
            })
            .collect();
        let (mut order, mut held) = (Vec::new(), Vec::new());
        while order.len() < requests.len() {
            assert!(
                full.pop().is_some() || held.pop().is_some(),
                "{requests:?} stand still: {order:?}"
            );
            model.life.queue.pump(model);
            for (at, slot) in waiting.iter_mut().enumerate() {
                if let Some(Ok(Chosen { ticket, .. })) =
                    slot.as_mut().map(oneshot::Receiver::try_recv)
                {
                    order.push(at);
                    held.push(ticket);
                    *slot = None;
                }
            }
        }
        assert_eq!(order, expected, "{requests:?}");
    }

    #[test]
    fn in_turn() {
        check(&[("a", 10, 0), ("a", 10, 0), ("a", 10, 0)], &[0, 1, 2]);
        // The more important first.
        check(&[("a", 10, 0), ("b", 10, 5)], &[1, 0]);
        // One with many requests doesn't keep another from having its turn.
        check(&[("a", 10, 0), ("a", 10, 0), ("a", 10, 0), ("b", 10, 0)], &[0, 3, 1, 2]);
        // Small ones pass a large one while that doesn't fit anyhow, and then it has its turn.
        let mut many = vec![("a", 90, 0)];
        many.extend([("b", 10, 0); 12]);
        check(&many, &[1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 10, 11, 12]);
    }

    #[test]
    fn no_more_than_so_many_wait() {
        let queue = Queue::default();
        let enter = || queue.enter(Asker::default(), Wanted::default());
        let held: Vec<_> = (0..MOST_WAITING).map(|_| enter().unwrap()).collect();
        assert_eq!(enter().err(), Some(Full));
        drop(held);
        assert!(enter().is_ok(), "those who have gone make room");
    }
}
