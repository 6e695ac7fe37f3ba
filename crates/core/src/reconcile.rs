//! From what shall run and what runs to the next actions: pure, level-triggered, one step at a time.
//!
//! Nothing here remembers what it did before: the answer depends on the plan, the processes that
//! were seen, the record of each instance and the time, so it may be asked again after any crash.

pub mod roll;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::inventory::{DeviceId, InstanceId, RunningInstance};
use crate::plan::{Plan, PlannedInstance};
use crate::units::Bytes;

/// Failures after which an instance is left alone.
const MAX_FAILURES: u32 = 5;
/// An engine that was ready for this long has got over its earlier failures.
const STABLE_AFTER_MS: u64 = 10 * 60 * 1000;
/// The wait after the first failure; it doubles with each further one.
const FIRST_BACKOFF_MS: u64 = 1000;

/// An engine that runs otherwise than before is on trial for so long once it is ready: it gets few requests, and goes
/// back to what it was where it ends.
pub const TRIAL_MS: u64 = 30 * 1000;

/// What is known about an instance beyond its process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The configuration that this is about; a record of another one counts for nothing.
    pub config: Digest,
    /// Where the instance is in its life.
    pub phase: Phase,
    /// When it came there, in milliseconds since 1970.
    pub since_ms: u64,
    /// Failures in a row.
    pub failures: u32,
    /// Whether its engine has ever been ready.
    pub was_ready: bool,
}

/// Where an instance is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Its engine was started and is not ready yet.
    Starting,
    /// Its engine has been ready.
    Ready,
    /// Its engine failed and will be started again.
    Backoff {
        /// Not before this time.
        until_ms: u64,
    },
    /// Its engine failed for good; it is left alone until the next apply.
    Failed,
}

impl Record {
    /// The record of an instance whose engine is started now.
    pub fn starting(config: Digest, before: Option<&Self>, now_ms: u64) -> Self {
        let before = before.filter(|before| before.config == config);
        Self {
            failures: before.map_or(0, |before| before.failures),
            was_ready: before.is_some_and(|before| before.was_ready),
            config,
            phase: Phase::Starting,
            since_ms: now_ms,
        }
    }

    /// The record once the engine is ready.
    pub fn ready(&self, now_ms: u64) -> Self {
        Self { phase: Phase::Ready, since_ms: now_ms, was_ready: true, ..self.clone() }
    }

    /// The record after the engine has failed. A failure that must come again is final at once;
    /// others after five in a row. A row ends once an engine was ready for long.
    pub fn failed(&self, is_permanent: bool, now_ms: u64) -> Self {
        let was_stable =
            self.phase == Phase::Ready && now_ms.saturating_sub(self.since_ms) > STABLE_AFTER_MS;
        let failures = if was_stable { 1 } else { self.failures + 1 };
        let phase = if is_permanent || failures > MAX_FAILURES {
            Phase::Failed
        } else {
            Phase::Backoff { until_ms: now_ms + (FIRST_BACKOFF_MS << (failures - 1)) }
        };
        Self { phase, since_ms: now_ms, failures, ..self.clone() }
    }
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// End the processes of an instance that the plan doesn't have, or has otherwise.
    Stop(RunningInstance),
    /// Start an instance of the plan.
    Start(InstanceId),
}

/// What to do now. Stops come first and all at once: of what the plan doesn't have, has otherwise,
/// or what has failed and still runs; an instance starts only when nothing is
/// stopping or starting on any of its devices and it has room beside what runs there, in the plan's order.
pub fn next_actions(
    plan: &Plan,
    running: &[RunningInstance],
    records: &BTreeMap<InstanceId, Record>,
    now_ms: u64,
) -> Vec<Action> {
    let has_failed = |running: &RunningInstance| {
        let record = records.get(&running.id).filter(|record| record.config == running.config);
        record.is_some_and(|record| record.phase == Phase::Failed)
    };
    let is_wanted = |running: &&RunningInstance| plan.wants(running) && !has_failed(running);
    let (wanted, unwanted): (Vec<_>, Vec<_>) = running.iter().partition(is_wanted);
    let mut actions: Vec<Action> = unwanted.iter().map(|r| Action::Stop((*r).clone())).collect();
    if !unwanted.is_empty() {
        // Where the ones that go were is not in this plan: wait until their memory is free.
        return actions;
    }
    let is_running = |id: &InstanceId| wanted.iter().any(|running| running.id == *id);
    let mut busy: BTreeSet<(&str, &DeviceId)> = BTreeSet::new();
    for instance in plan.instances.iter().filter(|instance| is_running(&instance.id)) {
        if records.get(&instance.id).is_none_or(|record| record.phase != Phase::Ready) {
            busy.extend(devices(instance));
        }
    }
    let mut there: BTreeSet<&InstanceId> = wanted.iter().map(|running| &running.id).collect();
    for instance in plan.instances.iter().filter(|instance| !is_running(&instance.id)) {
        if may_start(instance, records, now_ms)
            && devices(instance).all(|d| !busy.contains(&d))
            && has_room(plan, instance, |id| there.contains(id))
        {
            busy.extend(devices(instance));
            there.insert(&instance.id);
            actions.push(Action::Start(instance.id.clone()));
        }
    }
    actions
}

/// Whether an instance keeps within its devices' budgets beside those of its plan that are there: on the way from one
/// plan to another not all may fit together.
fn has_room(
    plan: &Plan,
    instance: &PlannedInstance,
    is_there: impl Fn(&InstanceId) -> bool,
) -> bool {
    let others = || plan.instances.iter().filter(|one| one.id != instance.id && is_there(&one.id));
    devices(instance).all(|(node, device)| {
        let bytes = |one: &PlannedInstance| one.bytes_on(node, device);
        let of_budget = |one: &crate::plan::PlannedDevice| {
            bytes(instance) + others().map(bytes).sum::<Bytes>() <= one.budget
        };
        let here = plan.devices.iter().find(|one| one.node == node && one.device == *device);
        here.is_none_or(of_budget)
    })
}

fn devices(instance: &PlannedInstance) -> impl Iterator<Item = (&str, &DeviceId)> {
    instance.shares.iter().map(|share| (instance.node.as_str(), &share.device))
}

fn may_start(
    instance: &PlannedInstance,
    records: &BTreeMap<InstanceId, Record>,
    now_ms: u64,
) -> bool {
    let record = records.get(&instance.id).filter(|record| record.config == instance.config());
    match record.map(|record| record.phase) {
        Some(Phase::Failed) => false,
        Some(Phase::Backoff { until_ms }) => now_ms >= until_ms,
        // A record of a running engine whose process is gone: the loop notes the failure first.
        Some(Phase::Starting | Phase::Ready) => false,
        None => true,
    }
}

/// Whether there is nothing left to do or to wait for: every instance is ready or has failed for
/// good, and nothing runs that the plan doesn't have.
pub fn is_settled(
    plan: &Plan,
    running: &[RunningInstance],
    records: &BTreeMap<InstanceId, Record>,
) -> bool {
    let is_done = |instance: &PlannedInstance| {
        let config = instance.config();
        let runs = instance.find_in(running).is_some();
        let record = records.get(&instance.id).filter(|record| record.config == config);
        match record.map(|record| record.phase) {
            Some(Phase::Ready) => runs,
            Some(Phase::Failed) => !runs,
            _ => false,
        }
    };
    plan.instances.iter().all(is_done) && running.iter().all(|running| plan.wants(running))
}

/// The plan with instances that go back to an earlier configuration: where one could not start as
/// planned, the one before it runs on. A change that would not fit is left out.
pub fn with_rollbacks(plan: &Plan, rollbacks: &BTreeMap<InstanceId, PlannedInstance>) -> Plan {
    let mut effective = plan.clone();
    for instance in &mut effective.instances {
        if let Some(earlier) = rollbacks.get(&instance.id) {
            *instance = earlier.clone();
        }
    }
    effective
}

/// Whether `plan` keeps within the budget of every device of `devices`.
pub fn keeps_budgets(plan: &Plan) -> bool {
    plan.devices.iter().all(|device| {
        let on_device = |i: &PlannedInstance| i.bytes_on(&device.node, &device.device);
        plan.instances.iter().map(on_device).sum::<Bytes>() <= device.budget
    })
}

#[cfg(test)]
mod tests;
