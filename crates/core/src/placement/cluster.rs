//! A plan for the GPUs of many nodes: laid out on the memory model, then written down to the last word.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::Found;
use super::gpus::{Layout, Prepared, Seat, Started, lay_out, prepare};
use super::launch::{Listen, Start};
use super::plan::{PlanError, Planned};
use crate::inventory::{Device, DeviceId, InstanceId, Inventory, Node};
use crate::memory::vllm::{Engine, Gpu};
use crate::memory::{Footprint, Verdict};
use crate::plan::{DeviceShare, Plan, PlannedDevice, PlannedInstance, Sleep};
use crate::report::{ModelReport, PlanReport, PlanVerdict};
use crate::scale::Scaled;
use crate::spec::{
    Backend, Deployment, DeviceSelector, EngineKind, NodeRule, PORT_RANGE, Replicas, Running, Spec,
};
use crate::units::Bytes;

/// Plans a spec on the GPUs of an inventory's nodes. `current` is the plan in force: what it runs as it is
/// wanted stays where it is.
///
/// # Errors
/// Where nothing is known of a model, or ports run out; what doesn't fit is in the report.
pub fn plan_cluster(
    spec: &Spec,
    inventory: &Inventory,
    found: &Found,
    engine: &Engine<'_>,
    current: Option<&Plan>,
) -> Result<Planned, PlanError> {
    let nodes = &inventory.nodes;
    let gpus: Vec<Vec<Gpu>> =
        nodes.iter().map(|node| cards(node).filter_map(Gpu::of_device).collect()).collect();
    let wanted = spec.deployments.iter().map(|one| prepare(one, found));
    let wanted: Vec<Prepared<'_>> = wanted.collect::<Result<_, _>>()?;
    // What a spec says to run counts where nothing is known to be in force.
    let runs = match current {
        None => spec.running.clone(),
        Some(current) => running(spec, inventory, found, current),
    };
    let running = runs.iter().map(|one| Ok((one, prepare(&one.deployment, found)?)));
    let running: Vec<_> = running.collect::<Result<_, PlanError>>()?;
    let layout = lay_out(&wanted, &running, nodes, &gpus, engine);

    let cluster = Cluster { spec, inventory, found, wanted: &wanted, layout: &layout };
    let instances = cluster.instances(current)?;
    let devices = cluster.devices(&instances);
    let models = cluster.reports();
    let mut notes = inventory.notes.clone();
    notes.extend(tight(spec, &devices));
    let fits = models.iter().all(ModelReport::is_complete);
    let verdict = if fits { PlanVerdict::Fits } else { PlanVerdict::Impossible };
    let parent = current.map(Plan::digest);
    let ray = (spec.cluster.backend == Backend::Ray).then(|| spec.cluster.ray.clone());
    let gateway = spec.gateway.clone();
    let (scaled, external) = (scaled(spec, &instances), spec.external.clone());
    let plan = Plan {
        parent,
        strategy: None,
        ray,
        gateway,
        scaled,
        external,
        adjust: spec.adjust,
        adjustments: spec.adjustments.clone(),
        pace_s: 0,
        instances,
        devices,
    };
    let report = PlanReport {
        verdict,
        plan_digest: plan.digest(),
        devices: plan.devices.clone(),
        models,
        notes,
    };
    Ok(Planned { plan, report })
}

/// The bounds of deployments that are scaled: no more than have a place.
fn scaled(spec: &Spec, instances: &[PlannedInstance]) -> BTreeMap<String, Scaled> {
    let of = |one: &Deployment| {
        let max =
            instances.iter().filter(|instance| instance.deployment == one.name).count() as u32;
        Some((one.name.clone(), Scaled { min: one.replicas.min, max, scale: one.scale? }))
    };
    spec.deployments.iter().filter_map(of).collect()
}

/// GPUs that are left with less than shall stay free.
fn tight(spec: &Spec, devices: &[PlannedDevice]) -> Option<String> {
    let kept = |device: &PlannedDevice| spec.cluster.kept_free(device.total);
    let is_tight =
        |device: &&PlannedDevice| device.planned > Bytes::ZERO && device.headroom() < kept(device);
    let tight: Vec<&PlannedDevice> = devices.iter().filter(is_tight).collect();
    let least = tight.iter().min_by_key(|device| device.headroom())?;
    Some(format!(
        "{} GPUs are left with less than {} free, the fullest ({} {}) with {}",
        tight.len(),
        kept(least),
        least.node,
        least.device,
        least.headroom()
    ))
}

fn cards(node: &Node) -> impl Iterator<Item = &Device> {
    node.devices.iter().filter(|device| device.is_gpu())
}

/// What the plan in force runs just as the spec still wants it: an instance each.
fn running(spec: &Spec, inventory: &Inventory, found: &Found, current: &Plan) -> Vec<Running> {
    let kept = current.instances.iter().filter_map(|planned| {
        let node = inventory.nodes.iter().find(|node| node.name == planned.node)?;
        let is_same = |one: &&Deployment| {
            let (binary, start) = command(spec, found, one, node, planned.port);
            one.model == planned.model
                && one.nodes.matches(node)
                && binary == planned.binary
                && start.args == planned.args
                && start.environment == planned.environment
                && start.library == planned.library
        };
        let deployment = spec.deployments.iter().find(is_same)?;
        let devices = planned.shares.iter().filter_map(|share| {
            let index = cards(node).position(|device| device.id == share.device)?;
            Some(DeviceSelector::GpuIndex(index as u32))
        });
        let devices: Vec<DeviceSelector> = devices.collect();
        (devices.len() == planned.shares.len()).then(|| Running {
            deployment: Deployment {
                nodes: NodeRule::of_names([planned.node.clone()]),
                devices,
                replicas: Replicas { min: 1, max: 1 },
                ..deployment.clone()
            },
            observed: None,
        })
    });
    kept.collect()
}

/// The program and what it is started with on a node.
fn command(
    spec: &Spec,
    found: &Found,
    deployment: &Deployment,
    node: &Node,
    port: u16,
) -> (String, Start) {
    let engine = deployment.engine;
    let binary = found.binaries.get(&engine).unwrap_or(&spec.binaries[&engine]);
    let path = found.model(deployment).map_or("", |located| &located.path);
    let listen = Listen { host: host(node), port, on_gpus: true };
    (binary.clone(), Start::new(deployment, path, &listen))
}

/// The address that engines of a node listen on: the one that the gateway reaches.
fn host(node: &Node) -> &str {
    node.address.as_deref().unwrap_or("127.0.0.1")
}

/// How an instance may sleep, as its engine was reckoned.
fn sleep(deployment: &Deployment, started: &Started, gpus: usize) -> Option<Sleep> {
    let level = deployment.sleep_level?;
    let fit = started.vllm.as_ref()?;
    let ranks = (gpus / fit.stages.len().max(1)).max(1);
    let of = |rank: usize| fit.stages.get(rank / ranks).and_then(|stage| stage.asleep);
    let bytes: Option<Vec<Bytes>> = (0..gpus).map(of).collect();
    Some(Sleep { level, bytes: bytes?, host: started.pinned_at(level) })
}

struct Cluster<'a> {
    spec: &'a Spec,
    inventory: &'a Inventory,
    found: &'a Found,
    wanted: &'a [Prepared<'a>],
    layout: &'a Layout,
}

impl Cluster<'_> {
    fn instances(&self, current: Option<&Plan>) -> Result<Vec<PlannedInstance>, PlanError> {
        let mut ids = Ids::new(current);
        // Those that stay take their names first.
        let mut seats: Vec<(usize, &Seat)> = self.layout.seats.iter().enumerate().collect();
        seats.sort_by_key(|(at, seat)| (!seat.is_kept, *at));
        let mut named: BTreeMap<usize, InstanceId> = BTreeMap::new();
        for (at, seat) in seats {
            let deployment = self.wanted[seat.deployment].deployment;
            let node = &self.inventory.nodes[seat.node];
            let devices: Vec<&DeviceId> =
                cards(node).skip(seat.first_gpu).take(seat.gpus).map(|one| &one.id).collect();
            named.insert(at, ids.take(deployment, &node.name, &devices));
        }
        let mut ports = Ports::new(self.spec, self.inventory, current);
        let seats = self.layout.seats.iter().enumerate();
        seats.map(|(at, seat)| self.instance(named[&at].clone(), seat, &mut ports)).collect()
    }

    fn instance(
        &self,
        id: InstanceId,
        seat: &Seat,
        ports: &mut Ports<'_>,
    ) -> Result<PlannedInstance, PlanError> {
        let node = &self.inventory.nodes[seat.node];
        let deployment = self.wanted[seat.deployment].deployment;
        let port = ports.take(&id, &node.name)?;
        let (binary, start) = command(self.spec, self.found, deployment, node, port);
        let share = |(rank, device): (usize, &Device)| DeviceShare {
            device: device.id.clone(),
            footprint: footprint(seat, rank),
            resident_ready: seat.started.bytes.get(rank).copied().unwrap_or_default(),
        };
        let devices = cards(node).skip(seat.first_gpu).take(seat.gpus);
        Ok(PlannedInstance {
            id,
            deployment: deployment.name.clone(),
            model: deployment.model.clone(),
            engine: deployment.engine,
            engine_version: (deployment.engine == EngineKind::Vllm)
                .then(|| self.spec.vllm_version.clone()),
            binary,
            args: start.args,
            environment: start.environment,
            library: start.library,
            host: host(node).to_owned(),
            port,
            node: node.name.clone(),
            folder: self.found.folder.clone(),
            shares: devices.enumerate().map(share).collect(),
            cache_tokens: Some(seat.started.cache_tokens).filter(|tokens| *tokens > 0),
            weight: deployment.weight,
            sleep: sleep(deployment, &seat.started, seat.gpus),
        })
    }

    fn devices(&self, instances: &[PlannedInstance]) -> Vec<PlannedDevice> {
        let planned = |node: &Node, device: &Device| PlannedDevice {
            node: node.name.clone(),
            device: device.id.clone(),
            total: device.total,
            budget: device.total - device.used_by_others,
            planned: instances.iter().map(|one| one.bytes_on(&node.name, &device.id)).sum(),
        };
        let nodes = self.inventory.nodes.iter();
        nodes.flat_map(|node| cards(node).map(|device| planned(node, device))).collect()
    }

    fn reports(&self) -> Vec<ModelReport> {
        let report = |(index, one): (usize, &Prepared<'_>)| {
            let seats = self.layout.seats.iter().filter(|seat| seat.deployment == index);
            let placed = seats.clone().filter_map(|seat| {
                let node = &self.inventory.nodes[seat.node];
                let device = cards(node).nth(seat.first_gpu)?;
                Some(DeviceId(format!("{} {}", node.name, device.id)))
            });
            let missing = self.layout.missing.iter().find(|missing| missing.deployment == index);
            let replicas = one.deployment.replicas;
            let placed: Vec<DeviceId> = placed.collect();
            ModelReport {
                model: one.deployment.name.clone(),
                verdict: missing.map_or(Verdict::Ready, |missing| missing.verdict),
                footprint: seats
                    .clone()
                    .next()
                    .map_or_else(Footprint::default, |seat| footprint(seat, 0)),
                wanted: match missing {
                    Some(_) => replicas.min,
                    None => placed.len() as u32,
                },
                placed,
                reasons: missing.map(|missing| missing.reason.clone()).into_iter().collect(),
                changes: Vec::new(),
            }
        };
        self.wanted.iter().enumerate().map(report).collect()
    }
}

/// What an instance takes on the GPU of a rank: vLLM's terms where they are known, and what starting adds
/// for a while.
fn footprint(seat: &Seat, rank: usize) -> Footprint {
    let total = seat.started.bytes.get(rank).copied().unwrap_or_default();
    let stages = seat.started.vllm.as_ref().map(|fit| fit.stages.as_slice()).unwrap_or_default();
    let ranks = seat.gpus.checked_div(stages.len()).unwrap_or(1).max(1);
    let mut terms = stages.get(rank / ranks).map(|stage| stage.terms.clone()).unwrap_or_default();
    if terms.total() != total {
        terms = Footprint::default();
        terms.calibrated("engine", total, "what the engine holds after load".to_owned());
    }
    terms
}

/// Instances keep the name that they have under the plan in force: one of the same model on the same GPUs is
/// the same, whatever group of the model it is in now. New ones take the lowest free number.
struct Ids<'a> {
    current: Vec<&'a PlannedInstance>,
    taken: BTreeSet<InstanceId>,
}

impl<'a> Ids<'a> {
    fn new(current: Option<&'a Plan>) -> Self {
        let current = current.map(|plan| plan.instances.iter().collect()).unwrap_or_default();
        Self { current, taken: BTreeSet::new() }
    }

    fn take(&mut self, deployment: &Deployment, node: &str, devices: &[&DeviceId]) -> InstanceId {
        let is_same = |one: &&&PlannedInstance| {
            one.model == deployment.model
                && one.node == node
                && one.shares.iter().map(|share| &share.device).eq(devices.iter().copied())
        };
        let kept = self.current.iter().find(is_same).map(|one| one.id.clone());
        let is_free = |id: &InstanceId| !self.taken.contains(id);
        let others = |id: &InstanceId| self.current.iter().any(|one| one.id == *id);
        let mut numbers = (0..).map(|number| InstanceId::new(&deployment.name, number));
        let id = kept.filter(is_free).or_else(|| numbers.find(|id| is_free(id) && !others(id)));
        let id = id.unwrap_or_else(|| InstanceId::new(&deployment.name, 0));
        self.taken.insert(id.clone());
        id
    }
}

/// Each instance's port on its node: the one that it has, else the lowest that is free there.
struct Ports<'a> {
    first: u16,
    current: Option<&'a Plan>,
    taken: BTreeSet<(String, u16)>,
}

impl<'a> Ports<'a> {
    fn new(spec: &Spec, inventory: &Inventory, current: Option<&'a Plan>) -> Self {
        let foreign = inventory
            .nodes
            .iter()
            .flat_map(|node| node.ports_taken.iter().map(|port| (node.name.clone(), *port)));
        let running = current.into_iter().flat_map(|plan| &plan.instances);
        let running = running.map(|one| (one.node.clone(), one.port));
        Self { first: spec.cluster.first_port, current, taken: foreign.chain(running).collect() }
    }

    fn take(&mut self, id: &InstanceId, node: &str) -> Result<u16, PlanError> {
        let running = self.current.and_then(|plan| plan.instance(id));
        if let Some(running) = running.filter(|running| running.node == node) {
            return Ok(running.port);
        }
        let mut range = self.first..self.first.saturating_add(PORT_RANGE);
        let is_free = |port: &u16| !self.taken.contains(&(node.to_owned(), *port));
        let port = range.find(is_free).ok_or(PlanError::NoPort(self.first))?;
        self.taken.insert((node.to_owned(), port));
        Ok(port)
    }
}
