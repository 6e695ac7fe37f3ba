//! When an idle engine should sleep, and when it should wake: a lever that costs tenths of a second where a restart
//! costs minutes.
//!
//! An engine that sleeps gives its GPUs' memory to whoever is short of it there: another instance that can't start,
//! or a plan that no longer fits beside what others hold. Its place in the plan stays its own. It wakes as soon as
//! somebody asks for its model and its memory is free again, or once nobody is short any more.
//!
//! Time is an argument. What isn't known (host memory that nobody reports) was counted when the plan was made.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::inventory::{DeviceId, InstanceId};
use crate::plan::{Plan, PlannedInstance, Sleep};
use crate::units::Bytes;

/// One that sleeps stays so for so long, unless it is asked for: what was short must get its turn.
pub const REST_MS: u64 = 60_000;

/// Falling asleep takes up to so long; until then no other on its devices is told to.
const SETTLE_MS: u64 = 15_000;

/// An instance that sleeps, or is told to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rest {
    /// How it was started: with another start it is forgotten.
    pub config: Digest,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// Who was short of memory, in words.
    pub why: String,
    /// Whether it was told to wake.
    pub is_waking: bool,
}

/// A device of a node whose memory doesn't do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Short {
    /// The node.
    pub node: String,
    /// The device.
    pub device: DeviceId,
    /// Who is short of it, in words.
    pub why: String,
}

/// What is to be gone by.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// Instances that serve, and since when nobody has asked them; those that work are not in it.
    pub idle_since_ms: &'a BTreeMap<InstanceId, u64>,
    /// Those that sleep.
    pub resting: &'a BTreeMap<InstanceId, Rest>,
    /// Those that somebody waits for.
    pub asked_for: &'a BTreeSet<InstanceId>,
    /// Where memory is short.
    pub short: &'a [Short],
    /// What is free of devices just now; none is not known.
    pub free: &'a BTreeMap<(String, DeviceId), Bytes>,
    /// What is free of nodes' host memory, as far as that is known.
    pub host_free: &'a BTreeMap<String, Bytes>,
    /// Now.
    pub now_ms: u64,
}

/// What an instance shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Sleep, since somebody is short of memory.
    Sleep {
        /// The instance.
        instance: InstanceId,
        /// Who is short.
        why: String,
    },
    /// Wake.
    Wake(InstanceId),
}

/// What shall sleep and what shall wake now: of each device that is short at most one more sleeps at a time, the one
/// that gives most of it.
pub fn orders(seen: Seen<'_>) -> Vec<Order> {
    let mut orders: Vec<Order> = Vec::new();
    for short in seen.short {
        // What one gives is seen only a while after.
        let lies_down = |one: &PlannedInstance| {
            let is_told = |order: &Order| matches!(order, Order::Sleep { instance, .. } if *instance == one.id);
            let rest = seen.resting.get(&one.id);
            orders.iter().any(is_told)
                || rest.is_some_and(|rest| rest.since_ms.saturating_add(SETTLE_MS) > seen.now_ms)
        };
        let is_on_its_way = |one: &PlannedInstance| {
            one.node == short.node && one.uses(&short.device) && lies_down(one)
        };
        if seen.plan.instances.iter().any(is_on_its_way) {
            continue;
        }
        let gives = |one: &&PlannedInstance| {
            let asleep = one.bytes_asleep(&short.device).unwrap_or_default();
            one.bytes_on(&short.node, &short.device) - asleep
        };
        let may = seen.plan.instances.iter().filter(|one| one.node == short.node);
        let may = may.filter(|one| seen.may_sleep(one) && gives(one) > Bytes::ZERO);
        if let Some(one) = may.max_by_key(gives) {
            orders.push(Order::Sleep { instance: one.id.clone(), why: short.why.clone() });
        }
    }
    let wakes = seen.plan.instances.iter().filter(|one| seen.shall_wake(one));
    orders.extend(wakes.map(|one| Order::Wake(one.id.clone())));
    orders
}

impl Seen<'_> {
    fn may_sleep(&self, one: &PlannedInstance) -> bool {
        let Some(sleep) = &one.sleep else { return false };
        let idle_ms = self.plan.adjust.idle_s.saturating_mul(1000);
        let since_ms = self.idle_since_ms.get(&one.id);
        let is_idle =
            since_ms.is_some_and(|since_ms| since_ms.saturating_add(idle_ms) <= self.now_ms);
        is_idle
            && !self.is_asked_for(one)
            && !self.resting.contains_key(&one.id)
            && self.has_host_memory(one, sleep)
    }

    /// Whether its weights have room in host memory.
    fn has_host_memory(&self, one: &PlannedInstance, sleep: &Sleep) -> bool {
        self.host_free.get(&one.node).is_none_or(|free| *free >= sleep.host)
    }

    fn is_asked_for(&self, one: &PlannedInstance) -> bool {
        self.asked_for.contains(&one.id)
    }

    fn shall_wake(&self, one: &PlannedInstance) -> bool {
        let Some(rest) = self.resting.get(&one.id).filter(|rest| !rest.is_waking) else {
            return false;
        };
        let has_rested = rest.since_ms.saturating_add(REST_MS) <= self.now_ms;
        let is_short =
            self.short.iter().any(|short| short.node == one.node && one.uses(&short.device));
        (self.is_asked_for(one) || has_rested && !is_short) && self.has_room(one)
    }

    /// Whether what it gave up is free: where that isn't known, it isn't tried.
    fn has_room(&self, one: &PlannedInstance) -> bool {
        one.shares.iter().all(|share| {
            let wants = one.bytes_on(&one.node, &share.device);
            let needs = wants - one.bytes_asleep(&share.device).unwrap_or_default();
            let free = self.free.get(&(one.node.clone(), share.device.clone()));
            free.is_some_and(|free| *free >= needs)
        })
    }
}
