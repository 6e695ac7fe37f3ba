//! What memory did meanwhile: the least that was free, the most that each instance held, who started anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use berth_control::clock::now_ms;
use berth_control::ray::Processes;
use berth_control::{Journal, watch};
use berth_core::inventory::{DeviceId, InstanceId};
use berth_core::plan::{Plan, PlannedDevice, PlannedInstance};
use berth_core::units::Bytes;
use berth_core::watch::{EngineLook, Look};
use berth_load::verdict::{DeviceSeen, InstanceSeen, MemorySeen};

use crate::failure::Failure;

/// Between two looks; a Ray cluster's dashboard has news every few seconds.
const LOOK: Duration = Duration::from_millis(500);
const LOOK_AT_RAY: Duration = Duration::from_secs(3);
/// What happened to instances that is looked through.
const EVENTS: u32 = 1000;
const DEATHS: u32 = 100;

/// What was seen so far.
pub(super) struct Watched {
    plan: Plan,
    state_id: String,
    processes: Processes,
    since_ms: u64,
    /// Those that saw every device of the plan.
    looks: u32,
    /// What could not be seen, in words.
    missing: BTreeSet<String>,
    /// The least free and the least headroom of each device.
    least: BTreeMap<(String, DeviceId), (u64, i64)>,
    most_held: BTreeMap<InstanceId, u64>,
    /// Requests that each engine put off, first and last.
    put_off: BTreeMap<InstanceId, (u64, u64)>,
    /// How often each engine that says what its model holds held nothing any more, and what it held last.
    dropped: BTreeMap<InstanceId, (u64, Bytes)>,
}

impl Watched {
    pub(super) fn new(plan: &Plan, state_id: String) -> Self {
        Self {
            plan: plan.clone(),
            state_id,
            processes: Processes::default(),
            since_ms: now_ms(),
            looks: 0,
            missing: BTreeSet::new(),
            least: BTreeMap::new(),
            most_held: BTreeMap::new(),
            put_off: BTreeMap::new(),
            dropped: BTreeMap::new(),
        }
    }

    /// Looks for as long as it is let, and more often at what may be gone for a moment only.
    pub(super) async fn look_on(&mut self) {
        let libraries = self.plan.instances.iter().filter(|one| one.library.is_some());
        let libraries: BTreeSet<InstanceId> = libraries.map(|one| one.id.clone()).collect();
        let mut looked = None;
        loop {
            if looked.is_none_or(|looked: Instant| looked.elapsed() >= self.pause()) {
                looked = Some(Instant::now());
                self.look().await;
            } else {
                for engine in watch::engines(&self.plan, &libraries).await {
                    self.add_engine(&engine);
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits as long as what happens takes to be seen, and looks again.
    pub(super) async fn look_once_more(&mut self) {
        tokio::time::sleep(2 * self.pause()).await;
        self.look().await;
    }

    fn pause(&self) -> Duration {
        if self.plan.ray.is_some() { LOOK_AT_RAY } else { LOOK }
    }

    async fn look(&mut self) {
        let look = watch::look(&self.state_id, &self.plan, &mut self.processes).await;
        self.add(&look);
    }

    fn add(&mut self, look: &Look) {
        // On a cluster what can't be seen is told with each look.
        if self.plan.ray.is_some() {
            self.missing.extend(look.notes.iter().cloned());
        }
        let mut planned = self.plan.devices.iter().filter(|one| one.planned.0 > 0);
        let sees_all = planned.all(|one| self.free(one, look).is_some());
        self.looks += u32::from(sees_all);
        for planned in self.plan.devices.iter().filter(|one| one.planned.0 > 0) {
            let Some(free) = self.free(planned, look) else { continue };
            let key = (planned.node.clone(), planned.device.clone());
            let least = self.least.entry(key).or_insert((u64::MAX, i64::MAX));
            *least = (least.0.min(free.0), least.1.min(free.1));
        }
        for instance in &self.plan.instances {
            if let Some(held) = held(&self.plan, instance, look) {
                let most = self.most_held.entry(instance.id.clone()).or_default();
                *most = (*most).max(held);
            }
        }
        for engine in &look.engines {
            self.add_engine(engine);
        }
    }

    fn add_engine(&mut self, engine: &EngineLook) {
        if let Some(held) = engine.held {
            count_drop(self.dropped.entry(engine.instance.clone()).or_insert((0, held)), held);
        }
        let Some(put_off) = engine.preemptions else { return };
        let span = self.put_off.entry(engine.instance.clone()).or_insert((put_off, put_off));
        // One that started anew counts from nothing.
        *span = if put_off < span.1 { (0, put_off) } else { (span.0, put_off) };
    }

    /// What is free of a device, and what is left of it beside the plan.
    fn free(&self, planned: &PlannedDevice, look: &Look) -> Option<(u64, i64)> {
        let seen = look.device(&planned.node, &planned.device)?;
        let free = seen.free()?.0;
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let headroom = signed(seen.total.0) - signed(seen.taken(planned.planned)?.0);
        Some((free, headroom))
    }

    /// All of it, with what the journal says of the time.
    pub(super) fn seen(&self, journal: &Journal) -> Result<MemorySeen, Failure> {
        let events = journal.events(EVENTS)?;
        let deaths = journal.deaths(DEATHS)?;
        let restarts = |id: &InstanceId| {
            let is_one = |what: &serde_json::Value| {
                what == "recovering" || what.get("failed").is_some() || what == "rolled_back"
            };
            let of = events.iter().filter(|event| event.instance == *id && is_one(&event.what));
            of.filter(|event| event.at_ms >= self.since_ms).count() as u32
        };
        let instance = |one: &PlannedInstance| InstanceSeen {
            id: one.id.0.clone(),
            model: one.model.clone(),
            planned_bytes: one.shares.iter().map(|share| share.footprint.total().0).sum(),
            most_held_bytes: self.most_held.get(&one.id).copied(),
            restarts: restarts(&one.id),
            preemptions: self.put_off.get(&one.id).map(|(first, last)| last - first),
            evictions: self.dropped.get(&one.id).map(|(times, _)| *times),
            died_of_memory: deaths
                .iter()
                .any(|death| death.instance == one.id && death.at_ms >= self.since_ms),
        };
        let device = |one: &PlannedDevice| {
            let least = self.least.get(&(one.node.clone(), one.device.clone()));
            DeviceSeen {
                node: one.node.clone(),
                device: one.device.0.clone(),
                total_bytes: one.total.0,
                planned_bytes: one.planned.0,
                planned_left_bytes: one.headroom().0,
                least_free_bytes: least.map(|(free, _)| *free),
                least_headroom_bytes: least.map(|(_, headroom)| *headroom),
            }
        };
        let used = self.plan.devices.iter().filter(|one| one.planned.0 > 0);
        Ok(MemorySeen {
            devices: used.map(device).collect(),
            instances: self.plan.instances.iter().map(instance).collect(),
            looks: self.looks,
            missing: self.missing.iter().cloned().collect(),
        })
    }
}

/// Counts one more where an engine holds nothing of what it held at the look before.
fn count_drop((times, before): &mut (u64, Bytes), held: Bytes) {
    *times += u64::from(*before > Bytes::ZERO && held == Bytes::ZERO);
    *before = held;
}

/// What an instance holds on all its devices. Where it isn't seen who holds what, all that is used of devices that
/// it has to itself: at most that.
fn held(plan: &Plan, instance: &PlannedInstance, look: &Look) -> Option<u64> {
    let on = |device: &DeviceId| {
        let seen = look.device(&instance.node, device)?;
        let is_alone = || {
            let mut others = plan.instances.iter().filter(|one| one.id != instance.id);
            !others.any(|one| one.node == instance.node && one.uses(device))
        };
        match seen.held_by(&instance.id) {
            Some(held) => Some(held.0),
            // More than its plan may be anybody's.
            None if is_alone() => {
                let most = instance.bytes_on(&instance.node, device);
                seen.used.filter(|used| *used <= most).map(|used| used.0)
            }
            None => None,
        }
    };
    instance.shares.iter().map(|share| on(&share.device)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_counted_once_each() {
        for (held, drops) in [
            (vec![], 0),
            (vec![5, 5], 0),
            // On a processor a model holds nothing of any GPU.
            (vec![0, 0, 0], 0),
            (vec![0, 5], 0),
            (vec![5, 0, 0], 1),
            (vec![5, 0, 4, 0, 4], 2),
        ] {
            let mut seen = (0, held.first().copied().map_or(Bytes::ZERO, Bytes));
            held.iter().for_each(|held| count_drop(&mut seen, Bytes(*held)));
            assert_eq!(seen.0, drops, "{held:?}");
        }
    }
}
