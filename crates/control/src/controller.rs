//! One turn of the loop: observe, note what changed, decide, act.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::process::Child;
use std::sync::Arc;

use berth_cluster::local::{SpawnError, StateDir, lock, owns_port, process};
use berth_cluster::procfs;
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
use crate::status::{InstanceStatus, status_of};

/// An engine that isn't ready after this long is stopped.
const START_LIMIT_MS: u64 = 15 * 60 * 1000;
/// Requests on an instance that is to stop may take this long to end.
const DRAIN_LIMIT_MS: u64 = 30 * 1000;
/// A process that was asked to end may take this long.
const STOP_LIMIT_MS: u64 = 10 * 1000;

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
    stopping: HashMap<u32, Stopping>,
    is_first_turn: bool,
    /// Held until the end.
    _lock: File,
}

/// How far a stop has come.
#[derive(Clone, Copy)]
enum Stopping {
    Draining { since_ms: u64 },
    Asked { since_ms: u64 },
    Killed,
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
            stopping: HashMap::new(),
            is_first_turn: true,
            _lock: lock,
        }))
    }

    /// The journal.
    pub fn journal_mut(&mut self) -> &mut Journal {
        &mut self.journal
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
        self.note_returns(&plan)?;
        self.note_ready(&plan).await?;
        let plan = self.effective_plan();
        for action in reconcile::next_actions(&plan, &self.running, &self.records(), now_ms()) {
            match action {
                Action::Stop(instance) => self.stop(&instance),
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
            None => Plan {
                parent: None,
                gateway: berth_core::spec::GatewaySpec::default(),
                instances: Vec::new(),
                devices: Vec::new(),
            },
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
            let entry = self.entries.get(&planned.id);
            let record = entry.map(|entry| &entry.record);
            let record = record.filter(|record| record.config == planned.config()).cloned();
            match (runs, record) {
                (true, Some(_)) => self.emit(&planned.id, EventKind::Adopted)?,
                (true, None) => {
                    self.emit(&planned.id, EventKind::Adopted)?;
                    let record = Record::starting(planned.config(), None, now_ms());
                    self.set(&planned.id, InstanceEntry::new(record, None))?;
                }
                (false, Some(record)) if record.phase == Phase::Starting => {
                    self.entries.remove(&planned.id);
                    self.journal.forget_instance(&planned.id)?;
                }
                (false, _) => {}
            }
        }
        Ok(())
    }

    fn find_running(&self, planned: &PlannedInstance) -> Option<&RunningInstance> {
        let config = planned.config();
        self.running.iter().find(|r| r.id == planned.id && r.config == config)
    }

    /// Notes the instances whose processes have ended, and forgets those that nobody wants.
    fn note_ends(&mut self, plan: &Plan) -> Result<(), ControllerError> {
        for planned in &plan.instances {
            let Some(entry) = self.entries.get(&planned.id) else { continue };
            let was_up = matches!(entry.record.phase, Phase::Starting | Phase::Ready);
            let same = entry.record.config == planned.config();
            if was_up && same && self.find_running(planned).is_none() {
                let exit = self.take_exit(&planned.id);
                let diagnosis = llama_server::diagnose(exit, &self.log_tail(&planned.id));
                self.fail(plan, planned, diagnosis)?;
            }
        }
        let gone: Vec<u32> = self
            .stopping
            .keys()
            .copied()
            .filter(|pid| !self.running.iter().any(|running| running.pid == *pid))
            .collect();
        for pid in gone {
            self.stopping.remove(&pid);
            self.exits.remove(&pid);
        }
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

    fn fail(
        &mut self,
        plan: &Plan,
        planned: &PlannedInstance,
        diagnosis: Diagnosis,
    ) -> Result<(), ControllerError> {
        let Some(entry) = self.entries.get(&planned.id).cloned() else { return Ok(()) };
        let now = now_ms();
        let record = entry.record.failed(diagnosis.cause.is_permanent(), now);
        let retry_in_ms = match record.phase {
            Phase::Backoff { until_ms } => Some(until_ms.saturating_sub(now)),
            _ => None,
        };
        let roll_back = record.phase == Phase::Failed && !record.was_ready;
        let entry = InstanceEntry::new(record, Some(diagnosis.clone()));
        self.set(&planned.id, entry)?;
        self.emit(&planned.id, EventKind::Failed { diagnosis, retry_in_ms })?;
        if roll_back { self.roll_back(plan, &planned.id) } else { Ok(()) }
    }

    /// An instance that could not start as planned goes back to what it was under the plan before,
    /// where that still fits beside the others.
    fn roll_back(&mut self, plan: &Plan, id: &InstanceId) -> Result<(), ControllerError> {
        let Some(current) = &self.current else { return Ok(()) };
        if self.rollbacks.contains_key(id) {
            return Ok(());
        }
        let before = self.journal.before(current.seq)?;
        let Some(earlier) = before.and_then(|before| before.plan.instance(id).cloned()) else {
            return Ok(());
        };
        let changed = plan.instance(id).is_some_and(|planned| planned.config() != earlier.config());
        let mut rollbacks = self.rollbacks.clone();
        rollbacks.insert(id.clone(), earlier.clone());
        let fits = reconcile::keeps_budgets(&reconcile::with_rollbacks(&current.plan, &rollbacks));
        if changed && fits {
            self.journal.set_rollback(current.seq, &earlier)?;
            self.rollbacks = rollbacks;
            self.emit(id, EventKind::RolledBack)?;
        }
        Ok(())
    }

    /// An engine that is there although its start was given up is taken for starting.
    fn note_returns(&mut self, plan: &Plan) -> Result<(), ControllerError> {
        for planned in &plan.instances {
            let Some(entry) = self.entries.get(&planned.id) else { continue };
            let gave_up = matches!(entry.record.phase, Phase::Backoff { .. });
            if gave_up && self.find_running(planned).is_some() {
                let record = Record::starting(planned.config(), Some(&entry.record), now_ms());
                let diagnosis = entry.diagnosis.clone();
                self.set(&planned.id, InstanceEntry::new(record, diagnosis))?;
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
            if owns_port(&running, planned.port) && health::ask(planned.port).await == Health::Ready
            {
                let entry = InstanceEntry {
                    record: entry.record.ready(now_ms()),
                    diagnosis: None,
                    reported: Some(llama_server::reported(&self.log_head(&planned.id))),
                    memory_when_ready: procfs::memory(running.pid),
                };
                self.set(&planned.id, entry)?;
                self.emit(&planned.id, EventKind::Ready { after_ms: waited })?;
            } else if waited > START_LIMIT_MS {
                process::kill(&running);
                self.running.retain(|other| other.pid != running.pid);
                self.fail(plan, planned, not_ready_in_time(waited))?;
            }
        }
        Ok(())
    }

    /// Journals the start, then starts.
    fn start(&mut self, plan: &Plan, id: &InstanceId) -> Result<(), ControllerError> {
        let Some(planned) = plan.instance(id) else { return Ok(()) };
        let before = self.entries.get(id);
        let record =
            Record::starting(planned.config(), before.map(|entry| &entry.record), now_ms());
        let diagnosis = before.and_then(|entry| entry.diagnosis.clone());
        let forgotten = before.cloned();
        self.set(id, InstanceEntry::new(record, diagnosis))?;
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
            Err(error) => self.fail(plan, planned, cannot_start(&error)),
        }
    }

    /// Takes a stop one step further: drain, ask, insist.
    fn stop(&mut self, instance: &RunningInstance) {
        let now = now_ms();
        let drained = (self.in_flight)(&instance.id) == 0;
        let next = match self.stopping.get(&instance.pid) {
            None => {
                drop(self.emit(&instance.id, EventKind::Stopping));
                Stopping::Draining { since_ms: now }
            }
            Some(Stopping::Draining { since_ms })
                if drained || now.saturating_sub(*since_ms) > DRAIN_LIMIT_MS =>
            {
                crash::point();
                process::terminate(instance);
                crash::point();
                Stopping::Asked { since_ms: now }
            }
            Some(Stopping::Asked { since_ms }) if now.saturating_sub(*since_ms) > STOP_LIMIT_MS => {
                process::kill(instance);
                Stopping::Killed
            }
            Some(stopping) => *stopping,
        };
        self.stopping.insert(instance.pid, next);
    }

    fn set(&mut self, id: &InstanceId, entry: InstanceEntry) -> Result<(), ControllerError> {
        crash::point();
        self.journal.set_instance(id, &entry)?;
        self.entries.insert(id.clone(), entry);
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

    /// The start of an instance's log: what it says about memory is there.
    fn log_head(&self, id: &InstanceId) -> String {
        log_file::head(&self.dir.log(id))
    }

    /// The end of an instance's log: why it ended is there.
    fn log_tail(&self, id: &InstanceId) -> String {
        log_file::tail(&self.dir.log(id))
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
