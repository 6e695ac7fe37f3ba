//! What the journal says of the plan in force, in memory: read anew when another plan comes into force,
//! written to the journal before anything is done.

use std::collections::{BTreeMap, BTreeSet};

use berth_core::inventory::{InstanceId, RunningInstance};
use berth_core::plan::{Plan, PlannedInstance};
use berth_core::reconcile::roll::{self, Seen, goes_back, on_the_way};
use berth_core::reconcile::{self, Phase, Record};
use berth_core::spec::{External, GatewaySpec};
use berth_engines::{Cause, Diagnosis};
use tokio::sync::mpsc;

use crate::clock::now_ms;
use crate::crash;
use crate::event::{Event, EventKind};
use crate::journal::{InstanceEntry, Journal, JournalError, JournalledPlan};

/// The plan in force, and what is known of its instances.
pub(crate) struct Book {
    pub(crate) journal: Journal,
    events: mpsc::UnboundedSender<Event>,
    /// What the journal says, as of plan number `seq`.
    current: Option<JournalledPlan>,
    /// Whether another plan came into force since it was read.
    is_stale: bool,
    rollbacks: BTreeMap<InstanceId, PlannedInstance>,
    /// Instances as they were last proven.
    proven: BTreeMap<InstanceId, PlannedInstance>,
    entries: BTreeMap<InstanceId, InstanceEntry>,
}

/// Failures in a row after which an engine whose log says that it wanted memory is left alone, though it had been
/// ready.
const MOST_DEATHS: u32 = 3;

fn is_a_loop(cause: Cause, after: &Record) -> bool {
    cause == Cause::OutOfMemory && after.failures >= MOST_DEATHS
}

impl Book {
    pub(crate) fn new(journal: Journal, events: mpsc::UnboundedSender<Event>) -> Self {
        let [rollbacks, proven] = [(); 2].map(|()| BTreeMap::new());
        let entries = BTreeMap::new();
        Self { journal, events, current: None, is_stale: false, rollbacks, proven, entries }
    }

    /// Reads the plan anew where another one came into force.
    pub(crate) fn reload(&mut self, must: bool) -> Result<(), JournalError> {
        let seq = self.journal.current_seq()?;
        if self.current.as_ref().map(|current| current.seq) != seq || must {
            self.current = self.journal.current()?;
            self.is_stale = false;
            self.rollbacks = self.journal.rollbacks()?;
            self.proven = self.journal.proven()?;
            self.entries = self.journal.instances()?;
        }
        Ok(())
    }

    /// Whether another plan came into force since this one was read.
    pub(crate) fn is_stale(&self) -> bool {
        self.is_stale
    }

    /// The plan in force, with what went back.
    pub(crate) fn effective_plan(&self) -> Plan {
        match &self.current {
            Some(current) => reconcile::with_rollbacks(&current.plan, &self.rollbacks),
            None => Plan::nothing(GatewaySpec::default(), None),
        }
    }

    /// Servers that the plan in force routes to and somebody else runs.
    pub(crate) fn external(&self) -> Vec<External> {
        self.current.as_ref().map(|current| current.plan.external.clone()).unwrap_or_default()
    }

    /// The gateway of the plan in force.
    pub(crate) fn gateway(&self) -> GatewaySpec {
        self.current.as_ref().map(|current| current.plan.gateway.clone()).unwrap_or_default()
    }

    pub(crate) fn records(&self) -> BTreeMap<InstanceId, Record> {
        self.entries.iter().map(|(id, entry)| (id.clone(), entry.record.clone())).collect()
    }

    pub(crate) fn entry(&self, id: &InstanceId) -> Option<&InstanceEntry> {
        self.entries.get(id)
    }

    /// What is recorded of an instance as it is planned.
    pub(crate) fn record(&self, planned: &PlannedInstance) -> Option<&Record> {
        let record = self.entries.get(&planned.id).map(|entry| &entry.record);
        record.filter(|record| record.config == planned.config())
    }

    /// Where an instance as it is planned is in its life.
    pub(crate) fn phase(&self, planned: &PlannedInstance) -> Option<Phase> {
        self.record(planned).map(|record| record.phase)
    }

    pub(crate) fn is_rolled_back(&self, id: &InstanceId) -> bool {
        self.rollbacks.contains_key(id)
    }

    /// Instances that something is recorded of and that a plan doesn't have.
    pub(crate) fn unwanted(&self, plan: &Plan) -> Vec<InstanceId> {
        let ids = self.entries.keys();
        ids.filter(|id| plan.instance(id).is_none()).cloned().collect()
    }

    /// Notes that an instance is starting; why it failed before stays in sight.
    pub(crate) fn set_starting(&mut self, planned: &PlannedInstance) -> Result<(), JournalError> {
        let before = self.entries.get(&planned.id);
        let record = before.map(|entry| &entry.record);
        let record = Record::starting(planned.config(), record, now_ms());
        let diagnosis = before.and_then(|entry| entry.diagnosis.clone());
        // What the same start reported once is in no log any more after a while.
        let alike = before.filter(|entry| entry.record.config == record.config);
        let reported = alike.and_then(|entry| entry.reported.clone());
        self.set(&planned.id, InstanceEntry { reported, ..InstanceEntry::new(record, diagnosis) })
    }

    pub(crate) fn set(
        &mut self,
        id: &InstanceId,
        entry: InstanceEntry,
    ) -> Result<(), JournalError> {
        crash::point();
        let Some(seq) = self.current.as_ref().map(|current| current.seq) else { return Ok(()) };
        if self.journal.set_instance(seq, id, &entry)? {
            self.entries.insert(id.clone(), entry);
        } else {
            // Another plan is in force: the next turn reads it.
            (self.current, self.is_stale) = (None, true);
        }
        Ok(())
    }

    pub(crate) fn forget(&mut self, id: &InstanceId) -> Result<(), JournalError> {
        self.entries.remove(id);
        self.journal.forget_instance(id)
    }

    /// Notes a failure. What would fail again in the same way is given up, but not an engine that
    /// has been ready: it is started again.
    pub(crate) fn fail(
        &mut self,
        planned: &PlannedInstance,
        diagnosis: Diagnosis,
    ) -> Result<(), JournalError> {
        let Some(record) = self.record(planned) else { return Ok(()) };
        let now = now_ms();
        let again = record.failed(false, now);
        let is_final = self.is_on_trial(planned, now)
            || diagnosis.cause.is_permanent()
                && (!record.was_ready || is_a_loop(diagnosis.cause, &again));
        let record = if is_final { record.failed(true, now) } else { again };
        let retry_in_ms = match record.phase {
            Phase::Backoff { until_ms } => Some(until_ms.saturating_sub(now)),
            _ => None,
        };
        self.set(&planned.id, InstanceEntry::new(record, Some(diagnosis.clone())))?;
        self.emit(&planned.id, EventKind::Failed { diagnosis, retry_in_ms })
    }

    /// What can't run as planned goes back.
    pub(crate) fn roll_back(&mut self) -> Result<(), JournalError> {
        let Some(seq) = self.current.as_ref().map(|current| current.seq) else { return Ok(()) };
        // What went back before counts for what comes next.
        while let Some((id, back)) =
            goes_back(&self.effective_plan(), &self.records(), &self.proven)
        {
            crash::point();
            self.journal.set_rollbacks(seq, &back)?;
            self.rollbacks.extend(back);
            self.emit(&id, EventKind::RolledBack)?;
        }
        Ok(())
    }

    /// An instance as it was last proven, where that is otherwise than it is planned.
    pub(crate) fn earlier(&self, planned: &PlannedInstance) -> Option<&PlannedInstance> {
        roll::earlier(planned, &self.proven)
    }

    /// Whether an instance that runs otherwise than it was last proven is ready, and only just.
    pub(crate) fn is_on_trial(&self, planned: &PlannedInstance, now_ms: u64) -> bool {
        roll::is_on_trial(planned, self.record(planned), &self.proven, now_ms)
    }

    /// Notes all that are ready as proven.
    pub(crate) fn prove(&mut self) -> Result<(), JournalError> {
        for planned in self.effective_plan().instances {
            if self.phase(&planned) == Some(Phase::Ready) {
                self.journal.set_proven(&planned)?;
                self.proven.insert(planned.id.clone(), planned);
            }
        }
        Ok(())
    }

    /// Notes those that are proven as they run: at once where nothing was before, else once their trial is over.
    pub(crate) fn note_proven(
        &mut self,
        plan: &Plan,
        running: &[RunningInstance],
    ) -> Result<(), JournalError> {
        for planned in &plan.instances {
            if self.proven.get(&planned.id) == Some(planned) {
                continue;
            }
            let now = now_ms();
            let is_ready = self.record(planned).is_some_and(|record| {
                record.phase == Phase::Ready && !self.is_on_trial(planned, now)
            });
            if is_ready && planned.find_in(running).is_some() {
                self.journal.set_proven(planned)?;
                self.proven.insert(planned.id.clone(), planned.clone());
            }
        }
        Ok(())
    }

    /// The plan for now, on the way to the one in force.
    pub(crate) fn plan_for_now(
        &self,
        target: &Plan,
        running: &[RunningInstance],
        leaving: &BTreeSet<InstanceId>,
        absent: &BTreeSet<InstanceId>,
    ) -> Plan {
        let (proven, records, now_ms) = (&self.proven, &self.records(), now_ms());
        on_the_way(target, Seen { proven, running, records, leaving, absent, now_ms })
    }

    pub(crate) fn emit(&self, instance: &InstanceId, kind: EventKind) -> Result<(), JournalError> {
        crash::point();
        let text = serde_json::to_string(&kind).unwrap_or_default();
        self.journal.note(instance, &text, now_ms())?;
        // Nobody may be listening; the journal has it.
        drop(self.events.send(Event { instance: instance.clone(), kind }));
        Ok(())
    }
}
