//! One turn of the loop on a Ray cluster: read what Serve runs, note what changed, decide, put what shall
//! run.
//!
//! Each instance is an application of its own. Serve starts it, looks after it and starts it again; this
//! decides which there are, one start at a time on a GPU, and knows when to give one up.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;

use berth_cluster::ray::nodes::{self, Naming};
use berth_cluster::ray::serve::{self, AppStatus, Application, Serving};
use berth_cluster::ray::{Ray, RayError, package, token};
use berth_core::Digest;
use berth_core::emit::ray as emit;
use berth_core::inventory::{InstanceId, Inventory, ProcessMemory, RunningInstance};
use berth_core::plan::{Plan, PlannedInstance};
use berth_core::reconcile::{self, Action, Phase};
use berth_core::scale::Count;
use berth_core::spec::{External, RaySpec};
use berth_engines::{Cause, Diagnosis, serve_replica};
use serde_json::Value;

use crate::book::Book;
use crate::clock::now_ms;
use crate::controller::{ControllerError, InFlight, Turn};
use crate::crash;
use crate::event::EventKind;
use crate::journal::{InstanceEntry, Journal};
use crate::lease;
use crate::status::status_of;
use crate::stops::{Patience, Step, Stops};

/// A replica that Ray has found no place for after this long gets none.
const PLACE_LIMIT_MS: u64 = 60 * 1000;
/// An engine that isn't ready after this long is stopped: beyond the module's own limit.
const START_LIMIT_MS: u64 = 16 * 60 * 1000;
/// Between a change that failed and the next.
const PUT_PAUSE_MS: u64 = 2 * 1000;
/// Nodes are looked at this often; what Serve runs at every turn.
const NODES_EVERY_MS: u64 = 5 * 1000;

/// Applications that shall be there after a turn.
struct Decided {
    /// All of them.
    stays: BTreeSet<InstanceId>,
    /// Those that start anew.
    starts: BTreeSet<InstanceId>,
}

/// The one actor on a state folder, with engines as applications of Ray Serve.
pub(crate) struct RayController {
    ray: Ray,
    spec: RaySpec,
    book: Book,
    state_id: String,
    in_flight: Option<InFlight>,
    inventory: Inventory,
    looked_at_ms: u64,
    serving: Serving,
    /// What Ray said when it could last not be asked.
    trouble: Option<String>,
    /// After a change that failed, the next is not tried before this.
    next_put_ms: u64,
    /// Starts that wait for memory that is still held, and since when.
    waiting: BTreeMap<InstanceId, u64>,
    /// Of deployments that are scaled, how many instances shall run.
    counts: BTreeMap<String, Count>,
    stops: Stops<InstanceId>,
    patience: Patience,
    is_first_turn: bool,
    /// Held until the end.
    _lock: File,
}

/// Looks at a cluster: its nodes, and which of one's own instances Serve has.
///
/// # Errors
/// Where Ray can't be asked.
pub fn observe(spec: &RaySpec, state_id: &str) -> Result<(Inventory, Serving), RayError> {
    let ray = Ray::new(&spec.address, token::read(spec)?);
    let serving = serve::read(&ray)?;
    let mut inventory = nodes::observe(&ray, naming(spec))?;
    inventory.instances = running(&serving, state_id);
    Ok((inventory, serving))
}

fn naming(spec: &RaySpec) -> Naming<'_> {
    Naming { label: spec.name_label.as_deref(), written: &spec.written }
}

/// One's own applications that Serve has not given up, as instances.
fn running(serving: &Serving, state_id: &str) -> Vec<RunningInstance> {
    let instance = |app: &Application| {
        let (owner, id, config) = emit::identity(app.config.as_ref()?)?;
        let config = match app.status {
            AppStatus::DeployFailed => return None,
            AppStatus::Deleting => going(),
            _ => config,
        };
        let pid = app.replicas.iter().find_map(|replica| replica.pid);
        (owner == state_id).then(|| RunningInstance {
            id,
            config,
            pid: pid.unwrap_or(0),
            pids: pid.into_iter().collect(),
            group: 0,
            started_ticks: 0,
            memory: ProcessMemory::default(),
        })
    };
    serving.applications.values().filter_map(instance).collect()
}

/// The configuration of what is on its way out: nobody wants it.
fn going() -> Digest {
    Digest::from_hex("going")
}

impl RayController {
    pub(crate) fn new(
        spec: &RaySpec,
        book: Book,
        lock: File,
        in_flight: Option<InFlight>,
    ) -> Result<Self, ControllerError> {
        Ok(Self {
            ray: Ray::new(&spec.address, token::read(spec)?),
            spec: spec.clone(),
            state_id: book.journal.state_id()?,
            book,
            in_flight,
            inventory: Inventory::default(),
            looked_at_ms: 0,
            serving: Serving::default(),
            trouble: None,
            next_put_ms: 0,
            waiting: BTreeMap::new(),
            counts: BTreeMap::new(),
            stops: Stops::default(),
            patience: Patience::Drain,
            is_first_turn: true,
            _lock: lock,
        })
    }

    pub(crate) fn journal_mut(&mut self) -> &mut Journal {
        &mut self.book.journal
    }

    pub(crate) fn external(&self) -> Vec<External> {
        self.book.external()
    }

    pub(crate) fn set_patience(&mut self, patience: Patience) {
        self.patience = patience;
    }

    pub(crate) async fn turn(&mut self) -> Result<Turn, ControllerError> {
        self.book.reload(self.is_first_turn)?;
        if !self.look().await? {
            // The engines serve on without the dashboard; nothing is decided on what is not seen.
            let running = running(&self.serving, &self.state_id);
            let plan = self.scaled(self.book.effective_plan(), &running);
            return Ok(self.outcome(&plan, false));
        }
        lease::check(&self.serving, &self.state_id, now_ms())?;
        let running = running(&self.serving, &self.state_id);
        let plan = self.scaled(self.book.effective_plan(), &running);
        if std::mem::take(&mut self.is_first_turn) {
            self.recover(&plan, &running)?;
        }
        self.note(&plan, &running)?;
        self.book.roll_back(&plan)?;
        let seen = plan;
        let plan = self.scaled(self.book.effective_plan(), &running);
        if self.book.is_stale() {
            // Another plan came into force meanwhile: the next turn reads it.
            return Ok(self.outcome(&seen, false));
        }
        let decided = self.decide(&plan, &running)?;
        if self.book.is_stale() {
            return Ok(self.outcome(&seen, false));
        }
        let is_put = self.put(&plan, &decided).await?;
        let records = self.book.records();
        // What waits for its machine may wait for long.
        let present = self.present(&plan);
        let is_settled = !is_put && reconcile::is_settled(&present, &running, &records);
        Ok(self.outcome(&plan, is_settled))
    }

    /// The plan with as many instances as are called for. Without a gateway nobody knows what is asked, and
    /// the numbers stay.
    fn scaled(&mut self, plan: Plan, running: &[RunningInstance]) -> Plan {
        self.counts.retain(|deployment, _| plan.scaled.contains_key(deployment));
        for (deployment, scaled) in &plan.scaled {
            let of = || plan.instances.iter().filter(|one| one.deployment == *deployment);
            let runs = of().filter(|one| one.find_in(running).is_some()).count() as u32;
            let count =
                self.counts.entry(deployment.clone()).or_insert_with(|| Count::new(runs, scaled));
            let bounds = Count::new(count.wanted, scaled);
            *count = Count { wanted: bounds.wanted, ..*count };
            if let Some(in_flight) = &self.in_flight {
                let ongoing = of().map(|one| in_flight(&one.id)).sum();
                *count = count.next(ongoing, scaled, now_ms());
            }
        }
        let counts = self.counts.iter().map(|(name, count)| (name.clone(), count.wanted)).collect();
        plan.with_counts(&counts, |one| one.find_in(running).is_some())
    }

    /// Reads what Serve runs, and from time to time the nodes. False where Ray can't be asked just now.
    async fn look(&mut self) -> Result<bool, ControllerError> {
        let (ray, spec) = (self.ray.clone(), self.spec.clone());
        let looks_at_nodes = now_ms().saturating_sub(self.looked_at_ms) > NODES_EVERY_MS;
        let looked = blocking(move || {
            let serving = serve::read(&ray)?;
            let inventory = looks_at_nodes.then(|| nodes::observe(&ray, naming(&spec)));
            Ok((serving, inventory.transpose()?))
        });
        match looked.await {
            Ok((serving, inventory)) => {
                self.serving = serving;
                if let Some(inventory) = inventory {
                    (self.inventory, self.looked_at_ms) = (inventory, now_ms());
                }
                self.trouble = None;
                Ok(true)
            }
            Err(error) if !self.is_first_turn => {
                if self.trouble.is_none() {
                    tracing::warn!(%error, "what runs goes on; nothing is changed until Ray answers");
                }
                self.trouble = Some(error.to_string());
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What runs is adopted; what was being started and is not there is simply started again.
    fn recover(&mut self, plan: &Plan, running: &[RunningInstance]) -> Result<(), ControllerError> {
        for planned in &plan.instances {
            let runs = planned.find_in(running).is_some();
            match self.book.phase(planned) {
                Some(_) if runs => self.book.emit(&planned.id, EventKind::Adopted)?,
                Some(Phase::Starting) => self.book.forget(&planned.id)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The plan without instances of machines that are not there.
    fn present(&self, plan: &Plan) -> Plan {
        let instances = plan.instances.iter().filter(|one| self.has_node(one));
        Plan { instances: instances.cloned().collect(), ..plan.clone() }
    }

    fn has_node(&self, planned: &PlannedInstance) -> bool {
        self.inventory.nodes.iter().any(|node| node.name == planned.node)
    }

    fn application(&self, id: &InstanceId) -> Option<&Application> {
        self.serving.applications.get(&emit::name(id))
    }

    /// Notes what became of every instance since the last turn.
    fn note(&mut self, plan: &Plan, running: &[RunningInstance]) -> Result<(), ControllerError> {
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
                (Some(Phase::Starting), Some(app)) => self.note_starting(planned, &app)?,
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

    fn note_starting(
        &mut self,
        planned: &PlannedInstance,
        app: &Application,
    ) -> Result<(), ControllerError> {
        let Some(entry) = self.book.entry(&planned.id).cloned() else { return Ok(()) };
        let waited = now_ms().saturating_sub(entry.record.since_ms);
        let has_place = app.replicas.iter().any(|replica| replica.node_id.is_some());
        if is_up(app) {
            let rolled_back = self.book.is_rolled_back(&planned.id);
            let entry = InstanceEntry {
                record: entry.record.ready(now_ms()),
                diagnosis: entry.diagnosis.filter(|_| rolled_back),
                ..entry
            };
            self.book.set(&planned.id, entry)?;
            self.book.journal.set_proven(planned)?;
            self.book.emit(&planned.id, EventKind::Ready { after_ms: waited })?;
        } else if app.status == AppStatus::DeployFailed {
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
        } else if waited > START_LIMIT_MS {
            self.book.fail(planned, serve_replica::diagnose(planned.engine, &app.message))?;
        }
        Ok(())
    }

    /// Ray shows a replica without a place as on its way for ever: what it lacks is found by looking.
    fn no_place(&self, planned: &PlannedInstance, message: &str) -> Diagnosis {
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

    /// Instances whose applications shall be there after this turn.
    fn decide(
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
                    let in_flight = self.in_flight.as_ref().map_or(0, |count| count(&instance.id));
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
    fn is_taken(&self, id: &InstanceId) -> bool {
        let config = self.application(id).map(|app| app.config.as_ref());
        config.is_some_and(|config| !config.is_some_and(|one| is_own(one, &self.state_id)))
    }

    /// What is in the way of a start on its GPUs, as far as Ray sees what they hold: after a stop memory is
    /// free only once the last process is gone, and others may have taken it.
    fn held(&self, planned: &PlannedInstance) -> Option<String> {
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
    fn wait_for_memory(
        &mut self,
        planned: &PlannedInstance,
        held: String,
    ) -> Result<(), ControllerError> {
        // The next look at the nodes is due at once.
        self.looked_at_ms = 0;
        let since_ms = *self.waiting.entry(planned.id.clone()).or_insert_with(now_ms);
        if now_ms().saturating_sub(since_ms) > PLACE_LIMIT_MS {
            self.waiting.remove(&planned.id);
            self.book.set_starting(planned)?;
            self.book.fail(planned, no_memory(held))?;
        }
        Ok(())
    }

    /// Puts what shall be there, if it isn't. Says whether anything was put.
    async fn put(&mut self, plan: &Plan, decided: &Decided) -> Result<bool, ControllerError> {
        let wanted = self.wanted(plan, decided);
        let lease = lease::next(&self.serving, &self.state_id, !wanted.is_empty(), now_ms());
        let own: BTreeMap<&str, &Value> = self
            .serving
            .applications
            .values()
            .filter(|app| app.status != AppStatus::Deleting)
            .filter_map(|app| app.config.as_ref())
            .filter(|config| is_own(config, &self.state_id))
            .filter_map(|config| Some((config["name"].as_str()?, config)))
            .collect();
        let goal: BTreeMap<&str, &Value> = wanted
            .iter()
            .chain(&lease)
            .filter_map(|config| Some((config["name"].as_str()?, config)))
            .collect();
        if goal == own {
            return Ok(false);
        }
        if now_ms() < self.next_put_ms {
            return Ok(true);
        }
        let is_quiet = goal.len() == own.len()
            && goal
                .iter()
                .all(|(name, config)| *name == lease::NAME || own.get(name) == Some(config));
        crash::point();
        let (ray, state_id) = (self.ray.clone(), self.state_id.clone());
        let goal: Vec<Value> = goal.into_values().cloned().collect();
        let change = blocking(move || {
            package::ensure(&ray)?;
            // As late as can be: what others have put in between stays.
            let serving = serve::read(&ray)?;
            let desired = serve::desired(&serving, |config| is_own(config, &state_id), goal);
            serve::put(&ray, &desired)
        });
        match change.await {
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(%error, "the change is tried again");
                self.next_put_ms = now_ms() + PUT_PAUSE_MS;
                self.trouble = Some(error.to_string());
            }
        }
        crash::point();
        Ok(!is_quiet)
    }

    /// The configs of the instances that shall be there. What is there as it is planned keeps the config
    /// that it was put with as far as Ray's own counting goes: a change there would restart it.
    fn wanted(&self, plan: &Plan, decided: &Decided) -> Vec<Value> {
        let Decided { stays, starts } = decided;
        let there = |id: &InstanceId| {
            let config = self.application(id)?.config.as_ref()?;
            is_own(config, &self.state_id).then_some(config)
        };
        let unchanged = |planned: &PlannedInstance| {
            let config = there(&planned.id)?;
            let (_, _, digest) = emit::identity(config)?;
            (digest == planned.config()).then_some(config)
        };
        let kept = plan.instances.iter().filter(|one| stays.contains(&one.id)).filter_map(|one| {
            let parts = emit::parts_of(unchanged(one)?, one.shares.len());
            Some((one.id.clone(), parts))
        });
        let counted = emit::counted(plan, &kept.collect());
        let context = emit::Context {
            inventory: &self.inventory,
            name_label: self.spec.name_label.as_deref(),
            owner: &self.state_id,
            module: &package::uri(),
            module_version: package::VERSION,
        };
        let config = |id: &InstanceId| {
            let planned = plan.instance(id);
            let same = planned.and_then(unchanged);
            let new = planned
                .and_then(|planned| emit::application(plan, planned, &counted[id], &context));
            match (same, new) {
                // The order of starts and the module may have changed; what runs needn't restart for that.
                (Some(same), Some(new)) if emit::starts_alike(same, &new) => Some(same.clone()),
                // Its node is away: Ray starts it again when that comes back.
                (Some(same), None) => Some(same.clone()),
                // It runs otherwise than it is planned, and is let end before it starts anew.
                (None, Some(_)) if there(id).is_some() && !starts.contains(id) => {
                    there(id).cloned()
                }
                (_, Some(new)) => Some(new),
                // What the plan doesn't have stays as it is until its requests have ended.
                (None, None) => there(id).cloned(),
            }
        };
        stays.iter().filter_map(config).collect()
    }

    fn outcome(&self, plan: &Plan, is_settled: bool) -> Turn {
        let running = running(&self.serving, &self.state_id);
        let status = |planned: &PlannedInstance| {
            let rolled_back = self.book.is_rolled_back(&planned.id);
            status_of(planned, planned.find_in(&running), self.book.entry(&planned.id), rolled_back)
        };
        Turn {
            is_settled,
            instances: plan.instances.iter().map(status).collect(),
            externals: Vec::new(),
        }
    }
}

fn is_own(config: &Value, state_id: &str) -> bool {
    let owner = emit::identity(config).map(|(owner, ..)| owner).or_else(|| lease::holder(config));
    owner == Some(state_id)
}

fn is_up(app: &Application) -> bool {
    app.status == AppStatus::Running && app.replicas.iter().any(|one| one.state == "RUNNING")
}

fn no_memory(held: String) -> Diagnosis {
    Diagnosis {
        // Whoever holds it may let it go.
        cause: Cause::NotReadyInTime,
        message: held,
        hint: "`berth doctor` shows who else holds GPUs; `berth plan` counts what others hold"
            .to_owned(),
        evidence: None,
    }
}

/// Serve shows what nobody changed as on its way for a moment after a change of others.
fn still_serves(app: &Application) -> bool {
    let is_ill = matches!(app.status, AppStatus::Unhealthy | AppStatus::DeployFailed);
    !is_ill && app.replicas.iter().any(|one| one.state == "RUNNING")
}

fn name_taken(id: &InstanceId) -> Diagnosis {
    Diagnosis {
        cause: Cause::CannotStart,
        message: format!("somebody else has an application {}", emit::name(id)),
        hint: "it may be another berth's, or put by hand: take it away there, or call the model otherwise"
            .to_owned(),
        evidence: None,
    }
}

fn taken_away() -> Diagnosis {
    Diagnosis {
        cause: Cause::Killed,
        message: "its application is no longer there: somebody else took it away".to_owned(),
        hint: "whoever deploys to this Serve must keep the applications that are there".to_owned(),
        evidence: None,
    }
}

/// Ray is asked over blocking sockets.
async fn blocking<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T, RayError> + Send + 'static,
) -> Result<T, RayError> {
    match tokio::task::spawn_blocking(ask).await {
        Ok(answer) => answer,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
