//! Days of demand on two models that share two GPUs, with looks that are late and lost, and caches that hold half or
//! twice what is believed: nothing is adjusted that needn't be, nothing goes to and fro, and there is a pace.

use std::collections::{BTreeMap, VecDeque};

use berth_core::adjust::{Adjustment, Direction, Law, PACE_S, Wish, knob};
use berth_core::plan::Plan;
use berth_core::spec::{FlagValue, GatewaySpec, Spec};
use berth_core::watch::{EngineLook, Look};

use crate::chance::{Chance, live};
use crate::rolls::planned;

const SEEDS: u64 = 10_000;
const LOOK_S: u64 = 15;
const HOUR_S: u64 = 3600;
/// A restart with its load and capture.
const BOOT_S: u64 = 180;
const MOST: f64 = 0.95;
const MODELS: [&str; 2] = ["a", "b"];

fn spec() -> Spec {
    let model = |name: &str| {
        format!(
            "[models.{name}]\nsource = \"{name}\"\nengine = \"vllm\"\n[models.{name}.flags]\ngpu_memory_utilization = 0.4\n"
        )
    };
    let text = format!(
        "adjust = {{ mode = \"auto\", least = 0.2, most = 0.95 }}\n{}",
        MODELS.map(model).concat()
    );
    Spec::parse("days", &text).unwrap()
}

/// Two models, an instance of each on each of two GPUs.
struct World {
    spec: Spec,
    plan: Plan,
    law: Law,
    shares: BTreeMap<&'static str, f64>,
    demand: BTreeMap<&'static str, f64>,
    /// Tokens of a cache for each part of a GPU, and what a model takes beside its cache.
    tokens: f64,
    fixed: f64,
    noise: f64,
    put_off: u64,
    away_until_s: BTreeMap<&'static str, u64>,
    looks: VecDeque<Look>,
    adjusted: Vec<(u64, Adjustment)>,
}

impl World {
    fn new(chance: &mut Chance) -> Self {
        let instances = MODELS.iter().flat_map(|model| {
            (0..2).map(move |gpu| planned(format!("{model}-{gpu}"), model, 0, &[(gpu, 1)]))
        });
        let plan =
            Plan { instances: instances.collect(), ..Plan::nothing(GatewaySpec::default(), None) };
        Self {
            spec: spec(),
            plan,
            law: Law::default(),
            shares: MODELS.map(|model| (model, 0.4)).into(),
            demand: BTreeMap::new(),
            tokens: 100_000.0 * chance.within(0.5, 2.0),
            fixed: 0.15,
            noise: 0.0,
            put_off: 0,
            away_until_s: BTreeMap::new(),
            looks: VecDeque::new(),
            adjusted: Vec::new(),
        }
    }

    fn cache(&self, model: &str) -> f64 {
        (self.shares[model] - self.fixed) * self.tokens
    }

    /// How full a model's caches would be if they could.
    fn load(&self, model: &str) -> f64 {
        self.demand[model] / self.cache(model)
    }

    /// What engines say; demand is never quite what it is on the average.
    fn look(&mut self, now_s: u64, noise: f64) -> Look {
        let mut look = Look { at_ms: now_s * 1000, ..Look::default() };
        for instance in &self.plan.instances {
            let model = MODELS.iter().find(|model| **model == instance.model).unwrap();
            if self.away_until_s.get(model).is_some_and(|until| *until > now_s) {
                continue;
            }
            let load = self.load(model) * noise;
            self.put_off += u64::from(load > 1.2);
            look.engines.push(EngineLook {
                instance: instance.id.clone(),
                running: Some(10),
                waiting: Some(u64::from(load > 1.0)),
                kv_cache_usage: Some(load.min(1.0)),
                preemptions: Some(self.put_off),
                held: None,
                is_asleep: None,
            });
        }
        look
    }

    /// The planner: a wish, if both models keep within a GPU.
    fn carry_out(&mut self, wish: &Wish, now_s: u64) {
        let turns: Vec<Vec<(&str, Direction)>> = {
            let own = (wish.deployment.as_str(), wish.direction);
            let given =
                wish.givers.iter().map(|giver| vec![own, (giver.as_str(), Direction::Less)]);
            std::iter::once(vec![own]).chain(given).collect()
        };
        for turns in turns {
            let now = self.spec.clone().adjusted(&self.plan.adjustments);
            let change = |(name, direction): &(&str, Direction)| {
                let of =
                    |spec: &Spec| spec.deployments.iter().find(|one| one.name == *name).cloned();
                let (before, now) = (of(&self.spec)?, of(&now)?);
                let flags = knob::turn(&before, &now.flags, *direction, 1, &self.spec.adjust)?;
                let (deployment, why) = ((*name).to_owned(), wish.why.clone());
                Some(Adjustment { deployment, flags, why, at_ms: now_s * 1000 })
            };
            let Some(changes) = turns.iter().map(change).collect::<Option<Vec<_>>>() else {
                continue;
            };
            let mut shares = self.shares.clone();
            for one in &changes {
                let FlagValue::Float(share) = one.flags[0].to else { continue };
                *shares.get_mut(one.deployment.as_str()).unwrap() = share;
            }
            if shares.values().sum::<f64>() > MOST {
                continue;
            }
            self.shares = shares;
            for one in changes {
                let model = MODELS.iter().find(|model| **model == one.deployment).unwrap();
                self.away_until_s.insert(model, now_s + BOOT_S);
                self.plan.adjustments.retain(|old| old.deployment != one.deployment);
                self.plan.adjustments.push(one.clone());
                self.adjusted.push((now_s, one));
            }
            return;
        }
    }

    /// Lives until a time; looks come as late as they do, and three of ten are lost.
    fn live(&mut self, from_s: u64, until_s: u64, late_s: u64, chance: &mut Chance) {
        for now_s in (from_s..until_s).step_by(LOOK_S as usize) {
            let look = self.look(now_s, chance.within(1.0 - self.noise, 1.0 + self.noise));
            self.looks.push_back(look);
            let is_there =
                self.looks.front().is_some_and(|look| look.at_ms / 1000 + late_s <= now_s);
            let Some(look) = is_there.then(|| self.looks.pop_front()).flatten() else { continue };
            if chance.is(30) {
                continue;
            }
            // The law's time is that of the look.
            if let Some(wish) = self.law.step(&self.plan, &look, &[], &[]) {
                self.carry_out(&wish, look.at_ms / 1000);
            }
        }
    }

    fn directions(&self, model: &str) -> Vec<bool> {
        let share = |one: &Adjustment| match &one.flags[0].to {
            FlagValue::Float(share) => *share,
            _ => 0.0,
        };
        let own: Vec<f64> = std::iter::once(0.4)
            .chain(
                self.adjusted
                    .iter()
                    .filter(|(_, one)| one.deployment == model)
                    .map(|(_, one)| share(one)),
            )
            .collect();
        own.windows(2).map(|pair| pair[1] > pair[0]).collect()
    }
}

/// A day in which what is asked for has room enough on the average, and now and then not.
fn quiet(seed: u64) -> Result<(), String> {
    let mut chance = Chance(seed);
    let mut world = World::new(&mut chance);
    world.noise = 0.2;
    let late_s = chance.below(61);
    for model in MODELS {
        let load = chance.within(0.0, 0.85);
        world.demand.insert(model, load * world.cache(model));
    }
    world.live(0, 24 * HOUR_S, late_s, &mut chance);
    match world.adjusted.first() {
        Some(first) => Err(format!("{first:?}")),
        None => Ok(()),
    }
}

/// Ten hours in which demand changes once.
fn busy(seed: u64) -> Result<(), String> {
    let mut chance = Chance(seed);
    let mut world = World::new(&mut chance);
    let late_s = chance.below(61);
    let phases = 2;
    for phase in 0..phases {
        for model in MODELS {
            let load = chance.within(0.1, 2.0);
            world.demand.insert(model, load * (0.4 - world.fixed) * world.tokens);
        }
        let from_s = phase * 5 * HOUR_S;
        let before = world.adjusted.len();
        let pressed: Vec<&str> =
            MODELS.into_iter().filter(|model| world.load(model) > 1.0).collect();
        world.live(from_s, from_s + 5 * HOUR_S, late_s, &mut chance);
        let first_s = world.adjusted.get(before).map(|(at_s, _)| at_s - from_s.min(*at_s));
        // The other one's change, a cool-down from the phase before, and what is late come before.
        if phase == 0 && !pressed.is_empty() && first_s.is_none_or(|at_s| at_s > 15 * 60) {
            return Err(format!(
                "{pressed:?} waited, first change {first_s:?} of {:?}",
                world.demand
            ));
        }
        // Each has its turn: one that waits doesn't keep the other from its own.
        for model in &pressed {
            let own = world.adjusted.iter().find(|(_, one)| one.deployment == **model);
            if phase == 0 && own.is_none_or(|(at_s, _)| *at_s > 40 * 60) {
                return Err(format!("{model} waited: {:?}", world.adjusted));
            }
        }
        if phase == 0 && pressed.is_empty() && first_s.is_some() {
            return Err(format!("{:?} for nothing", world.adjusted));
        }
    }
    for pair in world.adjusted.windows(2) {
        let apart_s = pair[1].0 - pair[0].0;
        let is_one_change = apart_s == 0;
        if !is_one_change && apart_s < PACE_S {
            return Err(format!("two changes {apart_s} s apart"));
        }
    }
    for model in MODELS {
        let own: Vec<u64> = world
            .adjusted
            .iter()
            .filter(|(_, one)| one.deployment == model)
            .map(|(at_s, _)| *at_s)
            .collect();
        if own.windows(2).any(|pair| pair[1] - pair[0] < HOUR_S) {
            return Err(format!("{model} changed at {own:?}"));
        }
        let reversals =
            world.directions(model).windows(2).filter(|pair| pair[0] != pair[1]).count() as u64;
        if reversals > phases - 1 + 1 {
            return Err(format!("{model} went to and fro {reversals} times"));
        }
        if !(0.2..=MOST).contains(&world.shares[model]) {
            return Err(format!("{:?}", world.shares));
        }
    }
    Ok(())
}

#[test]
fn what_has_room_is_let_be_for_a_day() {
    live(SEEDS, quiet);
}

#[test]
fn what_has_too_little_gets_more_at_a_pace() {
    live(SEEDS, busy);
}
