//! One turn of the loop on a Ray cluster: read what Serve runs, note what changed, decide, put what shall
//! run.
//!
//! - `note`: what became of every instance since the last turn, and why
//! - `decide`: which applications shall be there
//! - `sleep`: which idle engines sleep, and which wake
//! - `put`: putting them
//! - `processes`: which processes are an engine's, for who looks at memory
//!
//! Each instance is an application of its own. Serve starts it, looks after it and starts it again; this
//! decides which there are, one start at a time on a GPU, and knows when to give one up.

mod decide;
mod note;
mod processes;
mod put;
mod sleep;

use std::collections::BTreeMap;
use std::fs::File;

use berth_cluster::ray::nodes::{self, Naming};
use berth_cluster::ray::serve::{self, AppStatus, Application, Replica, Serving};
use berth_cluster::ray::{Ray, RayError, token};
use berth_core::Digest;
use berth_core::adjust::sleep::Rest;
use berth_core::emit::ray as emit;
use berth_core::inventory::{InstanceId, Inventory, Node, ProcessMemory, RunningInstance};
use berth_core::plan::{Plan, PlannedInstance};
use berth_core::reconcile::{self, Phase};
use berth_core::scale::Count;
use berth_core::scale::flow::Flow;
use berth_core::spec::{GatewaySpec, RaySpec};

use crate::book::Book;
use crate::clock::now_ms;
use crate::controller::{ControllerError, InFlight, Turn};
use crate::event::EventKind;
use crate::lease;
use crate::probes::Probes;
use crate::status::{InstanceStatus, status_of};
use crate::stops::{Patience, Stops};

pub use processes::Processes;

/// A replica that Ray has found no place for after this long gets none.
const PLACE_LIMIT_MS: u64 = 60 * 1000;
/// Logs of so many instances that start are read at once.
const MOST_LOGS: usize = 4;
/// Nodes are looked at this often; what Serve runs at every turn.
const NODES_EVERY_MS: u64 = 5 * 1000;

/// The one actor on a state folder, with engines as applications of Ray Serve.
pub(crate) struct RayController {
    ray: Ray,
    spec: RaySpec,
    book: Book,
    state_id: String,
    in_flight: Option<InFlight>,
    inventory: Inventory,
    looked_at_ms: u64,
    /// Whether the nodes are to be looked at before their time, and whether they were in this turn.
    looks_again: bool,
    has_looked: bool,
    serving: Serving,
    /// What instances that start say that they do.
    doing: BTreeMap<InstanceId, String>,
    /// What Ray said when it could last not be asked.
    trouble: Option<String>,
    /// After a change that failed, the next is not tried before this.
    next_put_ms: u64,
    /// Starts that wait for memory that is still held, and since when.
    waiting: BTreeMap<InstanceId, u64>,
    /// Of deployments that are scaled, how many instances shall run.
    counts: BTreeMap<String, Count>,
    /// What was asked of each of these of late.
    flows: BTreeMap<String, Flow>,
    /// Instances that sleep.
    resting: BTreeMap<InstanceId, Rest>,
    /// When those that can sleep were last asked.
    asked: BTreeMap<InstanceId, sleep::Asked>,
    /// By instance and how it is started.
    probes: Probes<(InstanceId, Digest)>,
    /// Replicas whose logs were looked at for what they report.
    read_logs: BTreeMap<InstanceId, Replica>,
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
    let doing = doing(&ray, &serving, state_id);
    inventory.instances = running(&serving, state_id, &doing, &inventory.nodes);
    Ok((inventory, serving))
}

/// The same with the processes of the instances, as far as they are listed; what is known of them is kept in `known`.
///
/// # Errors
/// Where Ray can't be asked.
pub fn observe_processes(
    spec: &RaySpec,
    state_id: &str,
    known: &mut Processes,
) -> Result<Inventory, RayError> {
    let (mut inventory, serving) = observe(spec, state_id)?;
    known.fill(&Ray::new(&spec.address, token::read(spec)?), &serving, &mut inventory, now_ms());
    Ok(inventory)
}

/// What one's own instances say that they do while they start: the last lines of their logs.
fn doing(ray: &Ray, serving: &Serving, state_id: &str) -> BTreeMap<InstanceId, String> {
    let starting = serving.applications.values().filter(|app| app.status == AppStatus::Deploying);
    let starting = starting.filter_map(|app| {
        let (owner, id, _) = emit::identity(app.config.as_ref()?)?;
        (owner == state_id).then_some((id, app.replica()?))
    });
    let line =
        |(id, replica): (InstanceId, _)| Some((id.clone(), serve::last_line(ray, &id.0, replica)?));
    starting.take(MOST_LOGS).filter_map(line).collect()
}

fn naming(spec: &RaySpec) -> Naming<'_> {
    Naming { label: spec.name_label.as_deref(), written: &spec.written }
}

/// One's own applications that Serve has not given up, as instances.
fn running(
    serving: &Serving,
    state_id: &str,
    doing: &BTreeMap<InstanceId, String>,
    nodes: &[Node],
) -> Vec<RunningInstance> {
    let instance = |app: &Application| {
        let (owner, id, config) = emit::identity(app.config.as_ref()?)?;
        let config = match app.status {
            AppStatus::DeployFailed => return None,
            AppStatus::Deleting => going(),
            _ => config,
        };
        let replica = app.replica();
        let node = replica.and_then(|replica| replica.node_id.as_deref());
        let node = nodes.iter().find(|one| node.is_some() && one.id.as_deref() == node);
        (owner == state_id).then(|| RunningInstance {
            doing: doing.get(&id).cloned(),
            id,
            config,
            node: node.map(|node| node.name.clone()).unwrap_or_default(),
            pid: replica.and_then(|replica| replica.pid).unwrap_or(0),
            pids: Vec::new(),
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
            resting: book.journal.resting()?,
            asked: BTreeMap::new(),
            probes: Probes::default(),
            book,
            in_flight,
            inventory: Inventory::default(),
            looked_at_ms: 0,
            looks_again: true,
            has_looked: false,
            serving: Serving::default(),
            doing: BTreeMap::new(),
            trouble: None,
            next_put_ms: 0,
            waiting: BTreeMap::new(),
            counts: BTreeMap::new(),
            flows: BTreeMap::new(),
            read_logs: BTreeMap::new(),
            stops: Stops::default(),
            patience: Patience::Drain,
            is_first_turn: true,
            _lock: lock,
        })
    }

    pub(crate) fn book(&mut self) -> &mut Book {
        &mut self.book
    }

    pub(crate) fn set_patience(&mut self, patience: Patience) {
        self.patience = patience;
    }

    pub(crate) async fn turn(&mut self) -> Result<Turn, ControllerError> {
        self.book.reload(self.is_first_turn)?;
        if !self.look().await? {
            // The engines serve on without the dashboard; nothing is decided on what is not seen.
            let running = self.running();
            let (_, plan) = self.plans(&running);
            return Ok(self.outcome(&plan, false));
        }
        lease::check(&self.serving, &self.state_id, now_ms())?;
        let running = self.running();
        self.count_asked(&self.book.effective_plan());
        let (_, plan) = self.plans(&running);
        if std::mem::take(&mut self.is_first_turn) {
            self.recover(&plan, &running)?;
        }
        self.note(&plan, &running).await?;
        self.book.note_proven(&plan, &running)?;
        self.book.roll_back()?;
        let seen = plan;
        let (target, plan) = self.plans(&running);
        if self.book.is_stale() {
            // Another plan came into force meanwhile: the next turn reads it.
            return Ok(self.outcome(&seen, false));
        }
        let decided = self.decide(&plan, &running)?;
        if self.book.is_stale() {
            return Ok(self.outcome(&seen, false));
        }
        self.rest(&plan).await?;
        let is_put = self.put(&plan, &decided).await?;
        let records = self.book.records();
        // What waits for its machine may wait for long.
        let present = self.present(&target);
        let is_settled = !is_put && reconcile::is_settled(&present, &running, &records);
        Ok(self.outcome(&plan, is_settled))
    }

    /// The plan in force with as many instances as are called for, and the one for this turn on the way to it.
    fn plans(&mut self, running: &[RunningInstance]) -> (Plan, Plan) {
        let target = self.scaled(self.book.effective_plan(), running);
        let is_leaving =
            |one: &&RunningInstance| one.config == going() || self.stops.is_leaving(&one.id);
        let leaving = running.iter().filter(is_leaving).map(|one| one.id.clone()).collect();
        let away = target.instances.iter().filter(|one| !self.has_node(one));
        let absent = away.map(|one| one.id.clone()).collect();
        let now = self.book.plan_for_now(&target, running, &leaving, &absent);
        (target, now)
    }

    /// Reads what Serve runs, and from time to time the nodes. False where Ray can't be asked just now.
    async fn look(&mut self) -> Result<bool, ControllerError> {
        let (ray, spec, state_id) = (self.ray.clone(), self.spec.clone(), self.state_id.clone());
        let is_time = now_ms().saturating_sub(self.looked_at_ms) > NODES_EVERY_MS;
        let looks_at_nodes = is_time || std::mem::take(&mut self.looks_again);
        let looked = blocking(move || {
            let serving = serve::read(&ray)?;
            let nodes = || {
                let inventory = nodes::observe(&ray, naming(&spec))?;
                Ok((inventory, doing(&ray, &serving, &state_id)))
            };
            let looked = looks_at_nodes.then(nodes).transpose()?;
            Ok((serving, looked))
        });
        match looked.await {
            Ok((serving, looked)) => {
                self.serving = serving;
                self.has_looked = looked.is_some();
                if let Some((inventory, doing)) = looked {
                    (self.inventory, self.doing, self.looked_at_ms) = (inventory, doing, now_ms());
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

    fn running(&self) -> Vec<RunningInstance> {
        running(&self.serving, &self.state_id, &self.doing, &self.inventory.nodes)
    }

    fn has_node(&self, planned: &PlannedInstance) -> bool {
        self.inventory.nodes.iter().any(|node| node.name == planned.node)
    }

    fn application(&self, id: &InstanceId) -> Option<&Application> {
        self.serving.applications.get(&emit::name(id))
    }

    fn outcome(&self, plan: &Plan, is_settled: bool) -> Turn {
        let running = self.running();
        let status = |planned: &PlannedInstance| {
            let rolled_back = self.book.is_rolled_back(&planned.id);
            let is_on_trial = self.book.is_on_trial(planned, now_ms());
            let entry = self.book.entry(&planned.id);
            let found = planned.find_in(&running);
            let status = status_of(planned, found, entry, rolled_back);
            let state = status.state.with_rest(self.rest_of(planned).is_some());
            InstanceStatus { is_on_trial, state, ..status }
        };
        Turn {
            is_settled,
            instances: plan.instances.iter().map(status).collect(),
            externals: Vec::new(),
            gateway: GatewaySpec::default(),
        }
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
