//! Idle engines that sleep while others are short of memory, and wake when they are asked.
//!
//! What shall sleep is journalled before Serve is told, in the configs that it keeps: an engine that Serve starts again
//! meanwhile sleeps again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use berth_core::adjust::Mode;
use berth_core::adjust::sleep::{Order, Rest, Seen, Short, orders};
use berth_core::emit::ray as emit;
use berth_core::inventory::{Device, DeviceId, InstanceId, Node};
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

/// An engine has so long to say whether it works or sleeps: the loop must go on.
const ANSWER: Duration = Duration::from_millis(500);

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
        if plan.instances.iter().all(|one| one.sleep.is_none()) && self.resting.is_empty() {
            return Ok(());
        }
        let before = self.resting.clone();
        // What has ended, or is started otherwise, sleeps no more.
        let is_up = |id: &InstanceId| {
            plan.instance(id).is_some_and(|one| {
                self.rest_of(one).is_some() && self.book.phase(one) == Some(Phase::Ready)
            })
        };
        let kept = before.iter().filter(|(id, _)| is_up(id));
        self.resting = kept.map(|(id, rest)| (id.clone(), rest.clone())).collect();
        self.note_awake(plan).await?;
        if let Some(in_flight) = self.in_flight.clone() {
            self.carry_out(plan, &in_flight).await?;
        }
        if self.resting != before {
            self.book.journal.set_resting(&self.resting)?;
        }
        Ok(())
    }

    async fn carry_out(
        &mut self,
        plan: &Plan,
        in_flight: &InFlight,
    ) -> Result<(), ControllerError> {
        for order in self.orders(plan, in_flight)? {
            match order {
                Order::Sleep { instance, why } => self.lay_down(plan, &instance, why).await?,
                Order::Wake(id) => {
                    if let Some(rest) = self.resting.get_mut(&id) {
                        (rest.is_waking, rest.since_ms) = (true, now_ms());
                    }
                }
            }
        }
        Ok(())
    }

    /// The rest of an instance as it is planned.
    pub(super) fn rest_of(&self, planned: &PlannedInstance) -> Option<&Rest> {
        let rest = self.resting.get(&planned.id).filter(|_| planned.sleep.is_some());
        rest.filter(|rest| rest.config == planned.config())
    }

    fn orders(&mut self, plan: &Plan, in_flight: &InFlight) -> Result<Vec<Order>, ControllerError> {
        let idle_since_ms = self.idle_since_ms(plan, in_flight);
        // What reached an engine as it fell asleep waits there.
        let is_asked_for = |one: &&PlannedInstance| {
            in_flight.waiting(&one.model) > 0 || in_flight.in_flight(&one.id) > 0
        };
        let asked_for: BTreeSet<InstanceId> =
            plan.instances.iter().filter(is_asked_for).map(|one| one.id.clone()).collect();
        let short = match plan.adjust.mode {
            Mode::Off => Vec::new(),
            Mode::Advise | Mode::Auto => self.short(plan)?,
        };
        if self.resting.keys().any(|id| asked_for.contains(id)) {
            self.looks_again = true;
        }
        let (free, host_free) = (self.free(), self.host_free());
        Ok(orders(Seen {
            plan,
            idle_since_ms: &idle_since_ms,
            resting: &self.resting,
            asked_for: &asked_for,
            short: &short,
            free: &free,
            host_free: &host_free,
            now_ms: now_ms(),
        }))
    }

    /// What is free of each device as of this turn; before it others may have taken and given.
    fn free(&self) -> BTreeMap<(String, DeviceId), Bytes> {
        if !self.has_looked {
            return BTreeMap::new();
        }
        let nodes = self.inventory.nodes.iter();
        let devices = nodes.flat_map(|node| node.devices.iter().map(|device| (&node.name, device)));
        let free = |(node, device): (&String, &Device)| {
            ((node.clone(), device.id.clone()), device.total - device.used_by_others)
        };
        devices.map(free).collect()
    }

    /// What is free of nodes' host memory, where somebody has written it down.
    fn host_free(&self) -> BTreeMap<String, Bytes> {
        let nodes = self.inventory.nodes.iter();
        let host = |node: &Node| {
            let host = node.devices.iter().find(|device| !device.is_gpu())?;
            Some((node.name.clone(), host.total - host.used_by_others))
        };
        nodes.filter_map(host).collect()
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
        let asking = metrics::ask(id, one.engine, address);
        let said = tokio::time::timeout(ANSWER, asking).await.ok().flatten();
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
            let asking = tokio::time::timeout(ANSWER, health::is_asleep(address));
            if asking.await == Ok(Some(false)) {
                self.resting.remove(&id);
                let after_ms = now_ms().saturating_sub(since_ms);
                self.book.emit(&id, EventKind::Woke { after_ms })?;
            }
        }
        Ok(())
    }

    /// A config with its instance told whether to sleep.
    pub(super) fn with_sleep(&self, plan: &Plan, id: &InstanceId, config: Value) -> Value {
        let digest = emit::identity(&config).map(|(_, _, digest)| digest);
        let planned = plan.instance(id).filter(|one| Some(one.config()) == digest);
        // What is on its way out stays as it is: its memory may be another's by now.
        let Some(planned) = planned else { return config };
        let rests = self.rest_of(planned).is_some_and(|rest| !rest.is_waking);
        let level = planned.sleep.as_ref().filter(|_| rests).map_or(0, |sleep| sleep.level);
        emit::with_sleep(config, level)
    }
}

fn with_address(one: &PlannedInstance) -> Option<(&PlannedInstance, SocketAddr)> {
    Some((one, SocketAddr::new(one.host.parse().ok()?, one.port)))
}
