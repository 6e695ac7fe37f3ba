//! Which instance has seen the beginning of a prompt: a conversation goes on where its cache is.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::{Mutex, PoisonError};

use foldhash::fast::FixedState;

/// A prompt is recognised by its first so many bytes: the longest of these that it has.
const LENGTHS: [usize; 4] = [256, 1024, 4096, 16_384];
/// Beginnings that are remembered before the older half is forgotten.
const GENERATION: usize = 16_384;

/// The beginnings of a prompt, shortest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Beginnings {
    hashes: [u64; LENGTHS.len()],
    count: usize,
}

impl Beginnings {
    /// Of a prompt as it stands in its request.
    pub(crate) fn of(prompt: &[u8]) -> Self {
        let mut beginnings = Self::default();
        for length in LENGTHS.into_iter().take_while(|length| *length <= prompt.len()) {
            beginnings.hashes[beginnings.count] = FixedState::default().hash_one(&prompt[..length]);
            beginnings.count += 1;
        }
        beginnings
    }

    fn all(&self) -> &[u64] {
        &self.hashes[..self.count]
    }
}

/// Where beginnings went. Its size is bounded: it knows of the last ones, and of those before them.
#[derive(Debug, Default)]
pub(crate) struct Affinity(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<u64, u64, FixedState>,
    old: HashMap<u64, u64, FixedState>,
}

impl Affinity {
    /// The instance, as a number, that has seen the longest beginning of a prompt.
    ///
    /// Each deployment has a `seed` of its own: what one of them has seen says nothing of the others.
    pub(crate) fn find(&self, beginnings: &Beginnings, seed: u64) -> Option<u64> {
        if beginnings.count == 0 {
            return None;
        }
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = |hash: &u64| {
            let hash = hash ^ seed;
            seen.young.get(&hash).or_else(|| seen.old.get(&hash)).copied()
        };
        beginnings.all().iter().rev().find_map(place)
    }

    /// Notes where a prompt goes.
    pub(crate) fn note(&self, beginnings: &Beginnings, seed: u64, place: u64) {
        if beginnings.count == 0 {
            return;
        }
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.young.len() + LENGTHS.len() > GENERATION {
            seen.old = std::mem::take(&mut seen.young);
        }
        for hash in beginnings.all() {
            seen.young.insert(hash ^ seed, place);
        }
    }
}

/// An instance, or a deployment, as a number.
pub(crate) fn place(id: &str) -> u64 {
    FixedState::default().hash_one(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_beginning_counts() {
        let affinity = Affinity::default();
        let system = "s".repeat(300);
        let (one, two) = (system.clone() + &"a".repeat(2000), system.clone() + &"b".repeat(2000));
        affinity.note(&Beginnings::of(one.as_bytes()), 0, 1);
        affinity.note(&Beginnings::of(two.as_bytes()), 0, 2);
        let rows = [
            (one.clone() + "and so on", Some(1)),
            (two + "and so on", Some(2)),
            (system + "something else", Some(2)),
            ("s".repeat(200), None),
            ("x".repeat(5000), None),
        ];
        for (prompt, expected) in rows {
            assert_eq!(
                affinity.find(&Beginnings::of(prompt.as_bytes()), 0),
                expected,
                "{}",
                prompt.len()
            );
        }
    }

    #[test]
    fn it_does_not_grow_for_ever() {
        let affinity = Affinity::default();
        for number in 0..100_000 {
            let prompt = format!("{number:0>300}");
            affinity.note(&Beginnings::of(prompt.as_bytes()), 0, 1);
        }
        let seen = affinity.0.lock().unwrap();
        assert!(seen.young.len() <= GENERATION && seen.old.len() <= GENERATION);
    }
}
