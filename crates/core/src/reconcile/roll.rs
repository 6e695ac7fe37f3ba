//! From one plan to the next in steps: of each model one instance changes at a time, and what runs meanwhile, old and
//! new together, keeps within every device's budget.

use std::collections::{BTreeMap, BTreeSet};

use super::{Phase, Record, TRIAL_MS, has_room, keeps_budgets, with_rollbacks};
use crate::inventory::{InstanceId, RunningInstance};
use crate::plan::{Plan, PlannedInstance};
use crate::units::Bytes;

/// What is known of the instances that a plan is about.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Instances as they were when they were last proven.
    pub proven: &'a BTreeMap<InstanceId, PlannedInstance>,
    /// Their processes.
    pub running: &'a [RunningInstance],
    /// What is recorded of them.
    pub records: &'a BTreeMap<InstanceId, Record>,
    /// Those that are being stopped.
    pub leaving: &'a BTreeSet<InstanceId>,
    /// Those whose machines are away: nobody waits for them.
    pub absent: &'a BTreeSet<InstanceId>,
    /// The time, in milliseconds since 1970.
    pub now_ms: u64,
}

/// The plan on the way to `target`: as it is, but for instances that serve as they were and whose turn to change
/// hasn't come. Where no order of single changes keeps the budgets, all change at once.
pub fn on_the_way(target: &Plan, seen: Seen<'_>) -> Plan {
    let mut waiting = waiting(target, seen);
    if waiting.is_empty() {
        return target.clone();
    }
    // What ended while it waited, and has no room yet as it shall be, goes on as it was.
    let now = with_rollbacks(target, &waiting);
    let runs =
        |id: &InstanceId| now.instance(id).is_some_and(|one| one.find_in(seen.running).is_some());
    for planned in target.instances.iter().filter(|one| !runs(&one.id)) {
        let Some(earlier) = seen.proven.get(&planned.id) else { continue };
        let record = seen.records.get(&planned.id);
        let ended_as_it_was = record.is_some_and(|one| one.config == earlier.config());
        if ended_as_it_was && earlier != planned && !has_room(&now, planned, runs) {
            waiting.insert(planned.id.clone(), earlier.clone());
        }
    }
    let is_open = |instance: &PlannedInstance| !waiting.contains_key(&instance.id);
    let open: Vec<&PlannedInstance> = target.instances.iter().filter(|one| is_open(one)).collect();
    let now = with_rollbacks(target, &waiting);
    let runs =
        |id: &InstanceId| now.instance(id).is_some_and(|one| one.find_in(seen.running).is_some());
    // What is down and has no room is no step that is under way: others' steps may give it room.
    let is_blocked = |one: &PlannedInstance| !runs(&one.id) && !has_room(&now, one, runs);
    let is_here = |one: &PlannedInstance| !seen.absent.contains(&one.id);
    let changing =
        open.iter().filter(|one| is_here(one) && is_changing(one, seen) && !is_blocked(one));
    let changing: BTreeSet<&str> = changing.map(|one| one.model.as_str()).collect();
    // A step that nothing forbids is taken even while another is under way elsewhere.
    let mut has_stepped: BTreeSet<String> = BTreeSet::new();
    if is_paced(target, seen) {
        while let Some(next) = next(target, &waiting, &changing, &has_stepped) {
            waiting.remove(&next);
            has_stepped.extend(target.instance(&next).map(|one| one.model.clone()));
            if target.pace_s > 0 {
                break;
            }
        }
        if has_stepped.is_empty() && changing.is_empty() {
            return target.clone();
        }
    }
    with_rollbacks(target, &waiting)
}

/// Instances that serve as they last did, and are to be otherwise.
fn waiting(target: &Plan, seen: Seen<'_>) -> BTreeMap<InstanceId, PlannedInstance> {
    let serves = |earlier: &PlannedInstance| {
        let record = seen.records.get(&earlier.id);
        let is_ready = record.is_some_and(|record| {
            record.phase == Phase::Ready && record.config == earlier.config()
        });
        is_ready && earlier.find_in(seen.running).is_some() && !seen.leaving.contains(&earlier.id)
    };
    let changed = target.instances.iter().filter_map(|planned| {
        let earlier = seen.proven.get(&planned.id)?;
        // Most stay as they are, and digests take a while.
        let waits = earlier != planned && earlier.config() != planned.config() && serves(earlier);
        waits.then(|| (planned.id.clone(), earlier.clone()))
    });
    changed.collect()
}

/// Whether an instance is neither at its end nor given up: down, starting, or on trial.
fn is_changing(instance: &PlannedInstance, seen: Seen<'_>) -> bool {
    let record = seen.records.get(&instance.id).filter(|one| one.config == instance.config());
    match record.map(|record| record.phase) {
        // What could go back has (`goes_back`).
        Some(Phase::Failed) => false,
        Some(Phase::Ready) => {
            let is_proven =
                seen.proven.get(&instance.id).is_some_and(|one| one.config() == instance.config());
            let is_on_trial = !is_proven && record.is_some_and(|one| one.is_on_trial(seen.now_ms));
            is_on_trial || instance.find_in(seen.running).is_none()
        }
        _ => true,
    }
}

/// Whether the last restart is as long ago as the plan wants.
fn is_paced(target: &Plan, seen: Seen<'_>) -> bool {
    let pace_ms = target.pace_s.saturating_mul(1000);
    let is_recent = |record: &Record| record.since_ms.saturating_add(pace_ms) > seen.now_ms;
    pace_ms == 0 || !seen.records.values().any(is_recent)
}

/// The next instance to change: of models of which none is changing, the one that grows least, such that the
/// budgets are kept.
fn next(
    target: &Plan,
    waiting: &BTreeMap<InstanceId, PlannedInstance>,
    changing: &BTreeSet<&str>,
    has_stepped: &BTreeSet<String>,
) -> Option<InstanceId> {
    let may = |one: &&PlannedInstance| {
        waiting.contains_key(&one.id)
            && !changing.contains(one.model.as_str())
            && !has_stepped.contains(&one.model)
    };
    let mut candidates: Vec<&PlannedInstance> = target.instances.iter().filter(may).collect();
    let takes = |one: &PlannedInstance| one.shares.iter().map(|it| it.footprint.total()).sum();
    candidates.sort_by_key(|one| {
        let (now, then): (Bytes, Bytes) = (takes(&waiting[&one.id]), takes(one));
        i128::from(then.0) - i128::from(now.0)
    });
    let keeps = |one: &&&PlannedInstance| {
        let mut others = waiting.clone();
        others.remove(&one.id);
        keeps_budgets(&with_rollbacks(target, &others))
    };
    candidates.iter().find(keeps).map(|one| one.id.clone())
}

/// An instance of `plan` that can't run as planned, and what goes back to what was last proven: with it those of its
/// deployment that have not changed yet, where that fits beside the others; else it alone; else everything, since others
/// may have been given the room that it had.
pub fn goes_back(
    plan: &Plan,
    records: &BTreeMap<InstanceId, Record>,
    proven: &BTreeMap<InstanceId, PlannedInstance>,
) -> Option<(InstanceId, BTreeMap<InstanceId, PlannedInstance>)> {
    let earlier = |planned: &PlannedInstance| earlier(planned, proven).cloned();
    let has_failed = |planned: &&PlannedInstance| {
        records.get(&planned.id).is_some_and(|record| {
            record.phase == Phase::Failed && record.config == planned.config()
        })
    };
    plan.instances.iter().filter(has_failed).find_map(|failed| {
        earlier(failed)?;
        let all = |goes: &dyn Fn(&PlannedInstance) -> bool| -> BTreeMap<_, _> {
            let going = plan.instances.iter().filter(|one| goes(one));
            going.filter_map(|one| Some((one.id.clone(), earlier(one)?))).collect()
        };
        let tries = [
            all(&|one| one.deployment == failed.deployment),
            all(&|one| one.id == failed.id),
            all(&|_| true),
        ];
        let fits = |back: &BTreeMap<_, _>| keeps_budgets(&with_rollbacks(plan, back));
        Some((failed.id.clone(), tries.into_iter().find(fits)?))
    })
}

/// An instance as it was last proven, where that is otherwise than it is planned.
pub fn earlier<'a>(
    planned: &PlannedInstance,
    proven: &'a BTreeMap<InstanceId, PlannedInstance>,
) -> Option<&'a PlannedInstance> {
    proven.get(&planned.id).filter(|one| one.config() != planned.config())
}

/// Whether an instance that runs otherwise than it was last proven is ready, and only just; `record` is what is known of
/// it, as it is planned or otherwise.
pub fn is_on_trial(
    planned: &PlannedInstance,
    record: Option<&Record>,
    proven: &BTreeMap<InstanceId, PlannedInstance>,
    now_ms: u64,
) -> bool {
    let is_new = |one: &Record| one.is_on_trial(now_ms) && one.config == planned.config();
    record.is_some_and(is_new) && earlier(planned, proven).is_some()
}

impl Record {
    /// Whether its engine has only just become ready.
    pub fn is_on_trial(&self, now_ms: u64) -> bool {
        self.phase == Phase::Ready && self.since_ms.saturating_add(TRIAL_MS) > now_ms
    }
}
