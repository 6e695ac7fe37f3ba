//! What is planned, reported and observed, put together from the journal and the process table.
//!
//! It works whether or not a controller runs, and after one was killed.

use std::collections::{BTreeMap, BTreeSet};

use berth_cluster::local::{StateDir, lock};
use berth_core::Digest;
use berth_core::adjust::Freeze;
use berth_core::inventory::{DeviceId, InstanceId, Inventory, ProcessMemory, RunningInstance};
use berth_core::ledger::{self, Evidence, LedgerEntry};
use berth_core::plan::{DeviceShare, Plan, PlannedDevice, PlannedInstance};
use berth_core::reconcile::roll::{Seen, is_on_trial, on_the_way};
use berth_core::reconcile::{Phase, with_rollbacks};
use berth_core::spec::{EngineKind, GatewaySpec};
use berth_core::units::Bytes;
use berth_core::watch::alarm::tolerance;
use berth_core::watch::forensic::Report;
use berth_core::watch::{Alarm, Look};
use berth_engines::Diagnosis;
use serde::Serialize;

use crate::clock::now_ms;
use crate::journal::{Advice, InstanceEntry, Journal, JournalError, PlanError};
use crate::watch;

/// Everything that `berth status` shows.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The plan in force.
    pub plan_digest: Option<Digest>,
    /// The strategy that it carries out.
    pub strategy: Option<String>,
    /// Whether a berth watches over it.
    pub controller_running: bool,
    /// The address that clients use, while a controller runs.
    pub gateway: Option<std::net::SocketAddr>,
    /// The machines that were looked at.
    pub nodes: Vec<String>,
    /// The devices, with what is planned on them and what is held.
    pub devices: Vec<DeviceStatus>,
    /// The instances that take requests, by model.
    pub routes: BTreeMap<String, Vec<InstanceId>>,
    /// The instances.
    pub instances: Vec<InstanceStatus>,
    /// Planned, reported and observed bytes.
    pub ledger: Vec<LedgerEntry>,
    /// What happened last, the newest last.
    pub events: Vec<PastEvent>,
    /// What is wrong with memory, while a controller runs.
    pub alarms: Vec<Alarm>,
    /// How far plans have been from what engines came to hold, by model and kind of device.
    pub plan_errors: Vec<PlanError>,
    /// What berth would change.
    pub advice: Option<Advice>,
    /// Engines that died of memory, and why, the newest last.
    pub deaths: Vec<Report>,
    /// What could not be observed.
    pub notes: Vec<String>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PastEvent {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// To which instance.
    pub instance: InstanceId,
    /// What, as JSON.
    pub what: serde_json::Value,
}

/// Events that a status shows.
const EVENTS: u32 = 50;
/// Deaths that a status shows.
const DEATHS: u32 = 5;

/// One device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceStatus {
    /// What is planned on it.
    #[serde(flatten)]
    pub planned: PlannedDevice,
    /// What berth's instances hold there; `None` where it can't be observed.
    pub observed: Option<Bytes>,
    /// What others hold there now.
    pub used_by_others: Option<Bytes>,
}

/// One instance.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InstanceStatus {
    /// Its id.
    pub id: InstanceId,
    /// Its model.
    pub model: String,
    /// Its node.
    pub node: String,
    /// What it is doing.
    pub state: InstanceState,
    /// The address that it listens on.
    pub host: String,
    /// Its port there.
    pub port: u16,
    /// What the model is called there.
    pub served_name: String,
    /// The deployment that it belongs to.
    pub deployment: String,
    /// How many of the model's requests that gets, beside the others' weights.
    pub weight: u32,
    /// Tokens that its cache holds, as planned.
    pub cache_tokens: Option<u64>,
    /// Its engine; none for what the plan doesn't have.
    pub engine: Option<EngineKind>,
    /// Its engine's process.
    pub pid: Option<u32>,
    /// What the operating system says it holds.
    pub memory: Option<ProcessMemory>,
    /// What it says that it does while it starts: its log's last line, where that was read.
    pub doing: Option<String>,
    /// Failures in a row.
    pub failures: u32,
    /// Whether it runs an earlier configuration, because the planned one failed.
    pub rolled_back: bool,
    /// Whether it has only just been changed, and may go back.
    pub is_on_trial: bool,
    /// Whether it serves as it was, and is to change when its turn comes.
    pub is_to_change: bool,
    /// Why it failed last.
    pub diagnosis: Option<Diagnosis>,
}

/// What an instance is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// It is planned and not started yet.
    Planned,
    /// It has a place, and is not called for.
    Spare,
    /// Its engine loads.
    Starting,
    /// It serves.
    Ready,
    /// It sleeps, since others are short of memory; it wakes when it is asked.
    Asleep,
    /// Its engine ended; it will be started again.
    Backoff,
    /// Its engine failed for good.
    Failed,
    /// It is being stopped: the plan doesn't have it.
    Stopping,
}

impl InstanceState {
    /// The same for an instance that was told to sleep or not: one that isn't ready doesn't.
    #[must_use]
    pub(crate) fn with_rest(self, rests: bool) -> Self {
        if rests && self == Self::Ready { Self::Asleep } else { self }
    }

    /// Its name, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Spare => "spare",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Asleep => "asleep",
            Self::Backoff => "backoff",
            Self::Failed => "failed",
            Self::Stopping => "stopping",
        }
    }
}

/// Reads the status of a state folder. `inventory` is what was observed just now, with all that is used of GPUs counted
/// as others'.
///
/// # Errors
/// Where the journal can't be read.
pub fn read(
    dir: &StateDir,
    journal: &Journal,
    inventory: Inventory,
) -> Result<Status, JournalError> {
    let current = journal.current()?;
    let entries = journal.instances()?;
    let rollbacks = journal.rollbacks()?;
    let controller_running = lock::is_held(&dir.controller_lock()).unwrap_or(false);
    let plan_digest = current.as_ref().map(|journalled| journalled.plan.digest());
    let strategy = current.as_ref().and_then(|journalled| journalled.plan.strategy.clone());
    let target = current.map(|journalled| with_rollbacks(&journalled.plan, &rollbacks));
    let (proven, running) = (journal.proven()?, &inventory.instances);
    let resting = journal.resting()?;
    let records = entries.iter().map(|(id, entry)| (id.clone(), entry.record.clone())).collect();
    let known = Seen {
        proven: &proven,
        running,
        records: &records,
        leaving: &BTreeSet::new(),
        absent: &BTreeSet::new(),
        now_ms: now_ms(),
    };
    let plan = target.as_ref().map(|target| on_the_way(target, known));
    let is_to_change = |now: &PlannedInstance| {
        let then = target.as_ref().and_then(|target| target.instance(&now.id));
        then.is_some_and(|then| then.config() != now.config())
    };
    let mut instances = Vec::new();
    let mut ledger = Vec::new();
    let most_held = journal.most_held()?;
    let nothing = Plan::nothing(GatewaySpec::default(), None);
    let ids = running.iter().map(|one| one.id.clone()).collect();
    let look = Look::of_inventory(&inventory, now_ms());
    let look = look.doubted(plan.as_ref().unwrap_or(&nothing), &ids);
    for planned in plan.iter().flat_map(|plan| &plan.instances) {
        let running = planned.find_in(&inventory.instances);
        let entry = entries.get(&planned.id);
        let rolled_back = rollbacks.contains_key(&planned.id);
        let mut status = status_of(planned, running, entry, rolled_back);
        let is_scaled =
            plan.as_ref().is_some_and(|plan| plan.scaled.contains_key(&planned.deployment));
        if is_scaled && status.state == InstanceState::Planned {
            status.state = InstanceState::Spare;
        }
        let rest = resting.get(&planned.id);
        let rests = rest.is_some_and(|rest| rest.config == planned.config());
        status.state = status.state.with_rest(rests);
        status.is_to_change = is_to_change(planned);
        let record = entry.map(|entry| &entry.record);
        status.is_on_trial = is_on_trial(planned, record, &proven, now_ms());
        instances.push(status);
        let entry = entry.filter(|entry| entry.record.config == planned.config());
        let when_ready = entry.and_then(|entry| entry.memory_when_ready);
        let evidence = Evidence {
            reported: entry.and_then(|entry| entry.reported.as_ref()),
            peak_when_ready: when_ready.map(|memory| memory.resident_peak),
            peak: running.and_then(seen).map(|memory| memory.resident_peak),
            held: held(planned, &look, &most_held),
        };
        ledger.extend(ledger::entries(planned, &evidence));
    }
    instances.extend(leftovers(plan.as_ref(), &inventory.instances));
    let mut notes = inventory.notes.clone();
    notes.extend(ledger.iter().filter_map(over_its_limit));
    notes.extend(frozen(&journal.frozen()?, now_ms()));
    Ok(Status {
        strategy,
        plan_digest,
        controller_running,
        gateway: journal.gateway()?.filter(|_| controller_running),
        nodes: inventory.nodes.iter().map(|node| node.name.clone()).collect(),
        devices: plan.map(|plan| devices(&plan, &inventory, &look)).unwrap_or_default(),
        routes: routes(&instances),
        instances,
        ledger,
        events: journal.events(EVENTS)?,
        plan_errors: journal.plan_errors()?,
        advice: journal.advice()?,
        deaths: journal.deaths(DEATHS)?,
        alarms: match controller_running {
            true => journal.alarms(now_ms().saturating_sub(watch::STALE_MS))?,
            false => Vec::new(),
        },
        notes,
    })
}

/// The instances that take requests, by model.
fn routes(instances: &[InstanceStatus]) -> BTreeMap<String, Vec<InstanceId>> {
    let mut routes: BTreeMap<String, Vec<InstanceId>> = BTreeMap::new();
    // What the plan doesn't have is of no model.
    for instance in instances.iter().filter(|one| !one.model.is_empty()) {
        let route = routes.entry(instance.model.clone()).or_default();
        if instance.state == InstanceState::Ready {
            route.push(instance.id.clone());
        }
    }
    routes
}

/// Deployments that get no more memory for a while, in words.
fn frozen(all: &[Freeze], now_ms: u64) -> impl Iterator<Item = String> {
    const HOUR_MS: u64 = 3_600_000;
    let left = move |one: &Freeze| one.until_ms.checked_sub(now_ms).filter(|left| *left > 0);
    all.iter().filter_map(move |one| {
        let hours = left(one)?.div_ceil(HOUR_MS);
        Some(format!(
            "{} died of memory or went back: berth advises no more memory for it for {hours} h",
            one.deployment
        ))
    })
}

/// The most that an instance was seen to hold of its GPUs, now or earlier.
fn held(
    planned: &PlannedInstance,
    look: &Look,
    most_held: &BTreeMap<(Digest, String), Bytes>,
) -> BTreeMap<DeviceId, Bytes> {
    let config = planned.config();
    let of = |share: &DeviceShare| {
        let device = look.device(&planned.node, &share.device)?;
        let now = device.held_by(&planned.id).filter(|held| *held > Bytes::ZERO);
        // It is kept by kind of device: of several alike it isn't known whose it was.
        let is_alone = planned.shares.len() == 1;
        let earlier = most_held.get(&(config.clone(), device.name.clone())).filter(|_| is_alone);
        Some((share.device.clone(), now.max(earlier.copied())?))
    };
    planned.shares.iter().filter_map(of).collect()
}

/// A limit that did not hold, in words.
fn over_its_limit(entry: &LedgerEntry) -> Option<String> {
    // What is planned of a GPU is calibrated: it is held to as much as an alarm is.
    let is_exact = entry.device == DeviceId::host();
    let allowed = if is_exact { Bytes::ZERO } else { tolerance(entry.planned) };
    let over = entry.observed?.checked_sub(entry.planned).filter(|over| *over > allowed)?;
    (entry.term == ledger::LIMIT).then(|| {
        format!(
            "{} has held {}, {over} over its limit: very large requests, or many probabilities a \
             token (`n_probs`, `prompt_logprobs`), take more than is planned",
            entry.instance,
            entry.planned + over
        )
    })
}

/// What is planned beside what is held. Of the host the operating system counts it, of a GPU its driver.
fn devices(plan: &Plan, inventory: &Inventory, look: &Look) -> Vec<DeviceStatus> {
    let resident = || inventory.instances.iter().map(|running| running.memory.resident).sum();
    let resident = plan.ray.is_none().then(resident);
    // Who holds what may be unseen: then what is beyond the plan is others'.
    let reckoned = inventory.clone().without(plan);
    let beyond = |planned: &PlannedDevice| {
        let node = reckoned.nodes.iter().find(|node| node.name == planned.node)?;
        let device = node.devices.iter().find(|device| device.id == planned.device)?;
        Some(device.used_by_others)
    };
    let status = |planned: PlannedDevice| {
        let seen = look.device(&planned.node, &planned.device).filter(|seen| seen.used.is_some());
        let (observed, used_by_others) = match seen {
            Some(_) if planned.device == DeviceId::host() => (resident, beyond(&planned)),
            Some(seen) => (seen.own(), seen.foreign().or_else(|| beyond(&planned))),
            None => (None, None),
        };
        DeviceStatus { planned, observed, used_by_others }
    };
    plan.devices.iter().cloned().map(status).collect()
}

/// The status of one planned instance.
pub(crate) fn status_of(
    planned: &PlannedInstance,
    running: Option<&RunningInstance>,
    entry: Option<&InstanceEntry>,
    rolled_back: bool,
) -> InstanceStatus {
    let config = planned.config();
    let record = entry.map(|entry| &entry.record).filter(|record| record.config == config);
    let state = match (running, record.map(|record| record.phase)) {
        (Some(_), Some(Phase::Ready)) => InstanceState::Ready,
        (Some(_), _) => InstanceState::Starting,
        (None, Some(Phase::Failed)) => InstanceState::Failed,
        (None, Some(_)) => InstanceState::Backoff,
        (None, None) => InstanceState::Planned,
    };
    InstanceStatus {
        id: planned.id.clone(),
        model: planned.model.clone(),
        node: planned.node.clone(),
        state,
        host: planned.host.clone(),
        port: planned.port,
        served_name: planned.served_name().to_owned(),
        deployment: planned.deployment.clone(),
        weight: planned.weight,
        cache_tokens: planned.cache_tokens,
        engine: Some(planned.engine),
        pid: running.map(|running| running.pid),
        memory: running.and_then(seen),
        doing: running.and_then(|running| running.doing.clone()),
        failures: record.map_or(0, |record| record.failures),
        rolled_back,
        is_on_trial: false,
        is_to_change: false,
        diagnosis: entry.and_then(|entry| entry.diagnosis.clone()),
    }
}

/// What the operating system was seen to say of an instance; nothing is seen of another machine's.
fn seen(running: &RunningInstance) -> Option<ProcessMemory> {
    Some(running.memory).filter(|memory| *memory != ProcessMemory::default())
}

/// Instances that run and that the plan doesn't have.
fn leftovers(plan: Option<&Plan>, running: &[RunningInstance]) -> Vec<InstanceStatus> {
    let is_planned = |running: &RunningInstance| plan.is_some_and(|plan| plan.wants(running));
    let leftover = |running: &RunningInstance| InstanceStatus {
        id: running.id.clone(),
        model: String::new(),
        node: running.node.clone(),
        state: InstanceState::Stopping,
        host: String::new(),
        port: 0,
        served_name: String::new(),
        deployment: String::new(),
        weight: 1,
        cache_tokens: None,
        engine: None,
        pid: Some(running.pid),
        memory: seen(running),
        doing: None,
        failures: 0,
        rolled_back: false,
        is_on_trial: false,
        is_to_change: false,
        diagnosis: None,
    };
    running.iter().filter(|running| !is_planned(running)).map(leftover).collect()
}
