//! Idle engines that sleep while others are short of memory, and wake when they are asked.
//!
//! What shall sleep is journalled before Serve is told, in the configs that it keeps: an engine that Serve starts again
//! meanwhile sleeps again.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use berth_core::adjust::Mode;
use berth_core::adjust::sleep::{Order, Rest, Seen, Short, orders};
use berth_core::emit::ray as emit;
use berth_core::inventory::{Device, DeviceId, InstanceId};
use berth_core::plan::{Plan, PlannedInstance};
use berth_core::reconcile::Phase;
use berth_core::units::Bytes;
use berth_core::watch::{AlarmKind, EngineLook};
use berth_engines::{health, metrics};
use serde_json::Value;

use super::RayController;
use crate::clock::now_ms;
use crate::controller::{ControllerError, InFlight};
use crate::event::EventKind;
use crate::watch::STALE_MS;

/// What is free counts for so long: others take and give meanwhile.
const JUST_NOW_MS: u64 = 500;

/// When an instance was last seen to be asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    ended: u64,
    since_ms: u64,
}

impl RayController {
    /// Decides what sleeps and what wakes, and journals it. Without a gateway nobody knows what is asked, and all
    /// stays as it is.
    pub(super) async fn rest(&mut self, plan: &Plan) -> Result<(), ControllerError> {
        let Some(in_flight) = self.in_flight.clone() else { return Ok(()) };
        if plan.instances.iter().all(|one| one.sleep.is_none()) && self.resting.is_empty() {
            return Ok(());
        }
        let before = self.resting.clone();
        let is_up = |id: &InstanceId, rest: &Rest| {
            plan.instance(id).is_some_and(|one| {
                one.config() == rest.config && self.book.phase(one) == Some(Phase::Ready)
            })
        };
        let kept = before.iter().filter(|(id, rest)| is_up(id, rest));
        self.resting = kept.map(|(id, rest)| (id.clone(), rest.clone())).collect();
        self.note_awake(plan).await?;
        for order in self.orders(plan, &in_flight)? {
            match order {
                Order::Sleep { instance, why } => self.lay_down(plan, &instance, why).await?,
                Order::Wake(id) => {
                    if let Some(rest) = self.resting.get_mut(&id) {
                        (rest.is_waking, rest.since_ms) = (true, now_ms());
                    }
                }
            }
        }
        if self.resting != before {
            self.book.journal.set_resting(&self.resting)?;
        }
        Ok(())
    }

    fn orders(&mut self, plan: &Plan, in_flight: &InFlight) -> Result<Vec<Order>, ControllerError> {
        let idle_since_ms = self.idle_since_ms(plan, in_flight);
        let models = plan.instances.iter().map(|one| &one.model);
        let waiting: BTreeMap<String, u64> =
            models.map(|model| (model.clone(), in_flight.waiting(model))).collect();
        let short = match plan.adjust.mode {
            Mode::Off => Vec::new(),
            Mode::Advise | Mode::Auto => self.short(plan)?,
        };
        let is_asked_for = |id: &InstanceId| {
            let one = plan.instance(id);
            one.and_then(|one| waiting.get(&one.model)).is_some_and(|count| *count > 0)
        };
        if self.resting.keys().any(is_asked_for) && !self.has_just_looked() {
            self.looked_at_ms = 0;
        }
        let free = self.free();
        Ok(orders(Seen {
            plan,
            idle_since_ms: &idle_since_ms,
            resting: &self.resting,
            waiting: &waiting,
            short: &short,
            free: &free,
            now_ms: now_ms(),
        }))
    }

    /// What is free of each device, as of just now; nothing is known where that is longer ago.
    fn free(&self) -> BTreeMap<(String, DeviceId), Bytes> {
        if !self.has_just_looked() {
            return BTreeMap::new();
        }
        let nodes = self.inventory.nodes.iter();
        let devices = nodes.flat_map(|node| node.devices.iter().map(|device| (&node.name, device)));
        let free = |(node, device): (&String, &Device)| {
            ((node.clone(), device.id.clone()), device.total - device.used_by_others)
        };
        devices.map(free).collect()
    }

    fn has_just_looked(&self) -> bool {
        now_ms().saturating_sub(self.looked_at_ms) <= JUST_NOW_MS
    }

    /// Since when nobody has asked the instances that serve and can be told to sleep.
    fn idle_since_ms(&mut self, plan: &Plan, in_flight: &InFlight) -> BTreeMap<InstanceId, u64> {
        let now_ms = now_ms();
        let mut idle = BTreeMap::new();
        for one in &plan.instances {
            let config = self.application(&one.id).and_then(|app| app.config.as_ref());
            let can_sleep = one.sleep.is_some() && config.is_some_and(emit::can_sleep);
            if !can_sleep || self.book.phase(one) != Some(Phase::Ready) {
                self.asked.remove(&one.id);
                continue;
            }
            let ended = in_flight.ended(&one.id);
            let asked = self.asked.entry(one.id.clone());
            let asked = asked.or_insert(Asked { ended, since_ms: now_ms });
            if in_flight.in_flight(&one.id) > 0 || asked.ended != ended {
                *asked = Asked { ended, since_ms: now_ms };
            } else {
                idle.insert(one.id.clone(), asked.since_ms);
            }
        }
        self.asked.retain(|id, _| plan.instance(id).is_some());
        idle
    }

    /// Devices whose memory doesn't do: starts wait for it, or it runs out.
    fn short(&self, plan: &Plan) -> Result<Vec<Short>, ControllerError> {
        let waiting = self.waiting.keys().filter_map(|id| plan.instance(id));
        let mut short: Vec<Short> = waiting
            .flat_map(|one| {
                let why = format!("{} can't start for want of it", one.id);
                let of = move |device: &DeviceId| Short {
                    node: one.node.clone(),
                    device: device.clone(),
                    why: why.clone(),
                };
                one.shares.iter().map(move |share| of(&share.device)).collect::<Vec<_>>()
            })
            .collect();
        let alarms = self.book.journal.alarms(now_ms().saturating_sub(STALE_MS))?;
        let is_of_room = |kind: AlarmKind| matches!(kind, AlarmKind::NoRoom | AlarmKind::RunsOut);
        for alarm in alarms.iter().filter(|alarm| is_of_room(alarm.kind)) {
            let subject = alarm.subject.split_once(' ');
            let Some((node, device)) = subject else { continue };
            let (node, device) = (node.to_owned(), DeviceId(device.to_owned()));
            short.push(Short { node, device, why: alarm.message.clone() });
        }
        Ok(short)
    }

    /// Has an instance sleep, unless its engine says that it works: not everybody comes by the gateway.
    async fn lay_down(
        &mut self,
        plan: &Plan,
        id: &InstanceId,
        why: String,
    ) -> Result<(), ControllerError> {
        let Some((one, address)) = plan.instance(id).and_then(with_address) else {
            return Ok(());
        };
        let said = metrics::ask(id, one.engine, address).await;
        let works = |look: &EngineLook| look.running != Some(0);
        if said.as_ref().is_none_or(works) {
            self.asked.remove(id);
            return Ok(());
        }
        let (config, since_ms) = (one.config(), now_ms());
        let rest = Rest { config, since_ms, why: why.clone(), is_waking: false };
        self.resting.insert(id.clone(), rest);
        Ok(self.book.emit(id, EventKind::Slept { why })?)
    }

    /// Forgets the rest of those that say that they are awake again.
    async fn note_awake(&mut self, plan: &Plan) -> Result<(), ControllerError> {
        let waking = self.resting.iter().filter(|(_, rest)| rest.is_waking);
        let waking: Vec<(InstanceId, u64)> =
            waking.map(|(id, rest)| (id.clone(), rest.since_ms)).collect();
        for (id, since_ms) in waking {
            let Some((_, address)) = plan.instance(&id).and_then(with_address) else { continue };
            if health::is_asleep(address).await == Some(false) {
                self.resting.remove(&id);
                let after_ms = now_ms().saturating_sub(since_ms);
                self.book.emit(&id, EventKind::Woke { after_ms })?;
            }
        }
        Ok(())
    }

    /// A config with its instance told whether to sleep.
    pub(super) fn with_sleep(&self, plan: &Plan, id: &InstanceId, config: Value) -> Value {
        let rests = self.resting.get(id).is_some_and(|rest| !rest.is_waking);
        let sleep = plan.instance(id).and_then(|one| one.sleep.as_ref());
        emit::with_sleep(config, sleep.filter(|_| rests).map_or(0, |sleep| sleep.level))
    }
}

fn with_address(one: &PlannedInstance) -> Option<(&PlannedInstance, SocketAddr)> {
    Some((one, SocketAddr::new(one.host.parse().ok()?, one.port)))
}
