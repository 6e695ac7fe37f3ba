//! Stopping an instance takes steps: let its requests end, ask it to end, insist.

use std::collections::HashMap;
use std::hash::Hash;

/// Requests on an instance that is to stop may take this long to end.
const DRAIN_LIMIT_MS: u64 = 30 * 1000;
/// A process that was asked to end may take this long. llama-server waits for its clients, however
/// long they stay.
const ASK_LIMIT_MS: u64 = 10 * 1000;

/// How patient stops are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Patience {
    /// Not at all: processes are killed.
    None,
    /// They are asked to end at once.
    Ask,
    /// Requests may end first.
    Drain,
}

/// What to do to a process now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is to stop from now on.
    Begin,
    /// Ask it to end.
    Ask,
    /// End it.
    Kill,
    /// Wait.
    Wait,
}

/// How far each stop has come, by what is stopped.
#[derive(Debug)]
pub(crate) struct Stops<Key>(HashMap<Key, Stage>);

impl<Key> Default for Stops<Key> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Draining { since_ms: u64 },
    Asked { since_ms: u64 },
    Killed,
}

impl<Key: Clone + Eq + Hash> Stops<Key> {
    /// Takes the stop of something one step further.
    pub(crate) fn advance(
        &mut self,
        key: &Key,
        in_flight: u64,
        patience: Patience,
        now_ms: u64,
    ) -> Step {
        let waited = |since_ms: u64| now_ms.saturating_sub(since_ms);
        let (stage, step) = match self.0.get(key).copied() {
            Some(Stage::Killed) => (Stage::Killed, Step::Wait),
            Some(_) if patience == Patience::None => (Stage::Killed, Step::Kill),
            Some(Stage::Asked { since_ms }) if waited(since_ms) > ASK_LIMIT_MS => {
                (Stage::Killed, Step::Kill)
            }
            Some(Stage::Draining { since_ms })
                if in_flight == 0
                    || patience < Patience::Drain
                    || waited(since_ms) > DRAIN_LIMIT_MS =>
            {
                (Stage::Asked { since_ms: now_ms }, Step::Ask)
            }
            Some(stage) => (stage, Step::Wait),
            None => (Stage::Draining { since_ms: now_ms }, Step::Begin),
        };
        self.0.insert(key.clone(), stage);
        step
    }

    /// Whether it is to end.
    pub(crate) fn is_leaving(&self, key: &Key) -> bool {
        self.0.contains_key(key)
    }

    /// Whether it was asked to end.
    pub(crate) fn is_asked(&self, key: &Key) -> bool {
        matches!(self.0.get(key), Some(Stage::Asked { .. } | Stage::Killed))
    }

    /// Forgets what is gone.
    pub(crate) fn retain(&mut self, lives: impl Fn(&Key) -> bool) {
        self.0.retain(|key, _| lives(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(steps: &[(u64, u64, Patience, Step)]) {
        let mut stops = Stops::<u32>::default();
        for (now_ms, in_flight, patience, expected) in steps {
            assert_eq!(stops.advance(&1, *in_flight, *patience, *now_ms), *expected, "{now_ms}");
        }
    }

    #[test]
    fn stops_are_as_patient_as_they_are_told() {
        use Patience::{Ask, Drain};
        check(&[
            (0, 1, Drain, Step::Begin),
            (1, 1, Drain, Step::Wait),
            (2, 0, Drain, Step::Ask),
            (2 + ASK_LIMIT_MS, 0, Drain, Step::Wait),
            (3 + ASK_LIMIT_MS, 0, Drain, Step::Kill),
            (4 + ASK_LIMIT_MS, 0, Drain, Step::Wait),
        ]);
        check(&[(0, 9, Drain, Step::Begin), (DRAIN_LIMIT_MS + 1, 9, Drain, Step::Ask)]);
        check(&[
            (0, 9, Ask, Step::Begin),
            (1, 9, Ask, Step::Ask),
            (2, 9, Patience::None, Step::Kill),
        ]);
    }
}
