//! Which applications shall be there after a turn.

use std::collections::BTreeSet;

use berth_cluster::ray::serve::AppStatus;
use berth_core::emit::ray as emit;
use berth_core::inventory::{InstanceId, RunningInstance};
use berth_core::plan::{Plan, PlannedInstance};
use berth_core::reconcile::{self, Action, Phase};
use berth_core::scale::Count;
use berth_core::scale::flow::Asked;
use berth_engines::{Cause, Diagnosis};

use super::put::is_own;
use super::{PLACE_LIMIT_MS, RayController, going};
use crate::clock::now_ms;
use crate::controller::ControllerError;
use crate::event::EventKind;
use crate::stops::Step;

/// Applications that shall be there after a turn.
pub(super) struct Decided {
    /// All of them.
    pub(super) stays: BTreeSet<InstanceId>,
    /// Those that start anew.
    pub(super) starts: BTreeSet<InstanceId>,
}

impl RayController {
    /// Counts what is asked of deployments that are scaled, once a turn. Without a gateway nobody knows, and the numbers
    /// stay.
    pub(super) fn count_asked(&mut self, plan: &Plan) {
        let Some(in_flight) = &self.in_flight else { return };
        for (deployment, scaled) in &plan.scaled {
            let Some(count) = self.counts.get_mut(deployment) else { continue };
            let of = || plan.instances.iter().filter(|one| one.deployment == *deployment);
            let asked = Asked {
                in_flight: of().map(|one| in_flight.in_flight(&one.id)).sum(),
                waiting: of().next().map_or(0, |one| in_flight.waiting(&one.model)),
                ended: of().map(|one| in_flight.ended(&one.id)).sum(),
            };
            let (flow, now_ms) = (self.flows.entry(deployment.clone()).or_default(), now_ms());
            let target = scaled.scale.target_ongoing_requests;
            *count = count.next(flow.ongoing(asked, target, now_ms), scaled, now_ms);
        }
    }

    /// The plan with as many instances as are called for.
    pub(super) fn scaled(&mut self, plan: Plan, running: &[RunningInstance]) -> Plan {
        self.counts.retain(|deployment, _| plan.scaled.contains_key(deployment));
        self.flows.retain(|deployment, _| plan.scaled.contains_key(deployment));
        for (deployment, scaled) in &plan.scaled {
            let of = plan.instances.iter().filter(|one| one.deployment == *deployment);
            let runs = of.filter(|one| is_there(one, running)).count() as u32;
            let count =
                self.counts.entry(deployment.clone()).or_insert_with(|| Count::new(runs, scaled));
            let bounds = Count::new(count.wanted, scaled);
            *count = Count { wanted: bounds.wanted, ..*count };
        }
        let counts = self.counts.iter().map(|(name, count)| (name.clone(), count.wanted)).collect();
        plan.with_counts(&counts, |one| is_there(one, running))
    }

    /// Instances whose applications shall be there after this turn.
    pub(super) fn decide(
        &mut self,
        plan: &Plan,
        running: &[RunningInstance],
    ) -> Result<Decided, ControllerError> {
        let is_failing = |id: &InstanceId| {
            let phase = plan.instance(id).and_then(|planned| self.book.phase(planned));
            matches!(phase, Some(Phase::Backoff { .. } | Phase::Failed))
        };
        let is_going = |one: &RunningInstance| one.config == going();
        let counts = |one: &&RunningInstance| is_going(one) || !is_failing(&one.id);
        let running: Vec<RunningInstance> = running.iter().filter(counts).cloned().collect();
        let there = running.iter().filter(|one| !is_going(one)).map(|one| one.id.clone());
        // What is being started and isn't there yet was put in vain.
        let starting =
            plan.instances.iter().filter(|one| self.book.phase(one) == Some(Phase::Starting));
        let mut stays: BTreeSet<InstanceId> =
            there.chain(starting.map(|one| one.id.clone())).collect();
        let (mut starts, mut due) = (BTreeSet::new(), BTreeSet::new());
        for action in reconcile::next_actions(plan, &running, &self.book.records(), now_ms()) {
            match action {
                Action::Start(id) => {
                    let Some(planned) = plan.instance(&id) else { continue };
                    due.insert(id.clone());
                    // What ran under the name before is still on its way out.
                    let there = self.application(&id).map(|app| app.status);
                    if there == Some(AppStatus::Deleting) {
                        continue;
                    }
                    if self.is_taken(&id) {
                        self.book.set_starting(planned)?;
                        self.book.fail(planned, name_taken(&id))?;
                        continue;
                    }
                    match self.held(planned) {
                        None => {
                            self.waiting.remove(&id);
                            self.book.set_starting(planned)?;
                            self.book.emit(&id, EventKind::Started)?;
                            stays.insert(id.clone());
                            starts.insert(id);
                        }
                        Some(held) => self.wait_for_memory(planned, held)?,
                    }
                }
                Action::Stop(instance) if is_going(&instance) => {}
                Action::Stop(instance) => {
                    let in_flight =
                        self.in_flight.as_ref().map_or(0, |count| count.in_flight(&instance.id));
                    let now = now_ms();
                    match self.stops.advance(&instance.id, in_flight, self.patience, now) {
                        Step::Begin => self.book.emit(&instance.id, EventKind::Stopping)?,
                        // Whether Serve is asked or has been: it is left out from now on.
                        Step::Ask | Step::Kill => drop(stays.remove(&instance.id)),
                        Step::Wait if self.stops.is_asked(&instance.id) => {
                            stays.remove(&instance.id);
                        }
                        Step::Wait => {}
                    }
                }
            }
        }
        self.waiting.retain(|id, _| due.contains(id));
        Ok(Decided { stays, starts })
    }

    /// Whether somebody else has an application of an instance's name.
    pub(super) fn is_taken(&self, id: &InstanceId) -> bool {
        let config = self.application(id).map(|app| app.config.as_ref());
        config.is_some_and(|config| !config.is_some_and(|one| is_own(one, &self.state_id)))
    }

    /// What is in the way of a start on its GPUs, as far as Ray sees what they hold: after a stop memory is
    /// free only once the last process is gone, and others may have taken it.
    pub(super) fn held(&self, planned: &PlannedInstance) -> Option<String> {
        let node = self.inventory.nodes.iter().find(|node| node.name == planned.node)?;
        planned.shares.iter().find_map(|share| {
            let device = node.devices.iter().find(|device| device.id == share.device)?;
            let free = device.total - device.used_by_others;
            let needs = share.footprint.total();
            (needs > free).then(|| {
                format!(
                    "{} of {} has {free} free, and the plan needs {needs}",
                    device.id, node.name
                )
            })
        })
    }

    /// Waits for memory for a while, then gives the start up until it is tried again.
    pub(super) fn wait_for_memory(
        &mut self,
        planned: &PlannedInstance,
        held: String,
    ) -> Result<(), ControllerError> {
        // The next look at the nodes is due at once.
        self.looks_again = true;
        let since_ms = *self.waiting.entry(planned.id.clone()).or_insert_with(now_ms);
        if now_ms().saturating_sub(since_ms) > PLACE_LIMIT_MS {
            self.waiting.remove(&planned.id);
            self.book.set_starting(planned)?;
            self.book.fail(planned, no_memory(held))?;
        }
        Ok(())
    }
}

/// Whether an instance runs, as planned or otherwise.
fn is_there(planned: &PlannedInstance, running: &[RunningInstance]) -> bool {
    running.iter().any(|one| one.id == planned.id && one.config != going())
}

pub(super) fn no_memory(held: String) -> Diagnosis {
    Diagnosis {
        // Whoever holds it may let it go.
        cause: Cause::NotReadyInTime,
        message: held,
        hint: "`berth doctor` shows who else holds GPUs; `berth plan` counts what others hold"
            .to_owned(),
        evidence: None,
    }
}

pub(super) fn name_taken(id: &InstanceId) -> Diagnosis {
    Diagnosis {
        cause: Cause::CannotStart,
        message: format!("somebody else has an application {}", emit::name(id)),
        hint: "it may be another berth's, or put by hand: take it away there, or call the model otherwise"
            .to_owned(),
        evidence: None,
    }
}
