//! When an engine should have more memory, and when less.
//!
//! More, where for ten minutes its cache was full (the 95th percentile above .90) while requests waited, or it put
//! requests off again and again. Less, where others have taken what was planned, where it died of memory, or where a
//! neighbour wants more and its own cache was below .60 for half an hour. In between nothing happens. After a change
//! a deployment is let be for an hour, and there is one change in ten minutes on the whole cluster; what died of
//! memory gets no more for a day.
//!
//! Time is an argument, and what was seen may be late or missing: then there is less to go by, and nothing is wished.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::{Adjustment, PACE_S};
use crate::inventory::InstanceId;
use crate::plan::{Plan, PlannedDevice, PlannedInstance};
use crate::watch::{Alarm, AlarmKind, EngineLook, Look};

const MINUTE_MS: u64 = 60_000;
/// Between two samples of an engine.
const SAMPLE_MS: u64 = 15_000;
/// Pressure must last for so long, and slack.
const PRESSED_MS: u64 = 10 * MINUTE_MS;
const SLACK_MS: u64 = 30 * MINUTE_MS;
/// Of the samples that were due so many must be there.
const LEAST_SEEN: f64 = 0.5;
/// A cache that is this full at its 95th percentile has too little, and one below that has to spare.
const FULL: f64 = 0.90;
const SPARE: f64 = 0.60;
/// In so many of the samples of ten minutes requests were put off.
const PUT_OFF: usize = 3;
/// In such a share of them some waited.
const WAITED: f64 = 0.5;
/// Others' use must last for so long: what comes and goes is no reason to restart.
const CROWDED_MS: u64 = MINUTE_MS;
/// After a change a deployment is let be.
const COOL_DOWN_MS: u64 = 60 * MINUTE_MS;
/// What died of memory gets no more for so long.
pub const FREEZE_MS: u64 = 24 * 60 * MINUTE_MS;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// More memory.
    More,
    /// Less memory.
    Less,
}

/// A deployment that should have more memory or less.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The deployment.
    pub deployment: String,
    /// Which way.
    pub direction: Direction,
    /// Why, in words.
    pub why: String,
    /// Deployments on its devices that could give it room.
    pub givers: Vec<String>,
}

/// A deployment that gets no more memory for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// The deployment.
    pub deployment: String,
    /// Until when, in milliseconds since 1970.
    pub until_ms: u64,
}

/// What is remembered of engines: half an hour of samples of each.
#[derive(Clone, Debug, Default)]
pub struct Law {
    past: BTreeMap<InstanceId, VecDeque<Sample>>,
    /// When each deployment was last wished something for.
    wished_ms: BTreeMap<String, u64>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at_ms: u64,
    usage: Option<f64>,
    waiting: u64,
    /// Requests put off since the sample before.
    put_off: u64,
    preemptions: Option<u64>,
}

impl Law {
    /// Takes a look in, and says what should change.
    pub fn step(
        &mut self,
        plan: &Plan,
        look: &Look,
        alarms: &[Alarm],
        frozen: &[Freeze],
    ) -> Option<Wish> {
        self.past.retain(|id, _| plan.instance(id).is_some());
        for engine in &look.engines {
            self.add(engine, look.at_ms);
        }
        let now_ms = look.at_ms;
        if !is_due(plan.adjustments.iter(), PACE_S * 1000, now_ms) {
            return None;
        }
        let wish = self.crowded(plan, alarms, now_ms);
        let wish = wish.or_else(|| self.pressed(plan, frozen, now_ms))?;
        self.wished_ms.insert(wish.deployment.clone(), now_ms);
        Some(wish)
    }

    /// What should change after an engine has died of memory, however short the last change is ago.
    pub fn died(&mut self, plan: &Plan, dead: &InstanceId, now_ms: u64) -> Option<Wish> {
        let deployment = plan.instance(dead)?.deployment.clone();
        if self.is_told(&deployment, now_ms) {
            return None;
        }
        self.wished_ms.insert(deployment.clone(), now_ms);
        let why = format!("{dead} died of memory");
        Some(Wish { deployment, direction: Direction::Less, why, givers: Vec::new() })
    }

    /// Whether something was wished for a deployment just now: others may have their turn.
    fn is_told(&self, deployment: &str, now_ms: u64) -> bool {
        let last_ms = self.wished_ms.get(deployment);
        last_ms.is_some_and(|last_ms| last_ms.saturating_add(PACE_S * 1000) > now_ms)
    }

    fn add(&mut self, engine: &EngineLook, at_ms: u64) {
        let past = self.past.entry(engine.instance.clone()).or_default();
        let last = past.back().copied();
        if last.is_some_and(|last| at_ms < last.at_ms.saturating_add(SAMPLE_MS)) {
            return;
        }
        let before = last.and_then(|last| last.preemptions).zip(engine.preemptions);
        past.push_back(Sample {
            at_ms,
            usage: engine.kv_cache_usage,
            waiting: engine.waiting.unwrap_or(0),
            // An engine that started anew counts from nothing.
            put_off: before.map_or(0, |(before, now)| now.saturating_sub(before)),
            preemptions: engine.preemptions.or(last.and_then(|last| last.preemptions)),
        });
        while past.front().is_some_and(|first| first.at_ms.saturating_add(SLACK_MS) < at_ms) {
            past.pop_front();
        }
    }

    /// The samples of an instance over so long; none where too few are there.
    fn over(&self, id: &InstanceId, ms: u64, now_ms: u64) -> Option<Vec<&Sample>> {
        let all = self.past.get(id)?;
        let is_long = all.front()?.at_ms.saturating_add(ms) <= now_ms.saturating_add(SAMPLE_MS * 2);
        let found: Vec<_> =
            all.iter().filter(|one| one.at_ms.saturating_add(ms) >= now_ms).collect();
        let due = (ms / SAMPLE_MS) as f64;
        (is_long && found.len() as f64 >= due * LEAST_SEEN).then_some(found)
    }

    /// The deployment that has had too little for long, with those that could give.
    fn pressed(&self, plan: &Plan, frozen: &[Freeze], now_ms: u64) -> Option<Wish> {
        let is_frozen = |deployment: &str| {
            frozen.iter().any(|one| one.deployment == deployment && one.until_ms > now_ms)
        };
        for instance in &plan.instances {
            let deployment = &instance.deployment;
            let is_pressed =
                self.past.get(&instance.id).and_then(VecDeque::back).is_some_and(is_full);
            if !is_pressed
                || is_frozen(deployment)
                || self.is_told(deployment, now_ms)
                || !has_cooled(plan, deployment, now_ms)
            {
                continue;
            }
            let samples = self.over(&instance.id, PRESSED_MS, now_ms);
            if let Some(why) = samples.and_then(|samples| pressure(&samples)) {
                return Some(Wish {
                    deployment: deployment.clone(),
                    direction: Direction::More,
                    why: format!("{} {why}", instance.id),
                    givers: self.givers(plan, instance, &is_frozen, now_ms),
                });
            }
        }
        None
    }

    /// Deployments that share a device with an instance, and have had to spare for half an hour.
    fn givers(
        &self,
        plan: &Plan,
        taker: &PlannedInstance,
        is_frozen: &impl Fn(&str) -> bool,
        now_ms: u64,
    ) -> Vec<String> {
        let shares = |one: &&PlannedInstance| {
            one.node == taker.node
                && one.deployment != taker.deployment
                && one.shares.iter().any(|share| taker.uses(&share.device))
        };
        let near: BTreeSet<&str> =
            plan.instances.iter().filter(shares).map(|one| one.deployment.as_str()).collect();
        let has_spare = |one: &PlannedInstance| {
            let samples = self.over(&one.id, SLACK_MS, now_ms);
            samples.and_then(|samples| high(&samples)).is_some_and(|usage| usage < SPARE)
        };
        let can_give = |deployment: &&str| {
            let mut of = plan.instances.iter().filter(|one| one.deployment == *deployment);
            !is_frozen(deployment) && has_cooled(plan, deployment, now_ms) && of.all(has_spare)
        };
        near.into_iter().filter(can_give).map(str::to_owned).collect()
    }

    /// The deployment that has to make room for what others have taken, since it holds the most of the device.
    fn crowded(&self, plan: &Plan, alarms: &[Alarm], now_ms: u64) -> Option<Wish> {
        let lasts =
            |one: &&Alarm| one.kind == AlarmKind::NoRoom && one.since_ms + CROWDED_MS <= now_ms;
        alarms.iter().filter(lasts).find_map(|alarm| {
            let is_it = |device: &&PlannedDevice| {
                alarm.subject == format!("{} {}", device.node, device.device)
            };
            let device = plan.devices.iter().find(is_it)?;
            let bytes = |one: &&PlannedInstance| one.bytes_on(&device.node, &device.device);
            let there = plan.instances.iter().filter(|one| bytes(one).0 > 0);
            let largest = there.max_by_key(bytes)?;
            let is_told = self.is_told(&largest.deployment, now_ms);
            (!is_told).then(|| Wish {
                deployment: largest.deployment.clone(),
                direction: Direction::Less,
                why: format!("on {} {}", alarm.subject, alarm.message),
                givers: Vec::new(),
            })
        })
    }
}

/// Whether there was too little at one time.
fn is_full(sample: &Sample) -> bool {
    sample.put_off > 0 || sample.waiting > 0
}

/// What has been wrong over ten minutes, in words.
fn pressure(samples: &[&Sample]) -> Option<String> {
    let put_off = samples.iter().filter(|one| one.put_off > 0);
    let requests: u64 = put_off.clone().map(|one| one.put_off).sum();
    if put_off.count() >= PUT_OFF {
        return Some(format!("put {requests} requests off for want of cache in ten minutes"));
    }
    let waited = samples.iter().filter(|one| one.waiting > 0).count() as f64;
    let has_waited = waited >= samples.len() as f64 * WAITED;
    match high(samples) {
        Some(usage) if usage > FULL && has_waited => Some(format!(
            "had its cache {:.0} % full for ten minutes, and requests waited",
            usage * 100.0
        )),
        // llama-server doesn't say how full it is: all its slots are taken where requests wait.
        None if has_waited => {
            Some("had no slot for requests that waited, for ten minutes".to_owned())
        }
        _ => None,
    }
}

/// How full a cache was at its 95th percentile; none where it isn't said.
fn high(samples: &[&Sample]) -> Option<f64> {
    let mut usages: Vec<f64> = samples.iter().filter_map(|one| one.usage).collect();
    usages.sort_by(f64::total_cmp);
    usages.get((usages.len() * 95).div_ceil(100).checked_sub(1)?).copied()
}

/// Whether a deployment's instances can be away one after the other: none of the model's serves, nothing is asked of those
/// that do, or the others have room for what each has, and a tenth more.
pub fn can_do_without(
    plan: &Plan,
    deployment: &str,
    look: &Look,
    serves: impl Fn(&InstanceId) -> bool,
) -> bool {
    let of = |one: &&PlannedInstance| one.deployment == deployment;
    let Some(model) = plan.instances.iter().find(of).map(|one| &one.model) else { return true };
    let seen = |id: &InstanceId| look.engines.iter().find(|one| one.instance == *id);
    let serves = |one: &&PlannedInstance| one.model == *model && serves(&one.id);
    let all: Vec<_> = plan.instances.iter().filter(serves).collect();
    let engines: Option<Vec<&EngineLook>> = all.iter().map(|one| seen(&one.id)).collect();
    // What isn't seen may be busy.
    let Some(engines) = engines else { return false };
    let asked = |one: &&EngineLook| Some(one.running? + one.waiting?);
    if engines.iter().all(|one| asked(one) == Some(0)) {
        return true;
    }
    let usage: Option<f64> = engines.iter().map(|one| one.kv_cache_usage).sum();
    let others = engines.len().saturating_sub(1) as f64;
    usage.is_some_and(|usage| usage * 1.1 <= others)
}

/// Whether a deployment's last change is long enough ago.
fn has_cooled(plan: &Plan, deployment: &str, now_ms: u64) -> bool {
    let own = plan.adjustments.iter().filter(|one| one.deployment == deployment);
    is_due(own, COOL_DOWN_MS, now_ms)
}

fn is_due<'a>(
    mut adjustments: impl Iterator<Item = &'a Adjustment>,
    after_ms: u64,
    now_ms: u64,
) -> bool {
    adjustments.all(|one| one.at_ms.saturating_add(after_ms) <= now_ms)
}
