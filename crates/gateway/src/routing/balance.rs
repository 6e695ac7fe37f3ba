//! Which instance a request goes to.
//!
//! Over a model's deployments requests are shared out by weight. Within one, a prompt whose beginning an instance has
//! seen goes there unless that has much more to do than the others; else two are drawn, and the one with fewer tokens
//! in flight is taken (power of two choices: Mitzenmacher 2001).

use std::sync::Arc;

use crate::routing::affinity::{Beginnings, place};
use crate::routing::routes::{Group, Model, Ticket, Upstream};
use crate::routing::table::UpstreamState;

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
    /// Of room: all have as much in flight as their caches hold, or sleep.
    Room,
}

/// An instance that has seen the prompt's beginning may have so much more in flight than the least busy one, in
/// percent and in tokens.
const LEAN_PERCENT: u64 = 150;
const LEAN_TOKENS: u64 = 4096;

/// Chooses an instance of those that were not tried, and takes room on it. One that can't be reached just now, or is
/// ill, is taken only where there is no other.
pub(crate) fn choose(model: &Model, wanted: &Wanted, tried: &[String]) -> Result<Chosen, Lack> {
    let may = |one: &&Arc<Upstream>| one.is_ready() && !tried.contains(&one.instance.id);
    let groups = model.groups.iter();
    let open = |group: &'_ Group| -> Vec<Arc<Upstream>> {
        group.upstreams.iter().filter(may).filter(|one| !one.is_out()).cloned().collect()
    };
    let mut open: Vec<Open<'_>> =
        groups.map(|group| Open { group, upstreams: open(group) }).collect();
    if open.iter().all(|one| one.upstreams.is_empty()) {
        for one in &mut open {
            one.upstreams = one.group.upstreams.iter().filter(may).cloned().collect();
        }
    }
    open.retain(|one| !one.upstreams.is_empty());
    if open.is_empty() {
        let sleeps = |one: &Arc<Upstream>| one.is_asleep() && !tried.contains(&one.instance.id);
        return Err(if model.upstreams().any(sleeps) { Lack::Room } else { Lack::Ready });
    }
    while !open.is_empty() {
        let drawn = open.swap_remove(draw(&open));
        if let Some(chosen) = within(model, &drawn, wanted) {
            return Ok(chosen);
        }
    }
    Err(Lack::Room)
}

/// A deployment with those of its instances that may be chosen.
struct Open<'a> {
    group: &'a Group,
    upstreams: Vec<Arc<Upstream>>,
}

/// One of the deployments, by their weights.
fn draw(open: &[Open<'_>]) -> usize {
    if open.len() == 1 {
        return 0;
    }
    let weight = |one: &Open<'_>| u64::from(one.group.weight);
    let all: u64 = open.iter().map(weight).sum();
    if all == 0 {
        return fastrand::usize(..open.len());
    }
    let mut at = fastrand::u64(..all);
    let is_it = |one: &Open<'_>| match at.checked_sub(weight(one)) {
        Some(rest) => {
            at = rest;
            false
        }
        None => true,
    };
    open.iter().position(is_it).unwrap_or(0)
}

/// One request of so many goes to instances on trial, where there are others.
const TRIED: usize = 10;

/// One of a deployment's instances, with room on it: of those on trial seldom.
fn within(model: &Model, open: &Open<'_>, wanted: &Wanted) -> Option<Chosen> {
    let is_settled = |one: &&Arc<Upstream>| one.instance.state != UpstreamState::OnTrial;
    let settled = open.upstreams.iter().filter(is_settled).count();
    if settled > 0 && settled < open.upstreams.len() {
        let are_tried = fastrand::usize(..TRIED) == 0;
        let (first, second): (Vec<_>, Vec<_>) =
            open.upstreams.iter().cloned().partition(|one| is_settled(&one) != are_tried);
        let of = |upstreams| among(model, &Open { group: open.group, upstreams }, wanted);
        return of(first).or_else(|| of(second));
    }
    among(model, open, wanted)
}

/// One of these instances, with room on it.
fn among(model: &Model, open: &Open<'_>, wanted: &Wanted) -> Option<Chosen> {
    let (all, seed) = (&open.upstreams, open.group.seed);
    let take = |upstream: &Arc<Upstream>| {
        let ticket = upstream.take(wanted.tokens)?;
        if all.len() > 1 {
            model.life.affinity.note(&wanted.beginnings, seed, place(&upstream.instance.id));
        }
        Some(Chosen { upstream: Arc::clone(upstream), ticket })
    };
    if let [one] = all.as_slice() {
        return take(one);
    }
    if let Some(chosen) = leaning(model, open, wanted).and_then(take) {
        return Some(chosen);
    }
    let first = fastrand::usize(..all.len());
    let second = (first + fastrand::usize(1..all.len())) % all.len();
    let less =
        [first, second].into_iter().min_by_key(|at| (all[*at].tokens(), all[*at].in_flight()))?;
    // Where the two that were drawn are full, another may have room.
    take(&all[less]).or_else(|| all.iter().find_map(take))
}

/// The instance that has seen the prompt's beginning, unless it has much more to do than another.
fn leaning<'a>(model: &Model, open: &'a Open<'_>, wanted: &Wanted) -> Option<&'a Arc<Upstream>> {
    let seen = model.life.affinity.find(&wanted.beginnings, open.group.seed)?;
    let it = open.upstreams.iter().find(|one| place(&one.instance.id) == seen)?;
    let least = open.upstreams.iter().map(|one| one.tokens()).min()?;
    (it.tokens() <= least.saturating_mul(LEAN_PERCENT) / 100 + LEAN_TOKENS).then_some(it)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::routing::routes::Routes;
    use crate::routing::table::{Instance, Table};

    /// What becomes of a request for 10 tokens where two instances hold 10 each.
    fn check(
        prepare: impl Fn(&[Arc<Upstream>]) -> Vec<Ticket>,
        tried: &[&str],
        expected: Result<&str, Lack>,
    ) {
        let instance = |id: &str| Instance {
            cache_tokens: Some(10),
            ..Instance::new("m", id, ([127, 0, 0, 1], 1).into(), UpstreamState::Ready)
        };
        let table = Table { instances: vec![instance("a"), instance("b")], ..Table::default() };
        let routes = Routes::new(table, &Routes::default(), &Metrics::default());
        let model = routes.model("m").unwrap();
        let upstreams: Vec<Arc<Upstream>> = model.upstreams().cloned().collect();
        let _held = prepare(&upstreams);
        let tried: Vec<String> = tried.iter().map(|id| (*id).to_owned()).collect();
        let chosen = choose(model, &Wanted { tokens: 10, ..Wanted::default() }, &tried);
        let chosen =
            chosen.as_ref().map(|chosen| &*chosen.upstream.instance.id).map_err(|lack| *lack);
        assert_eq!(chosen, expected, "tried {tried:?}");
    }

    #[test]
    fn what_is_on_trial_gets_few() {
        let instance = |id: &str, state| Instance {
            cache_tokens: Some(1_000_000),
            ..Instance::new("m", id, ([127, 0, 0, 1], 1).into(), state)
        };
        let instances = vec![
            instance("a", UpstreamState::Ready),
            instance("b", UpstreamState::OnTrial),
            instance("c", UpstreamState::Ready),
        ];
        let table = Table { instances, ..Table::default() };
        let routes = Routes::new(table, &Routes::default(), &Metrics::default());
        let model = routes.model("m").unwrap();
        let wanted = Wanted { tokens: 10, ..Wanted::default() };
        let to = |_| choose(model, &wanted, &[]).ok().map(|one| one.upstream.instance.id.clone());
        let tried = (0..10_000).filter_map(to).filter(|id| id == "b").count();
        assert!((800..1200).contains(&tried), "{tried} of 10000");
        let others: Vec<String> = ["a", "c"].map(str::to_owned).into();
        assert!(choose(model, &wanted, &others).is_ok_and(|one| one.upstream.instance.id == "b"));
    }

    #[test]
    fn full_and_out_and_tried() {
        let full = |at: usize| move |all: &[Arc<Upstream>]| vec![all[at].take(10).unwrap()];
        check(full(0), &[], Ok("b"));
        check(full(0), &["b"], Err(Lack::Room));
        check(|_| Vec::new(), &["a", "b"], Err(Lack::Ready));
        let out = |all: &[Arc<Upstream>]| {
            all[0].put_out();
            Vec::new()
        };
        check(out, &[], Ok("b"));
        check(out, &["b"], Ok("a"));
        // One that can't be reached is no help to those who wait for one that can.
        let out_and_full = |all: &[Arc<Upstream>]| {
            all[0].put_out();
            vec![all[1].take(10).unwrap()]
        };
        check(out_and_full, &[], Err(Lack::Room));
        let ill = |all: &[Arc<Upstream>]| {
            all[1].set_ill(true);
            Vec::new()
        };
        check(ill, &[], Ok("a"));
    }
}
