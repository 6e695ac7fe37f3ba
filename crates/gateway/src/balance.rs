//! Which instance a request goes to.
//!
//! Over a model's deployments requests are shared out by weight. Within one, a prompt whose beginning an instance has
//! seen goes there unless that has much more to do than the others; else two are drawn, and the one with fewer tokens
//! in flight is taken (power of two choices: Mitzenmacher 2001).

use std::sync::Arc;

use crate::affinity::{Beginnings, place};
use crate::routes::{Group, Model, Ticket, Upstream};

/// What is asked of an instance.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    /// Tokens of prompt and answer together.
    pub(crate) tokens: u64,
    pub(crate) beginnings: Beginnings,
}

/// An instance, with room on it.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) ticket: Ticket,
}

/// What there is a lack of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lack {
    /// Of instances that take requests and were not tried.
    Ready,
    /// Of room: all have as much in flight as their caches hold.
    Room,
}

/// An instance that has seen the prompt's beginning may have so much more in flight than the least busy one, in
/// percent and in tokens.
const LEAN_PERCENT: u64 = 150;
const LEAN_TOKENS: u64 = 4096;

/// Chooses an instance of those that were not tried, and takes room on it. One that could not be reached just now is
/// taken only where there is no other.
pub(crate) fn choose(
    model: &Model,
    wanted: &Wanted,
    tried: &[Arc<Upstream>],
) -> Result<Chosen, Lack> {
    let may =
        |one: &Arc<Upstream>| one.is_ready() && !tried.iter().any(|tried| Arc::ptr_eq(tried, one));
    let mut why = Lack::Ready;
    for allows_out in [false, true] {
        let is_open = |one: &&Arc<Upstream>| may(one) && one.is_out() == allows_out;
        let mut groups: Vec<&Group> = model
            .groups
            .iter()
            .filter(|group| group.upstreams.iter().any(|one| is_open(&one)))
            .collect();
        while !groups.is_empty() {
            why = Lack::Room;
            let group = groups.swap_remove(draw(&groups));
            let open = group.upstreams.iter().filter(is_open);
            if let Some(chosen) = within(model, open, wanted) {
                return Ok(chosen);
            }
        }
    }
    Err(why)
}

/// One of the deployments, by their weights.
fn draw(groups: &[&Group]) -> usize {
    if groups.len() == 1 {
        return 0;
    }
    let all: u64 = groups.iter().map(|group| u64::from(group.weight)).sum();
    if all == 0 {
        return fastrand::usize(..groups.len());
    }
    let mut at = fastrand::u64(..all);
    let is_it = |group: &&Group| match at.checked_sub(u64::from(group.weight)) {
        Some(rest) => {
            at = rest;
            false
        }
        None => true,
    };
    groups.iter().position(is_it).unwrap_or(0)
}

/// One of a deployment's instances, with room on it.
fn within<'a>(
    model: &Model,
    open: impl Iterator<Item = &'a Arc<Upstream>> + Clone,
    wanted: &Wanted,
) -> Option<Chosen> {
    let count = open.clone().count();
    let take = |upstream: &Arc<Upstream>| {
        let ticket = upstream.take(wanted.tokens)?;
        if count > 1 {
            model.life.affinity.note(&wanted.beginnings, place(&upstream.instance.id));
        }
        Some(Chosen { upstream: Arc::clone(upstream), ticket })
    };
    if count > 1
        && let Some(chosen) = leaning(model, open.clone(), wanted).and_then(take)
    {
        return Some(chosen);
    }
    let first = fastrand::usize(..count.max(1));
    let mut second = fastrand::usize(..count.saturating_sub(1).max(1));
    second += usize::from(second >= first);
    let drawn = [open.clone().nth(first), open.clone().nth(second)].into_iter().flatten();
    let less = drawn.min_by_key(|one| (one.tokens(), one.in_flight()))?;
    // Where the two that were drawn are full, another may have room.
    take(less).or_else(|| open.into_iter().find_map(take))
}

/// The instance that has seen the prompt's beginning, unless it has much more to do than another.
fn leaning<'a>(
    model: &Model,
    open: impl Iterator<Item = &'a Arc<Upstream>> + Clone,
    wanted: &Wanted,
) -> Option<&'a Arc<Upstream>> {
    let seen = model.life.affinity.find(&wanted.beginnings)?;
    let it = open.clone().find(|one| place(&one.instance.id) == seen)?;
    let least = open.map(|one| one.tokens()).min()?;
    (it.tokens() <= least * LEAN_PERCENT / 100 + LEAN_TOKENS).then_some(it)
}
