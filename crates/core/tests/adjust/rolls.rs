//! From one plan to another while engines start slowly, die, and fail for good, so that changes go back: what runs never holds more than a
//! device's budget, and of a model that has other instances one at a time is away.

use std::collections::{BTreeMap, BTreeSet};

use berth_core::Digest;
use berth_core::inventory::{DeviceId, InstanceId, ProcessMemory, RunningInstance};
use berth_core::memory::Footprint;
use berth_core::plan::{DeviceShare, Plan, PlannedDevice, PlannedInstance};
use berth_core::reconcile::roll::{Seen, goes_back, on_the_way};
use berth_core::reconcile::{Action, Phase, Record, is_settled, next_actions, with_rollbacks};
use berth_core::spec::{EngineKind, GatewaySpec};
use berth_core::units::Bytes;

use crate::chance::{Chance, live};

const SEEDS: u64 = 10_000;
const BUDGET: u64 = 100;
/// What can't run, where something did before it.
const BROKEN: &str = " broken";
const STEP_MS: u64 = 5000;
/// A roll that isn't over by then hangs.
const LONGEST_STEPS: u64 = 3000;

pub(crate) fn planned(
    id: String,
    model: &str,
    version: u64,
    shares: &[(usize, u64)],
) -> PlannedInstance {
    let share = |(gpu, bytes): &(usize, u64)| {
        let mut footprint = Footprint::default();
        footprint.exact("weights", Bytes(*bytes), String::new());
        let device = DeviceId(format!("gpu:{gpu}"));
        DeviceShare { device, footprint, resident_ready: Bytes(*bytes) }
    };
    PlannedInstance {
        id: InstanceId(id),
        deployment: model.to_owned(),
        model: model.to_owned(),
        engine: EngineKind::Vllm,
        engine_version: None,
        binary: "vllm".to_owned(),
        args: vec![format!("{version}")],
        environment: BTreeMap::new(),
        library: None,
        host: "127.0.0.1".to_owned(),
        port: 1,
        node: "n".to_owned(),
        folder: "/".to_owned(),
        shares: shares.iter().map(share).collect(),
        cache_tokens: None,
        weight: 1,
        sleep: None,
    }
}

/// A plan of up to three models on up to four GPUs that keeps the budgets; instances keep their places.
fn plan(chance: &mut Chance, version: u64, before: Option<&Plan>) -> Plan {
    let gpus = 4;
    let mut free = vec![BUDGET; gpus];
    let mut instances = Vec::new();
    for model in ["a", "b", "c"] {
        for number in 0..3 {
            let id = format!("{model}-{number}");
            let old = before.and_then(|plan| plan.instance(&InstanceId(id.clone())));
            if chance.is(if old.is_some() { 10 } else { 40 }) {
                continue;
            }
            let at: Vec<usize> = match old {
                Some(old) => {
                    old.shares.iter().map(|share| share.device.0[4..].parse().unwrap()).collect()
                }
                None => {
                    let first = chance.below(gpus as u64) as usize;
                    let wide = chance.is(30) && first + 1 < gpus;
                    if wide { vec![first, first + 1] } else { vec![first] }
                }
            };
            let wanted = 10 + chance.below(60);
            let bytes = at.iter().map(|gpu| free[*gpu]).min().unwrap().min(wanted);
            if bytes == 0 {
                continue;
            }
            at.iter().for_each(|gpu| free[*gpu] -= bytes);
            let version = if chance.is(70) { version } else { 0 };
            let shares: Vec<_> = at.into_iter().map(|gpu| (gpu, bytes)).collect();
            // What a configuration takes is part of it.
            let mut one = planned(id, model, version * 1000 + bytes, &shares);
            if before.is_some() && chance.is(10) {
                one.args[0].push_str(BROKEN);
            }
            instances.push(one);
        }
    }
    let device = |gpu| PlannedDevice {
        node: "n".to_owned(),
        device: DeviceId(format!("gpu:{gpu}")),
        total: Bytes(BUDGET),
        budget: Bytes(BUDGET),
        planned: Bytes::ZERO,
    };
    let devices = (0..gpus).map(device).collect();
    Plan { instances, devices, ..Plan::nothing(GatewaySpec::default(), None) }
}

/// The machine: processes as they are, and what is recorded of them.
#[derive(Default)]
struct World {
    running: Vec<(PlannedInstance, Digest, u64)>,
    records: BTreeMap<InstanceId, Record>,
    proven: BTreeMap<InstanceId, PlannedInstance>,
    leaving: BTreeMap<InstanceId, u64>,
    rollbacks: BTreeMap<InstanceId, PlannedInstance>,
    now_ms: u64,
}

impl World {
    fn seen(&self) -> Vec<RunningInstance> {
        let of = |(one, config, _): &(PlannedInstance, Digest, u64)| RunningInstance {
            id: one.id.clone(),
            config: config.clone(),
            node: one.node.clone(),
            pid: 1,
            pids: vec![1],
            group: 1,
            started_ticks: 1,
            memory: ProcessMemory::default(),
            doing: None,
        };
        self.running.iter().map(of).collect()
    }

    fn holds(&self, gpu: usize) -> u64 {
        let device = DeviceId(format!("gpu:{gpu}"));
        self.running.iter().map(|(one, ..)| one.bytes_on("n", &device).0).sum()
    }

    /// A turn as the controller makes it. Says whether all is done.
    fn turn(&mut self, target: &Plan, chance: &mut Chance) -> bool {
        self.now_ms += STEP_MS;
        let now_ms = self.now_ms;
        for (one, config, ready_ms) in &self.running {
            let record = self.records.get_mut(&one.id).unwrap();
            if record.config != *config {
                continue;
            }
            if record.phase == Phase::Starting && *ready_ms <= now_ms {
                *record = record.ready(now_ms);
            }
            if record.phase == Phase::Ready
                && !record.is_on_trial(now_ms)
                && self.proven.get(&one.id) != Some(one)
            {
                self.proven.insert(one.id.clone(), one.clone());
            }
        }
        self.end_broken();
        while let Some((_, back)) =
            goes_back(&with_rollbacks(target, &self.rollbacks), &self.records, &self.proven)
        {
            self.rollbacks.extend(back);
        }
        let target = &with_rollbacks(target, &self.rollbacks);
        self.note_ends(target);
        let leaving: BTreeSet<InstanceId> = self.leaving.keys().cloned().collect();
        let running = self.seen();
        let seen = Seen {
            proven: &self.proven,
            running: &running,
            records: &self.records,
            leaving: &leaving,
            absent: &BTreeSet::new(),
            now_ms,
        };
        let step = on_the_way(target, seen);
        for action in next_actions(&step, &running, &self.records, now_ms) {
            match action {
                Action::Stop(one) => {
                    self.leaving.entry(one.id).or_insert(now_ms + 1000 + chance.below(20_000));
                }
                Action::Start(id) => {
                    let planned = step.instance(&id).unwrap().clone();
                    let (config, before) = (planned.config(), self.records.get(&id));
                    let record = Record::starting(config.clone(), before, now_ms);
                    self.records.insert(id, record);
                    self.running.push((planned, config, now_ms + 2000 + chance.below(60_000)));
                }
            }
        }
        let leaving = &self.leaving;
        self.running.retain(|(one, ..)| leaving.get(&one.id).is_none_or(|until| *until > now_ms));
        let running = self.seen();
        self.leaving.retain(|id, _| running.iter().any(|one| one.id == *id));
        is_settled(target, &running, &self.records)
    }

    /// Engines that can't run end as they become ready, for good.
    fn end_broken(&mut self) {
        let (records, proven) = (&mut self.records, &self.proven);
        let now_ms = self.now_ms;
        self.running.retain(|(one, config, _)| {
            let record = records.get_mut(&one.id).unwrap();
            let is_broken = one.args[0].ends_with(BROKEN) && proven.contains_key(&one.id);
            let ends = is_broken && record.config == *config && record.phase == Phase::Ready;
            if ends {
                *record = record.failed(true, now_ms);
            }
            !ends
        });
        let running: BTreeSet<_> = self.running.iter().map(|(one, ..)| one.id.clone()).collect();
        self.leaving.retain(|id, _| running.contains(id));
    }

    /// What is recorded as running, as it is planned, and does not run.
    fn note_ends(&mut self, plan: &Plan) {
        let running = self.seen();
        for planned in plan.instances.iter().filter(|one| one.find_in(&running).is_none()) {
            let Some(record) = self.records.get_mut(&planned.id) else { continue };
            let ran = matches!(record.phase, Phase::Starting | Phase::Ready);
            if ran && record.config == planned.config() {
                *record = record.failed(false, self.now_ms);
            }
        }
    }

    /// An engine ends by itself.
    fn kill(&mut self, chance: &mut Chance) {
        if self.running.is_empty() {
            return;
        }
        let at = chance.below(self.running.len() as u64) as usize;
        let (gone, config, _) = self.running.remove(at);
        self.leaving.remove(&gone.id);
        let record = self.records.get_mut(&gone.id).unwrap();
        if record.config == config {
            *record = record.failed(false, self.now_ms);
        }
    }

    /// What is planned, recorded and runs, for whoever has to find out.
    fn shown(&self, target: &Plan) -> String {
        let shown = |one: &PlannedInstance| {
            let at: Vec<String> = one.shares.iter().map(|share| share.device.0.clone()).collect();
            let record = self.records.get(&one.id).map(|record| record.phase);
            let runs = self.running.iter().find(|(other, ..)| other.id == one.id);
            let runs = runs.map(|(other, ..)| other.args[0].clone());
            let was = self.proven.get(&one.id).map(|other| other.args[0].clone());
            let went_back = self.rollbacks.contains_key(&one.id);
            format!(
                "{}: {} on {at:?}, {record:?}, runs {runs:?}, was {was:?}, went back {went_back}",
                one.id, one.args[0]
            )
        };
        let lines: Vec<String> = target.instances.iter().map(shown).collect();
        format!("{}; leaving {:?}", lines.join("; "), self.leaving)
    }

    /// Instances of a model that serve.
    fn serving(&self, model: &str) -> usize {
        let serves = |one: &PlannedInstance, config: &Digest| {
            let record = &self.records[&one.id];
            record.phase == Phase::Ready
                && record.config == *config
                && !self.leaving.contains_key(&one.id)
        };
        let of = |(one, config, _): &&(PlannedInstance, Digest, u64)| {
            one.model == model && serves(one, config)
        };
        self.running.iter().filter(of).count()
    }
}

/// Two plans, one after the other.
fn roll(seed: u64) -> Result<(), String> {
    let mut chance = Chance(seed);
    let first = plan(&mut chance, 1, None);
    let second = plan(&mut chance, 2, Some(&first));
    let mut world = World::default();
    let is_rough = chance.is(50);
    for target in [&first, &second] {
        world.rollbacks.clear();
        let mut steps = 0;
        while !world.turn(target, &mut chance) {
            steps += 1;
            if steps > LONGEST_STEPS {
                return Err(format!("it hangs: {}", world.shown(target)));
            }
            if is_rough && chance.is(1) {
                world.kill(&mut chance);
            }
            let over = (0..4).find(|gpu| world.holds(*gpu) > BUDGET);
            if let Some(gpu) = over {
                return Err(format!("gpu:{gpu} holds {} at {steps}", world.holds(gpu)));
            }
        }
    }
    Ok(())
}

#[test]
fn memory_is_never_oversubscribed_on_the_way() {
    live(SEEDS, roll);
}

/// Nine instances on nine GPUs' worth of room, all of which change: one of a model is away at a time, and where the
/// plan has a pace, restarts keep to it.
fn adjusted(seed: u64) -> Result<(), String> {
    let mut chance = Chance(seed);
    let instances = |version: u64, chance: &mut Chance| -> Vec<PlannedInstance> {
        let models = ["a", "b", "c"].into_iter().enumerate();
        let all = models.flat_map(|(gpu, model)| (0..3).map(move |number| (gpu, model, number)));
        let one = |(gpu, model, number): (usize, &str, u64)| {
            let bytes = 10 + chance.below(23);
            planned(format!("{model}-{number}"), model, version * 1000 + bytes, &[(gpu, bytes)])
        };
        all.map(one).collect()
    };
    let empty = plan(&mut chance, 0, None);
    let first = Plan { instances: instances(1, &mut chance), ..empty.clone() };
    let pace_s = if chance.is(50) { 600 } else { 0 };
    let second = Plan { instances: instances(2, &mut chance), pace_s, ..empty };
    let mut world = World::default();
    while !world.turn(&first, &mut chance) {}
    world.now_ms += 1_000_000;
    let (mut steps, mut started_ms) = (0, None::<u64>);
    while !world.turn(&second, &mut chance) {
        steps += 1;
        if steps > LONGEST_STEPS {
            return Err("it hangs".to_owned());
        }
        for model in ["a", "b", "c"] {
            let away = 3 - world.serving(model);
            if away > 1 {
                return Err(format!("{away} of {model} are away at {steps}"));
            }
        }
        let starts = world.records.values().filter(|one| one.phase == Phase::Starting);
        let newest = starts.map(|one| one.since_ms).max().filter(|at| Some(*at) > started_ms);
        if let Some(at) = newest {
            let apart_ms = started_ms.map_or(u64::MAX, |before| at - before);
            if apart_ms < pace_s * 1000 {
                return Err(format!("two restarts are {apart_ms} ms apart"));
            }
            started_ms = Some(at);
        }
    }
    Ok(())
}

#[test]
fn one_of_a_model_changes_at_a_time() {
    live(1000, adjusted);
}
