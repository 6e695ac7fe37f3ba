//! What became of every instance since the last turn, and why.

use std::net::SocketAddr;
use std::time::Duration;

use berth_cluster::ray::serve::{self, AppStatus, Application};
use berth_core::emit::ray as emit;
use berth_core::inventory::RunningInstance;
use berth_core::plan::{Plan, PlannedInstance};
use berth_core::reconcile::Phase;
use berth_core::spec::EngineKind;
use berth_engines::{Cause, Diagnosis, serve_replica, vllm};

use super::{PLACE_LIMIT_MS, RayController, blocking};
use crate::clock::now_ms;
use crate::controller::ControllerError;
use crate::event::EventKind;
use crate::journal::InstanceEntry;
use crate::probes::no_answer;

/// An engine that isn't ready after this long is stopped: beyond the module's own limit.
const START_LIMIT_MS: u64 = 16 * 60 * 1000;
/// A log that takes longer to read isn't waited for.
const LOG_LIMIT: Duration = Duration::from_secs(2);

impl RayController {
    /// Notes what became of every instance since the last turn.
    pub(super) async fn note(
        &mut self,
        plan: &Plan,
        running: &[RunningInstance],
    ) -> Result<(), ControllerError> {
        for planned in &plan.instances {
            let app = self.application(&planned.id).cloned();
            let is_own = |app: &Application| {
                let config = app.config.as_ref().and_then(emit::identity);
                config.is_some_and(|(owner, _, config)| {
                    owner == self.state_id && config == planned.config()
                })
            };
            let app = app.filter(is_own).filter(|app| app.status != AppStatus::Deleting);
            match (self.book.phase(planned), app) {
                (Some(Phase::Starting), Some(app)) => self.note_starting(planned, &app).await?,
                (Some(Phase::Ready), Some(app))
                    if !still_serves(&app) && self.book.is_on_trial(planned, now_ms()) =>
                {
                    self.book
                        .fail(planned, serve_replica::diagnose(planned.engine, &app.message))?;
                }
                (Some(Phase::Ready), Some(app)) if !still_serves(&app) => {
                    self.book.emit(&planned.id, EventKind::Recovering)?;
                    self.book.set_starting(planned)?;
                }
                (Some(Phase::Ready), None) => self.book.fail(planned, taken_away())?,
                (Some(Phase::Starting), None) => {
                    let since_ms = self.book.record(planned).map_or(0, |record| record.since_ms);
                    let is_late = now_ms().saturating_sub(since_ms) > PLACE_LIMIT_MS;
                    if is_late && self.has_node(planned) {
                        let diagnosis = self.no_place(planned, "");
                        self.book.fail(planned, diagnosis)?;
                    }
                }
                (None | Some(Phase::Backoff { .. }), Some(app))
                    if app.status != AppStatus::DeployFailed =>
                {
                    self.book.emit(&planned.id, EventKind::Adopted)?;
                    self.book.set_starting(planned)?;
                }
                _ => {}
            }
        }
        self.note_reported(plan).await?;
        self.probes.retain(|(id, config)| {
            plan.instance(id).is_some_and(|planned| planned.config() == *config)
        });
        // What runs as it is wanted is not being stopped, whatever ran before under its name.
        self.stops.retain(|id| running.iter().any(|one| one.id == *id && !plan.wants(one)));
        for id in self.book.unwanted(plan) {
            if !running.iter().any(|running| running.id == id) {
                self.book.forget(&id)?;
                self.book.emit(&id, EventKind::Stopped)?;
            }
        }
        Ok(())
    }

    pub(super) async fn note_starting(
        &mut self,
        planned: &PlannedInstance,
        app: &Application,
    ) -> Result<(), ControllerError> {
        let Some(entry) = self.book.entry(&planned.id).cloned() else { return Ok(()) };
        let waited = now_ms().saturating_sub(entry.record.since_ms);
        let has_place = app.replicas.iter().any(|replica| replica.node_id.is_some());
        // What was changed has to show that it works before requests go there.
        let answered = match is_up(app) && self.book.earlier(planned).is_some() {
            true => self.answered(planned).await,
            false => Some(true),
        };
        if is_up(app) && answered == Some(false) {
            self.book.fail(planned, no_answer())?;
        } else if is_up(app) && answered.is_none() {
            // The request is on its way.
        } else if is_up(app) {
            let rolled_back = self.book.is_rolled_back(&planned.id);
            let entry = InstanceEntry {
                record: entry.record.ready(now_ms()),
                diagnosis: entry.diagnosis.filter(|_| rolled_back),
                ..entry
            };
            self.book.set(&planned.id, entry)?;
            self.book.emit(&planned.id, EventKind::Ready { after_ms: waited })?;
        } else if app.status == AppStatus::DeployFailed {
            // Somebody may hold what it lacks: the next start goes by what is free then.
            self.looks_again = true;
            self.book.fail(planned, serve_replica::diagnose(planned.engine, &app.message))?;
        } else if !has_place && waited > PLACE_LIMIT_MS {
            let diagnosis = self.no_place(planned, &app.message);
            if self.has_node(planned) {
                self.book.fail(planned, diagnosis)?;
            } else if entry.diagnosis.as_ref() != Some(&diagnosis) {
                // Ray starts it as soon as its machine is back: only why is noted.
                let entry = InstanceEntry { diagnosis: Some(diagnosis), ..entry };
                self.book.set(&planned.id, entry)?;
            }
        } else if waited > START_LIMIT_MS && planned.library.is_none() {
            // A pull takes as long as it takes; its module gives it up where nothing comes any more.
            self.book.fail(planned, serve_replica::diagnose(planned.engine, &app.message))?;
        }
        Ok(())
    }

    /// Notes what the log of a vLLM that has come up reports: one log a turn, and nobody waits for it. Of several ranks it
    /// isn't told whose a figure is.
    async fn note_reported(&mut self, plan: &Plan) -> Result<(), ControllerError> {
        let unread = |planned: &PlannedInstance| {
            let entry = self.book.entry(&planned.id)?;
            let replica = self.application(&planned.id)?.replica()?;
            let is_unread = planned.engine == EngineKind::Vllm
                && planned.shares.len() == 1
                && self.book.phase(planned) == Some(Phase::Ready)
                && entry.record.config == planned.config()
                && entry.reported.is_none()
                && self.read_logs.get(&planned.id) != Some(replica);
            is_unread.then(|| (planned.clone(), replica.clone(), entry.clone()))
        };
        let Some((planned, replica, entry)) = plan.instances.iter().find_map(unread) else {
            return Ok(());
        };
        self.read_logs.insert(planned.id.clone(), replica.clone());
        let (ray, id) = (self.ray.clone(), planned.id.0.clone());
        let log = blocking(move || Ok(serve::log(&ray, &id, &replica)));
        let Ok(Ok(Some(log))) = tokio::time::timeout(LOG_LIMIT, log).await else { return Ok(()) };
        if let Some(reported) = vllm::log::reported(&log) {
            self.book.set(&planned.id, InstanceEntry { reported: Some(reported), ..entry })?;
        }
        Ok(())
    }

    /// What came of asking a changed instance for one token; none while it is asked.
    async fn answered(&mut self, planned: &PlannedInstance) -> Option<bool> {
        let Ok(host) = planned.host.parse() else { return Some(true) };
        let address = SocketAddr::new(host, planned.port);
        let of = (planned.id.clone(), planned.config());
        self.probes.answer(&of, address, planned.served_name()).await
    }

    /// Ray shows a replica without a place as on its way for ever: what it lacks is found by looking.
    pub(super) fn no_place(&self, planned: &PlannedInstance, message: &str) -> Diagnosis {
        let node = self.inventory.nodes.iter().find(|node| node.name == planned.node);
        let (message, hint) = match node {
            None => (
                format!("{} is not in the cluster", planned.node),
                format!(
                    "bring {} back, or apply again: the plan then does without it",
                    planned.node
                ),
            ),
            Some(_) => (
                format!(
                    "Ray finds no room for {} GPUs on {}: {}",
                    planned.shares.len(),
                    planned.node,
                    self.trouble.as_deref().or(message.lines().last()).unwrap_or_default()
                ),
                format!("`berth doctor` shows who else holds GPUs of {}", planned.node),
            ),
        };
        Diagnosis { cause: Cause::CannotStart, message, hint, evidence: None }
    }
}

pub(super) fn is_up(app: &Application) -> bool {
    app.status == AppStatus::Running && app.replicas.iter().any(|one| one.state == "RUNNING")
}

/// Serve shows what nobody changed as on its way for a moment after a change of others, and a replica that is told
/// something (to sleep, to wake) as updating until it has done it.
pub(super) fn still_serves(app: &Application) -> bool {
    let is_ill = matches!(app.status, AppStatus::Unhealthy | AppStatus::DeployFailed);
    let is_there = |state: &str| matches!(state, "RUNNING" | "UPDATING");
    !is_ill && app.replicas.iter().any(|one| is_there(&one.state))
}

pub(super) fn taken_away() -> Diagnosis {
    Diagnosis {
        cause: Cause::Killed,
        message: "its application is no longer there: somebody else took it away".to_owned(),
        hint: "whoever deploys to this Serve must keep the applications that are there".to_owned(),
        evidence: None,
    }
}
