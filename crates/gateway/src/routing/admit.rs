//! Requests that wait for room: in the gateway, where it is known who waits, and not in an engine that would push
//! others' caches out.
//!
//! The most important go first; among equals, whoever has been given the fewest tokens so far. A large request is
//! passed over by smaller ones a few times only, and then room is kept for it.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::routing::balance::{self, Chosen, Lack, Wanted};
use crate::routing::routes::Model;

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

/// A request that looks for room.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turn {
    pub(crate) asker: Asker,
    pub(crate) wanted: Wanted,
    /// The instances that could not answer it.
    pub(crate) tried: Vec<String>,
}

#[derive(Debug)]
struct Waiter {
    turn: Turn,
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
    pub(crate) fn enter(&self, turn: Turn) -> Result<oneshot::Receiver<Chosen>, Full> {
        let mut waiting = self.lock();
        waiting.all.retain(|waiter| !waiter.wake.is_closed());
        if waiting.all.len() >= MOST_WAITING {
            return Err(Full);
        }
        waiting.welcome(&turn.asker.key);
        let (wake, woken) = oneshot::channel();
        waiting.all.push(Waiter { turn, passed: 0, wake });
        self.count.store(waiting.all.len(), Ordering::Relaxed);
        Ok(woken)
    }

    /// Gives room to those who wait, as far as there is any. Where nobody is left who could have room, the wait is
    /// over.
    pub(crate) fn pump(&self, model: &Model) {
        if self.len() == 0 {
            return;
        }
        let mut waiting = self.lock();
        waiting.all.retain(|waiter| !waiter.wake.is_closed());
        let (mut order, mut at) = (waiting.order(), 0);
        while let Some(next) = order.get(at).copied() {
            let Waiter { turn, passed, .. } = &waiting.all[next];
            match balance::choose(model, &turn.wanted, &turn.tried) {
                Ok(chosen) => {
                    waiting.let_in(next, chosen);
                    (order, at) = (waiting.order(), 0);
                }
                Err(Lack::Ready) => {
                    waiting.all.remove(next);
                    (order, at) = (waiting.order(), 0);
                }
                Err(Lack::Room) if *passed >= MOST_PASSED || at >= MOST_TRIED => break,
                Err(Lack::Room) => at += 1,
            }
        }
        self.count.store(waiting.all.len(), Ordering::Relaxed);
    }

    /// Ends all waits: the model is gone.
    pub(crate) fn dismiss(&self) {
        self.lock().all.clear();
        self.count.store(0, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Whoever comes begins where the least served of those who wait is: neither behind for having been served
    /// before, nor ahead for having been away.
    fn welcome(&mut self, key: &str) {
        let waits = |key: &String| self.all.iter().any(|waiter| waiter.turn.asker.key == *key);
        let given: HashMap<String, u64> =
            self.given.drain().filter(|(other, _)| waits(other)).collect();
        self.given = given;
        let least = self.given.values().copied().min().unwrap_or(0);
        self.given.entry(key.to_owned()).or_insert(least);
    }

    /// Whose turn it is, and who comes then.
    fn order(&self) -> Vec<usize> {
        let mut turns: Vec<usize> = (0..self.all.len()).collect();
        turns.sort_by_cached_key(|at| {
            let Asker { key, priority } = &self.all[*at].turn.asker;
            (Reverse(*priority), self.given.get(key).copied().unwrap_or(0), *at)
        });
        turns
    }

    /// Lets one in, and notes whom it has passed.
    fn let_in(&mut self, at: usize, chosen: Chosen) {
        let Waiter { turn, wake, .. } = self.all.remove(at);
        let (priority, tokens) = (turn.asker.priority, turn.wanted.tokens);
        let given = self.given.entry(turn.asker.key).or_default();
        *given = given.saturating_add(tokens);
        let is_larger = |other: &&mut Waiter| {
            other.turn.asker.priority >= priority && other.turn.wanted.tokens > tokens
        };
        for waiter in self.all.iter_mut().filter(is_larger) {
            waiter.passed += 1;
        }
        // Whoever has gone meanwhile leaves the room to the next.
        drop(wake.send(chosen));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::routing::routes::{Routes, Ticket};
    use crate::routing::table::{Instance, Table, UpstreamState};

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
                Some(model.life.queue.enter(Turn { asker, wanted, tried: Vec::new() }).unwrap())
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
        let enter = || queue.enter(Turn::default());
        let held: Vec<_> = (0..MOST_WAITING).map(|_| enter().unwrap()).collect();
        assert_eq!(enter().err(), Some(Full));
        drop(held);
        assert!(enter().is_ok(), "those who have gone make room");
    }
}
