//! One turn of the loop: observe, note what changed, decide, act.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::process::Child;
use std::sync::Arc;

use berth_cluster::local::{SpawnError, StateDir, lock, owns_port, process};
use berth_core::inventory::{InstanceId, RunningInstance};
use berth_core::plan::{Plan, PlannedInstance};
use berth_core::reconcile::{self, Action, Phase, Record};
use berth_engines::{Cause, Diagnosis, ExitKind, Health, health, llama_server};
use tokio::sync::mpsc;

use crate::clock::now_ms;
use crate::crash;
use crate::event::{Event, EventKind};
use crate::journal::{InstanceEntry, Journal, JournalError, JournalledPlan};
use crate::log_file;
use crate::pulse::Pulse;
use crate::status::{InstanceStatus, status_of};
use crate::stops::{Patience, Step, Stops};

/// An engine that isn't ready after this long is stopped.
const START_LIMIT_MS: u64 = 15 * 60 * 1000;
/// Of an engine that had been ready, only the last lines of its log say why it ended.
const LAST_LINES: usize = 50;

/// Why a turn could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The journal can't be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A lock can't be taken.
    #[error("the state folder can't be locked")]
    Lock(#[source] io::Error),
}

/// Requests in flight on an instance, as the gateway counts them.
pub type InFlight = Arc<dyn Fn(&InstanceId) -> u64 + Send + Sync>;

/// The one actor on a state folder.
pub struct Controller {
    dir: StateDir,
    journal: Journal,
    state_id: String,
    in_flight: InFlight,
    events: mpsc::UnboundedSender<Event>,
    /// What the journal says, as of plan number `seq`.
    current: Option<JournalledPlan>,
    rollbacks: BTreeMap<InstanceId, PlannedInstance>,
    entries: BTreeMap<InstanceId, InstanceEntry>,
    /// The processes that were seen last.
    running: Vec<RunningInstance>,
    children: HashMap<u32, Child>,
    exits: HashMap<u32, ExitKind>,
    /// The process that each instance had last.
    pids: HashMap<InstanceId, u32>,
    stops: Stops,
    patience: Patience,
    pulse: Pulse,
    is_first_turn: bool,
    /// Held until the end.
    _lock: File,
}

/// What a turn came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// Whether there is nothing left to do or to wait for.
    pub is_settled: bool,
    /// Every instance of the plan.
    pub instances: Vec<InstanceStatus>,
}

impl Controller {
    /// Takes the state folder, or says `None` where another controller has it.
    ///
    /// # Errors
    /// Where the folder can't be used.
    pub fn open(
        dir: StateDir,
        in_flight: InFlight,
        events: mpsc::UnboundedSender<Event>,
    ) -> Result<Option<Self>, ControllerError> {
        let lock =
            lock::try_lock_patiently(&dir.controller_lock()).map_err(ControllerError::Lock)?;
        let Some(lock) = lock else { return Ok(None) };
        let journal = Journal::open(&dir.journal())?;
        Ok(Some(Self {
            state_id: journal.state_id()?,
            dir,
            journal,
            in_flight,
            events,
            current: None,
            rollbacks: BTreeMap::new(),
            entries: BTreeMap::new(),
            running: Vec::new(),
            children: HashMap::new(),
            exits: HashMap::new(),
            pids: HashMap::new(),
            stops: Stops::default(),
            patience: Patience::Drain,
            pulse: Pulse::default(),
            is_first_turn: true,
            _lock: lock,
        }))
    }

    /// The journal.
    pub fn journal_mut(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// How patient stops are from now on.
    pub fn set_patience(&mut self, patience: Patience) {
        self.patience = patience;
    }

    /// Asks everything that runs to end, without the journal: for when it can't be written.
    pub fn stop_without_journal(&mut self) {
        for instance in process::running(&self.state_id) {
            process::terminate(&instance);
        }
    }

    /// One turn. Call it again after a moment; nothing is lost between turns, and everything that
    /// matters is in the journal and the process table.
    ///
    /// # Errors
    /// Where the journal can't be used: nothing is done that could not be noted first.
    pub async fn turn(&mut self) -> Result<Turn, ControllerError> {
        self.reload()?;
        self.observe();
        if std::mem::take(&mut self.is_first_turn) {
            self.recover()?;
        }
        let plan = self.effective_plan();
        self.note_ends(&plan)?;
        self.note_found(&plan)?;
        self.note_ready(&plan).await?;
        self.note_lost(&plan).await?;
        self.roll_back(&plan)?;
        let plan = self.effective_plan();
        for action in reconcile::next_actions(&plan, &self.running, &self.records(), now_ms()) {
            match action {
                Action::Stop(instance) => self.stop(&instance)?,
                Action::Start(id) => self.start(&plan, &id)?,
            }
        }
        Ok(Turn {
            is_settled: reconcile::is_settled(&plan, &self.running, &self.records()),
            instances: self.statuses(&plan),
        })
    }

    /// Reads the plan anew where another one came into force.
    fn reload(&mut self) -> Result<(), ControllerError> {
        let seq = self.journal.current_seq()?;
        if self.current.as_ref().map(|current| current.seq) != seq || self.is_first_turn {
            self.current = self.journal.current()?;
            self.rollbacks = self.journal.rollbacks()?;
            self.entries = self.journal.instances()?;
        }
        Ok(())
    }

    fn effective_plan(&self) -> Plan {
        match &self.current {
            Some(current) => reconcile::with_rollbacks(&current.plan, &self.rollbacks),
            None => Plan::nothing(berth_core::spec::GatewaySpec::default(), None),
        }
    }

    fn records(&self) -> BTreeMap<InstanceId, Record> {
        self.entries.iter().map(|(id, entry)| (id.clone(), entry.record.clone())).collect()
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
        let plan = self.effective_plan();
        for planned in &plan.instances {
            let runs = self.find_running(planned).is_some();
            let record = self.record(planned);
            if runs && record.is_some() {
                self.emit(&planned.id, EventKind::Adopted)?;
            } else if !runs && record.is_some_and(|record| record.phase == Phase::Starting) {
                self.entries.remove(&planned.id);
                self.journal.forget_instance(&planned.id)?;
            }
        }
        Ok(())
    }

    /// What is recorded of an instance as it is planned.
    fn record(&self, planned: &PlannedInstance) -> Option<&Record> {
        let record = self.entries.get(&planned.id).map(|entry| &entry.record);
        record.filter(|record| record.config == planned.config())
    }

    fn find_running(&self, planned: &PlannedInstance) -> Option<&RunningInstance> {
        planned.find_in(&self.running)
    }

    /// Notes the instances whose processes have ended, and forgets those that nobody wants.
    fn note_ends(&mut self, plan: &Plan) -> Result<(), ControllerError> {
        for planned in &plan.instances {
            let phase = self.record(planned).map(|record| (record.phase, record.was_ready));
            let Some((Phase::Starting | Phase::Ready, was_ready)) = phase else { continue };
            if self.find_running(planned).is_none() {
                let exit = self.take_exit(&planned.id);
                let log = log_file::tail(&self.dir.log(&planned.id));
                let log = if was_ready { last_lines(&log) } else { &log };
                self.fail(planned, llama_server::diagnose(exit, log))?;
            }
        }
        let running = &self.running;
        self.stops.retain(|pid| running.iter().any(|running| running.pid == pid));
        let unwanted: Vec<InstanceId> = self
            .entries
            .keys()
            .filter(|id| plan.instance(id).is_none())
            .filter(|id| !self.running.iter().any(|running| running.id == **id))
            .cloned()
            .collect();
        for id in unwanted {
            self.entries.remove(&id);
            self.journal.forget_instance(&id)?;
            self.emit(&id, EventKind::Stopped)?;
        }
        Ok(())
    }

    /// How the instance's last process ended, if berth was its parent.
    fn take_exit(&mut self, id: &InstanceId) -> ExitKind {
        let pid = self.pids.remove(id);
        pid.and_then(|pid| self.exits.remove(&pid)).unwrap_or(ExitKind::Unseen)
    }

    /// Notes a failure. What would fail again in the same way is given up, but not an engine that
    /// has been ready: it is started again.
    fn fail(
        &mut self,
        planned: &PlannedInstance,
        diagnosis: Diagnosis,
    ) -> Result<(), ControllerError> {
        let Some(record) = self.record(planned) else { return Ok(()) };
        let now = now_ms();
        let record = record.failed(diagnosis.cause.is_permanent() && !record.was_ready, now);
        let retry_in_ms = match record.phase {
            Phase::Backoff { until_ms } => Some(until_ms.saturating_sub(now)),
            _ => None,
        };
        self.set(&planned.id, InstanceEntry::new(record, Some(diagnosis.clone())))?;
        self.emit(&planned.id, EventKind::Failed { diagnosis, retry_in_ms })
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
        self.fail(planned, diagnosis)
    }

    /// An instance that can't start as planned goes back to what it was when it was last ready,
    /// where that still fits beside the others.
    fn roll_back(&mut self, plan: &Plan) -> Result<(), ControllerError> {
        let Some(seq) = self.current.as_ref().map(|current| current.seq) else { return Ok(()) };
        for planned in &plan.instances {
            let gave_up = |record: &Record| record.phase == Phase::Failed && !record.was_ready;
            let id = &planned.id;
            if !self.record(planned).is_some_and(gave_up) || self.rollbacks.contains_key(id) {
                continue;
            }
            let proven = self.journal.proven(id)?;
            let Some(earlier) = proven.filter(|proven| proven.config() != planned.config()) else {
                continue;
            };
            let change = BTreeMap::from([(id.clone(), earlier.clone())]);
            if reconcile::keeps_budgets(&reconcile::with_rollbacks(plan, &change)) {
                crash::point();
                self.journal.set_rollback(seq, &earlier)?;
                self.rollbacks.insert(id.clone(), earlier);
                self.emit(id, EventKind::RolledBack)?;
            }
        }
        Ok(())
    }

    /// An engine that is there although nothing is recorded of it, or although its start was given
    /// up, is taken for starting.
    fn note_found(&mut self, plan: &Plan) -> Result<(), ControllerError> {
        for planned in &plan.instances {
            let phase = self.record(planned).map(|record| record.phase);
            let is_known = matches!(phase, Some(Phase::Starting | Phase::Ready | Phase::Failed));
            if is_known || self.find_running(planned).is_none() {
                continue;
            }
            self.emit(&planned.id, EventKind::Adopted)?;
            self.set_starting(planned)?;
        }
        Ok(())
    }

    /// Ends engines that were ready and no longer answer; they are started again as after any end.
    async fn note_lost(&mut self, plan: &Plan) -> Result<(), ControllerError> {
        let is_ready = |planned: &&PlannedInstance| {
            self.find_running(planned).is_some()
                && self.record(planned).is_some_and(|record| record.phase == Phase::Ready)
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
            let entry = self.entries.get(&planned.id).cloned();
            let Some(entry) = entry.filter(|entry| entry.record.phase == Phase::Starting) else {
                continue;
            };
            let waited = now_ms().saturating_sub(entry.record.since_ms);
            // An answer from somebody else's server on the same port counts for nothing.
            let pids = process::pids(&self.state_id, &planned.id);
            if owns_port(&pids, planned.port) && health::ask(planned.port).await == Health::Ready {
                let log = log_file::head(&self.dir.log(&planned.id));
                let rolled_back = self.rollbacks.contains_key(&planned.id);
                let entry = InstanceEntry {
                    record: entry.record.ready(now_ms()),
                    // Why it went back stays in sight.
                    diagnosis: entry.diagnosis.filter(|_| rolled_back),
                    reported: Some(llama_server::reported(&log)),
                    memory_when_ready: process::memory(&pids),
                };
                self.set(&planned.id, entry)?;
                self.journal.set_proven(planned)?;
                self.emit(&planned.id, EventKind::Ready { after_ms: waited })?;
            } else if waited > START_LIMIT_MS {
                self.give_up(planned, &running, not_ready_in_time(waited))?;
            }
        }
        Ok(())
    }

    /// Journals the start, then starts.
    fn start(&mut self, plan: &Plan, id: &InstanceId) -> Result<(), ControllerError> {
        let Some(planned) = plan.instance(id) else { return Ok(()) };
        let forgotten = self.entries.get(id).cloned();
        self.set_starting(planned)?;
        crash::point();
        match process::spawn(planned, &self.state_id, &self.dir) {
            Ok((child, running)) => {
                crash::point();
                self.children.insert(running.pid, child);
                self.pids.insert(id.clone(), running.pid);
                self.running.push(running);
                self.emit(id, EventKind::Started)
            }
            Err(SpawnError::StillRuns(_)) => {
                // A process that is not in the table yet or not out of it: look again next turn.
                match forgotten {
                    Some(entry) => self.set(id, entry)?,
                    None => {
                        self.entries.remove(id);
                        self.journal.forget_instance(id)?;
                    }
                }
                self.scan();
                Ok(())
            }
            Err(error) => self.fail(planned, cannot_start(&error)),
        }
    }

    /// Takes a stop one step further.
    fn stop(&mut self, instance: &RunningInstance) -> Result<(), ControllerError> {
        let in_flight = (self.in_flight)(&instance.id);
        match self.stops.advance(instance.pid, in_flight, self.patience, now_ms()) {
            Step::Begin => self.emit(&instance.id, EventKind::Stopping)?,
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

    /// Notes that an instance is starting; why it failed before stays in sight.
    fn set_starting(&mut self, planned: &PlannedInstance) -> Result<(), ControllerError> {
        let before = self.entries.get(&planned.id);
        let record = before.map(|entry| &entry.record);
        let record = Record::starting(planned.config(), record, now_ms());
        let diagnosis = before.and_then(|entry| entry.diagnosis.clone());
        self.set(&planned.id, InstanceEntry::new(record, diagnosis))
    }

    fn set(&mut self, id: &InstanceId, entry: InstanceEntry) -> Result<(), ControllerError> {
        crash::point();
        let Some(seq) = self.current.as_ref().map(|current| current.seq) else { return Ok(()) };
        if self.journal.set_instance(seq, id, &entry)? {
            self.entries.insert(id.clone(), entry);
        } else {
            // Another plan is in force: the next turn reads it.
            self.current = None;
        }
        Ok(())
    }

    fn emit(&self, instance: &InstanceId, kind: EventKind) -> Result<(), ControllerError> {
        crash::point();
        let text = serde_json::to_string(&kind).unwrap_or_default();
        self.journal.note(instance, &text, now_ms())?;
        // Nobody may be listening; the journal has it.
        drop(self.events.send(Event { instance: instance.clone(), kind }));
        Ok(())
    }

    fn statuses(&self, plan: &Plan) -> Vec<InstanceStatus> {
        let status = |planned: &PlannedInstance| {
            let running = self.find_running(planned);
            let rolled_back = self.rollbacks.contains_key(&planned.id);
            status_of(planned, running, self.entries.get(&planned.id), rolled_back)
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
