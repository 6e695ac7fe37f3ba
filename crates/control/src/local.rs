//! One turn of the loop on this machine: observe, note what changed, decide, act.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Child;

use berth_cluster::local::{SpawnError, StateDir, owns_port, process};
use berth_core::inventory::{InstanceId, RunningInstance};
use berth_core::plan::{Plan, PlannedInstance};
use berth_core::reconcile::{self, Action, Phase};
use berth_core::spec::GatewaySpec;
use berth_engines::{Cause, Diagnosis, ExitKind, Health, health, llama_server};

use crate::book::Book;
use crate::clock::now_ms;
use crate::controller::{ControllerError, InFlight, Turn};
use crate::crash;
use crate::event::EventKind;
use crate::journal::InstanceEntry;
use crate::log_file;
use crate::probes::{Probes, no_answer};
use crate::pulse::Pulse;
use crate::status::{InstanceStatus, status_of};
use crate::stops::{Patience, Step, Stops};

/// An engine that isn't ready after this long is stopped.
const START_LIMIT_MS: u64 = 15 * 60 * 1000;
/// Of an engine that had been ready, only the last lines of its log say why it ended.
const LAST_LINES: usize = 50;

/// The one actor on a state folder, with engines as processes of this machine.
pub(crate) struct LocalController {
    dir: StateDir,
    book: Book,
    state_id: String,
    in_flight: Option<InFlight>,
    /// The processes that were seen last.
    running: Vec<RunningInstance>,
    children: HashMap<u32, Child>,
    exits: HashMap<u32, ExitKind>,
    /// The process that each instance had last.
    pids: HashMap<InstanceId, u32>,
    /// By process.
    probes: Probes<u32>,
    stops: Stops<u32>,
    patience: Patience,
    pulse: Pulse,
    is_first_turn: bool,
    /// Held until the end.
    _lock: File,
}

impl LocalController {
    pub(crate) fn new(
        dir: StateDir,
        book: Book,
        lock: File,
        in_flight: Option<InFlight>,
    ) -> Result<Self, ControllerError> {
        Ok(Self {
            state_id: book.journal.state_id()?,
            dir,
            book,
            in_flight,
            running: Vec::new(),
            children: HashMap::new(),
            exits: HashMap::new(),
            pids: HashMap::new(),
            probes: Probes::default(),
            stops: Stops::default(),
            patience: Patience::Drain,
            pulse: Pulse::default(),
            is_first_turn: true,
            _lock: lock,
        })
    }

    /// What is known of the plan in force.
    pub(crate) fn book(&mut self) -> &mut Book {
        &mut self.book
    }

    /// How patient stops are from now on.
    pub(crate) fn set_patience(&mut self, patience: Patience) {
        self.patience = patience;
    }

    /// Asks everything that runs to end, without the journal: for when it can't be written.
    pub(crate) fn stop_without_journal(&mut self) {
        for instance in process::running(&self.state_id) {
            process::terminate(&instance);
        }
    }

    /// One turn. Call it again after a moment; nothing is lost between turns, and everything that
    /// matters is in the journal and the process table.
    ///
    /// # Errors
    /// Where the journal can't be used: nothing is done that could not be noted first.
    pub(crate) async fn turn(&mut self) -> Result<Turn, ControllerError> {
        self.book.reload(self.is_first_turn)?;
        self.observe();
        if std::mem::take(&mut self.is_first_turn) {
            self.recover()?;
        }
        let plan = self.plan_for_now();
        self.note_ends(&plan)?;
        self.note_found(&plan)?;
        self.note_ready(&plan).await?;
        self.note_lost(&plan).await?;
        self.book.note_proven(&plan, &self.running)?;
        self.book.roll_back()?;
        if self.book.is_stale() {
            // Another plan came into force meanwhile: the next turn reads it.
            let (externals, gateway) = (Vec::new(), GatewaySpec::default());
            let instances = self.statuses(&plan);
            return Ok(Turn { is_settled: false, instances, externals, gateway });
        }
        let plan = self.plan_for_now();
        for action in reconcile::next_actions(&plan, &self.running, &self.book.records(), now_ms())
        {
            match action {
                Action::Stop(instance) => self.stop(&instance)?,
                Action::Start(id) => self.start(&plan, &id)?,
            }
        }
        Ok(Turn {
            is_settled: self.is_settled(),
            instances: self.statuses(&plan),
            externals: Vec::new(),
            gateway: GatewaySpec::default(),
        })
    }

    /// The plan for this turn: some of what is to change may serve as it is for now.
    fn plan_for_now(&self) -> Plan {
        let leaving = self.running.iter().filter(|one| self.stops.is_leaving(&one.pid));
        let leaving = leaving.map(|one| one.id.clone()).collect();
        let target = self.book.effective_plan();
        self.book.plan_for_now(&target, &self.running, &leaving, &BTreeSet::new())
    }

    fn is_settled(&self) -> bool {
        let target = self.book.effective_plan();
        reconcile::is_settled(&target, &self.running, &self.book.records())
    }

    /// Looks for processes: at those that are known, and at all of them only where one is gone or
    /// none is known, since the process table may be long.
    fn observe(&mut self) {
        for (pid, child) in &mut self.children {
            if let Ok(Some(status)) = child.try_wait() {
                self.exits.insert(*pid, ExitKind::from(status));
            }
        }
        self.children.retain(|pid, _| !self.exits.contains_key(pid));
        let all_alive = self.running.iter().all(process::is_alive);
        if self.is_first_turn || !all_alive {
            self.scan();
        }
    }

    /// Reads the process table. What is known and alive stays, whatever the table shows of it.
    fn scan(&mut self) {
        let found = process::running(&self.state_id);
        self.running.retain(process::is_alive);
        let is_new = |found: &RunningInstance| self.running.iter().all(|r| r.pid != found.pid);
        let new: Vec<_> = found.into_iter().filter(is_new).collect();
        self.running.extend(new);
        self.pids.extend(self.running.iter().map(|running| (running.id.clone(), running.pid)));
    }

    /// After a start of berth: what runs is adopted. An engine that was being started when the
    /// earlier berth ended, and that is not there, is simply started again.
    fn recover(&mut self) -> Result<(), ControllerError> {
        let plan = self.book.effective_plan();
        for planned in &plan.instances {
            let runs = self.find_running(planned).is_some();
            let record = self.book.record(planned);
            if runs && record.is_some() {
                self.book.emit(&planned.id, EventKind::Adopted)?;
            } else if !runs && record.is_some_and(|record| record.phase == Phase::Starting) {
                self.book.forget(&planned.id)?;
            }
        }
        Ok(())
    }

    fn find_running(&self, planned: &PlannedInstance) -> Option<&RunningInstance> {
        planned.find_in(&self.running)
    }

    /// Notes the instances whose processes have ended, and forgets those that nobody wants.
    fn note_ends(&mut self, plan: &Plan) -> Result<(), ControllerError> {
        for planned in &plan.instances {
            let phase = self.book.record(planned).map(|record| (record.phase, record.was_ready));
            let Some((Phase::Starting | Phase::Ready, was_ready)) = phase else { continue };
            if self.find_running(planned).is_none() {
                let exit = self.take_exit(&planned.id);
                let log = log_file::tail(&self.dir.log(&planned.id));
                let log = if was_ready { last_lines(&log) } else { &log };
                self.book.fail(planned, llama_server::diagnose(exit, log))?;
            }
        }
        let running = &self.running;
        self.probes.retain(|pid| running.iter().any(|one| one.pid == *pid));
        // What runs as it is wanted is not being stopped, whatever was wanted before.
        self.stops.retain(|pid| running.iter().any(|one| one.pid == *pid && !plan.wants(one)));
        for id in self.book.unwanted(plan) {
            if !self.running.iter().any(|running| running.id == id) {
                self.book.forget(&id)?;
                self.book.emit(&id, EventKind::Stopped)?;
            }
        }
        Ok(())
    }

    /// How the instance's last process ended, if berth was its parent.
    fn take_exit(&mut self, id: &InstanceId) -> ExitKind {
        let pid = self.pids.remove(id);
        pid.and_then(|pid| self.exits.remove(&pid)).unwrap_or(ExitKind::Unseen)
    }

    /// Ends an engine, and notes why.
    fn give_up(
        &mut self,
        planned: &PlannedInstance,
        running: &RunningInstance,
        diagnosis: Diagnosis,
    ) -> Result<(), ControllerError> {
        process::kill(running);
        self.running.retain(|other| other.pid != running.pid);
        Ok(self.book.fail(planned, diagnosis)?)
    }

    /// An engine that is there although nothing is recorded of it, or although its start was given
    /// up, is taken for starting.
    fn note_found(&mut self, plan: &Plan) -> Result<(), ControllerError> {
        for planned in &plan.instances {
            let phase = self.book.phase(planned);
            let is_known = matches!(phase, Some(Phase::Starting | Phase::Ready | Phase::Failed));
            if is_known || self.find_running(planned).is_none() {
                continue;
            }
            self.book.emit(&planned.id, EventKind::Adopted)?;
            self.book.set_starting(planned)?;
        }
        Ok(())
    }

    /// Ends engines that were ready and no longer answer; they are started again as after any end.
    async fn note_lost(&mut self, plan: &Plan) -> Result<(), ControllerError> {
        let is_ready = |planned: &&PlannedInstance| {
            self.find_running(planned).is_some() && self.book.phase(planned) == Some(Phase::Ready)
        };
        let ready = plan.instances.iter().filter(is_ready);
        let ready: Vec<_> = ready.map(|planned| (planned.id.clone(), planned.port)).collect();
        for id in self.pulse.beat(&ready, now_ms()).await {
            let Some(planned) = plan.instance(&id) else { continue };
            if let Some(running) = self.find_running(planned).cloned() {
                self.give_up(planned, &running, unresponsive())?;
            }
        }
        Ok(())
    }

    /// Asks the engines that are starting whether they are ready, and reads what they logged.
    async fn note_ready(&mut self, plan: &Plan) -> Result<(), ControllerError> {
        for planned in &plan.instances {
            let Some(running) = self.find_running(planned).cloned() else { continue };
            let entry = self.book.entry(&planned.id).cloned();
            let Some(entry) = entry.filter(|entry| entry.record.phase == Phase::Starting) else {
                continue;
            };
            let waited = now_ms().saturating_sub(entry.record.since_ms);
            // An answer from somebody else's server on the same port counts for nothing.
            let pids = process::pids(&self.state_id, &planned.id);
            let is_ready =
                owns_port(&pids, planned.port) && health::ask(planned.port).await == Health::Ready;
            // What was changed has to show that it works before requests go there.
            let is_changed = self.book.earlier(planned).is_some();
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, planned.port));
            let name = planned.served_name();
            let probed = match is_ready && is_changed {
                true => self.probes.answer(&running.pid, address, name).await,
                false => None,
            };
            if probed == Some(false) {
                self.give_up(planned, &running, no_answer())?;
            } else if is_ready && is_changed && probed.is_none() {
                // The probe is on its way.
            } else if is_ready {
                let log = log_file::head(&self.dir.log(&planned.id));
                let rolled_back = self.book.is_rolled_back(&planned.id);
                let entry = InstanceEntry {
                    record: entry.record.ready(now_ms()),
                    // Why it went back stays in sight.
                    diagnosis: entry.diagnosis.filter(|_| rolled_back),
                    reported: Some(llama_server::reported(&log)),
                    memory_when_ready: process::memory(&pids),
                };
                self.book.set(&planned.id, entry)?;
                self.book.emit(&planned.id, EventKind::Ready { after_ms: waited })?;
            } else if waited > START_LIMIT_MS {
                self.give_up(planned, &running, not_ready_in_time(waited))?;
            }
        }
        Ok(())
    }

    /// Journals the start, then starts.
    fn start(&mut self, plan: &Plan, id: &InstanceId) -> Result<(), ControllerError> {
        let Some(planned) = plan.instance(id) else { return Ok(()) };
        let forgotten = self.book.entry(id).cloned();
        self.book.set_starting(planned)?;
        crash::point();
        match process::spawn(planned, &self.state_id, &self.dir) {
            Ok((child, running)) => {
                crash::point();
                self.children.insert(running.pid, child);
                self.pids.insert(id.clone(), running.pid);
                self.running.push(running);
                Ok(self.book.emit(id, EventKind::Started)?)
            }
            Err(SpawnError::StillRuns(_)) => {
                // A process that is not in the table yet or not out of it: look again next turn.
                match forgotten {
                    Some(entry) => self.book.set(id, entry)?,
                    None => self.book.forget(id)?,
                }
                self.scan();
                Ok(())
            }
            Err(error) => Ok(self.book.fail(planned, cannot_start(&error))?),
        }
    }

    /// Takes a stop one step further.
    fn stop(&mut self, instance: &RunningInstance) -> Result<(), ControllerError> {
        let in_flight = self.in_flight.as_ref().map_or(0, |count| count.in_flight(&instance.id));
        match self.stops.advance(&instance.pid, in_flight, self.patience, now_ms()) {
            Step::Begin => self.book.emit(&instance.id, EventKind::Stopping)?,
            Step::Ask => {
                crash::point();
                process::terminate(instance);
                crash::point();
            }
            Step::Kill => process::kill(instance),
            Step::Wait => {}
        }
        Ok(())
    }

    fn statuses(&self, plan: &Plan) -> Vec<InstanceStatus> {
        let status = |planned: &PlannedInstance| {
            let running = self.find_running(planned);
            let rolled_back = self.book.is_rolled_back(&planned.id);
            let is_on_trial = self.book.is_on_trial(planned, now_ms());
            let entry = self.book.entry(&planned.id);
            InstanceStatus { is_on_trial, ..status_of(planned, running, entry, rolled_back) }
        };
        plan.instances.iter().map(status).collect()
    }
}

/// The last lines of a log.
fn last_lines(log: &str) -> &str {
    let start = log.rmatch_indices('\n').nth(LAST_LINES).map_or(0, |(at, _)| at + 1);
    log.get(start..).unwrap_or(log)
}

fn unresponsive() -> Diagnosis {
    Diagnosis {
        cause: Cause::Unresponsive,
        message: "it no longer answered its health endpoint, and was ended".to_owned(),
        hint: "its earlier log in STATE/logs says what it was doing".to_owned(),
        evidence: None,
    }
}

fn not_ready_in_time(waited_ms: u64) -> Diagnosis {
    Diagnosis {
        cause: Cause::NotReadyInTime,
        message: format!("it was not ready after {} s", waited_ms / 1000),
        hint: "its log says what it was doing".to_owned(),
        evidence: None,
    }
}

fn cannot_start(error: &SpawnError) -> Diagnosis {
    let source = std::error::Error::source(error);
    Diagnosis {
        cause: Cause::CannotStart,
        message: error.to_string(),
        hint: "check the engine's binary in [engines] of the spec".to_owned(),
        evidence: source.map(ToString::to_string),
    }
}
