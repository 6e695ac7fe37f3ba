//! From spec, inventory and model facts to a plan and the reasons for it.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::{Found, LocatedModel};
use super::greedy::{self, Assignment, Item};
use super::launch::{self, Listen, Start};
use super::relax;
use crate::inventory::{Cpu, Device, DeviceId, DeviceKind, InstanceId, Inventory, Node};
use crate::memory::{Fit, fit};
use crate::plan::{DeviceShare, Plan, PlannedDevice, PlannedInstance};
use crate::report::{ModelReport, PlanReport, PlanVerdict};
use crate::spec::{Deployment, PORT_RANGE, Spec};
use crate::units::Bytes;

/// A plan and the report that goes with it. Only a plan whose report says `fits` may be applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// What shall run where; without the instances that fit nowhere.
    pub plan: Plan,
    /// For each decision what was tried, what was rejected, and by how many bytes.
    pub report: PlanReport,
}

/// Why there is nothing to plan with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A model's facts were not given.
    #[error("nothing is known about the model `{0}`")]
    NoFacts(String),
    /// There is no free port for an instance.
    #[error("no free port from {0} upwards: set first_port in [cluster] to another range")]
    NoPort(u16),
}

/// One bin of the placement: a device of a node with what models may take there.
struct Bin<'a> {
    node: &'a Node,
    device: &'a Device,
    budget: Bytes,
    /// Whether others' use keeps it below what the spec would allow.
    is_crowded: bool,
}

/// Plans `spec` on `inventory`; `current` is the plan in force.
///
/// # Errors
/// Only where the arguments don't belong together; what does not fit is in the report.
pub fn plan(
    spec: &Spec,
    inventory: &Inventory,
    found: &Found,
    current: Option<&Plan>,
) -> Result<Planned, PlanError> {
    let bins = bins(spec, inventory);
    let mut fits = BTreeMap::new();
    for model in &spec.deployments {
        let facts = found.model(model).and_then(|located| located.facts.gguf());
        let facts = facts.ok_or_else(|| PlanError::NoFacts(model.name.clone()))?;
        let fit = fit::fit(facts, &launch::memory_args(model), cpu(&bins));
        fits.insert(model.name.as_str(), fit);
    }
    let items = items(spec, &fits, &bins, current);
    let free: Vec<Bytes> = bins.iter().map(|bin| bin.budget).collect();
    let assignment = greedy::place(&items, &free);

    let mut ports = Ports::new(spec, inventory, current);
    let instances = instances(spec, found, &fits, &bins, &assignment, &mut ports)?;
    let devices = planned_devices(&bins, &instances);
    let reports = spec.deployments.iter().filter_map(|model| {
        let located = found.model(model)?;
        Some(report(model, located, &fits[model.name.as_str()], &bins, &devices, &assignment))
    });
    let reports: Vec<ModelReport> = reports.collect();
    let fits = reports.iter().all(ModelReport::is_complete);
    let verdict = if fits { PlanVerdict::Fits } else { PlanVerdict::Impossible };
    let parent = current.map(Plan::digest);
    let plan = Plan {
        parent,
        strategy: None,
        ray: None,
        scaled: BTreeMap::new(),
        external: spec.external.clone(),
        gateway: spec.gateway.clone(),
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
        models: reports,
        notes: inventory.notes.clone(),
    };
    Ok(Planned { plan, report })
}

fn bins<'a>(spec: &Spec, inventory: &'a Inventory) -> Vec<Bin<'a>> {
    let bin = |node: &'a Node, device: &'a Device| {
        let budget_beside = |others| budget(spec, device, others);
        let budget = budget_beside(device.used_by_others);
        Bin { node, device, budget, is_crowded: budget < budget_beside(Bytes::ZERO) }
    };
    let nodes = inventory.nodes.iter();
    nodes.flat_map(|node| node.devices.iter().map(move |device| bin(node, device))).collect()
}

/// What models may take on a device together, where others use so much.
fn budget(spec: &Spec, device: &Device, used_by_others: Bytes) -> Bytes {
    let free = device.total - used_by_others;
    let limit = match device.kind {
        DeviceKind::Host => spec.cluster.host_budget.map_or(free, |budget| budget.min(free)),
        DeviceKind::Gpu { .. } => free,
    };
    limit - spec.cluster.kept_free(limit)
}

/// The bins that a model may use: those it is pinned to; else GPUs, and the host only where there
/// are none.
fn allowed(model: &Deployment, bins: &[Bin<'_>]) -> Vec<usize> {
    let has_gpu = bins.iter().any(|bin| matches!(bin.device.kind, DeviceKind::Gpu { .. }));
    let may_use = |bin: &Bin<'_>| match model.devices.as_slice() {
        [] => has_gpu == matches!(bin.device.kind, DeviceKind::Gpu { .. }),
        selectors => selectors.iter().any(|selector| bin.device.is(selector)),
    };
    let may_be = |bin: &Bin<'_>| model.nodes.matches(bin.node) && may_use(bin);
    (0..bins.len()).filter(|bin| may_be(&bins[*bin])).collect()
}

fn items(
    spec: &Spec,
    fits: &BTreeMap<&str, Fit>,
    bins: &[Bin<'_>],
    current: Option<&Plan>,
) -> Vec<Item> {
    let mut items = Vec::new();
    for model in &spec.deployments {
        let fit = &fits[model.name.as_str()];
        if !fit.verdict.is_ready() {
            continue;
        }
        let allowed: Vec<usize> =
            allowed(model, bins).into_iter().filter(|bin| is_modelled(bins[*bin].device)).collect();
        for replica in 0..model.replicas.min {
            let id = InstanceId::new(&model.name, replica);
            let running = current.and_then(|plan| plan.instance(&id));
            let current = running.and_then(|instance| {
                bins.iter()
                    .position(|bin| bin.node.name == instance.node && instance.uses(&bin.device.id))
            });
            items.push(Item {
                id,
                bytes: fit.footprint.total(),
                allowed: allowed.clone(),
                current,
            });
        }
    }
    items
}

/// llama.cpp's memory on a GPU is not modelled yet, and what is not modelled is not promised.
fn is_modelled(device: &Device) -> bool {
    matches!(device.kind, DeviceKind::Host)
}

fn instances(
    spec: &Spec,
    found: &Found,
    fits: &BTreeMap<&str, Fit>,
    bins: &[Bin<'_>],
    assignment: &Assignment,
    ports: &mut Ports<'_>,
) -> Result<Vec<PlannedInstance>, PlanError> {
    let mut instances = Vec::new();
    for model in &spec.deployments {
        for replica in 0..model.replicas.min {
            let id = InstanceId::new(&model.name, replica);
            let Some(bin) = assignment.get(&id).map(|bin| &bins[*bin]) else { continue };
            let port = ports.take(&id)?;
            let fit = &fits[model.name.as_str()];
            let share = DeviceShare {
                device: bin.device.id.clone(),
                footprint: fit.footprint.clone(),
                resident_ready: fit.resident.ready_peak,
            };
            let path = found.model(model).map_or("", |located| &located.path);
            let listen = Listen { host: "127.0.0.1", port, on_gpus: false };
            let Start { args, environment, library } = Start::new(model, path, &listen);
            instances.push(PlannedInstance {
                id,
                deployment: model.name.clone(),
                model: model.model.clone(),
                engine: model.engine,
                engine_version: None,
                binary: found
                    .binaries
                    .get(&model.engine)
                    .unwrap_or(&spec.binaries[&model.engine])
                    .clone(),
                args,
                environment,
                library,
                host: "127.0.0.1".to_owned(),
                port,
                node: bin.node.name.clone(),
                folder: found.folder.clone(),
                shares: vec![share],
                cache_tokens: fit.context.as_ref().map(|context| context.cells),
                weight: model.weight,
                sleep: None,
            });
        }
    }
    // The largest starts first: while it loads there is the most room.
    let size = |instance: &PlannedInstance| -> Bytes {
        instance.shares.iter().map(|share| share.footprint.total()).sum()
    };
    instances.sort_by(|a, b| size(b).cmp(&size(a)).then_with(|| a.id.cmp(&b.id)));
    Ok(instances)
}

/// Ports for instances: those that run keep theirs unless somebody else took it, the others get the
/// lowest that is free.
struct Ports<'a> {
    first: u16,
    current: Option<&'a Plan>,
    foreign: BTreeSet<u16>,
    taken: BTreeSet<u16>,
}

impl<'a> Ports<'a> {
    fn new(spec: &Spec, inventory: &Inventory, current: Option<&'a Plan>) -> Self {
        let foreign = inventory.nodes.iter().flat_map(|node| node.ports_taken.iter().copied());
        let mut foreign: BTreeSet<u16> = foreign.collect();
        foreign.insert(spec.gateway.listen.port());
        let running = current.into_iter().flat_map(|plan| plan.instances.iter().map(|i| i.port));
        let taken = foreign.iter().copied().chain(running).collect();
        Self { first: spec.cluster.first_port, current, foreign, taken }
    }

    fn take(&mut self, id: &InstanceId) -> Result<u16, PlanError> {
        let mut range = self.first..self.first.saturating_add(PORT_RANGE);
        let running = self.current.and_then(|plan| plan.instance(id)).map(|instance| instance.port);
        let kept = running.filter(|port| range.contains(port) && !self.foreign.contains(port));
        let port = match kept {
            Some(port) => port,
            None => range
                .find(|port| !self.taken.contains(port))
                .ok_or(PlanError::NoPort(self.first))?,
        };
        self.taken.insert(port);
        Ok(port)
    }
}

fn planned_devices(bins: &[Bin<'_>], instances: &[PlannedInstance]) -> Vec<PlannedDevice> {
    let planned = |bin: &Bin<'_>| -> Bytes {
        instances.iter().map(|instance| instance.bytes_on(&bin.node.name, &bin.device.id)).sum()
    };
    bins.iter()
        .map(|bin| PlannedDevice {
            node: bin.node.name.clone(),
            device: bin.device.id.clone(),
            total: bin.device.total,
            budget: bin.budget,
            planned: planned(bin),
        })
        .collect()
}

fn report(
    model: &Deployment,
    located: &LocatedModel,
    fit: &Fit,
    bins: &[Bin<'_>],
    devices: &[PlannedDevice],
    assignment: &Assignment,
) -> ModelReport {
    let ids = (0..model.replicas.min).map(|replica| InstanceId::new(&model.name, replica));
    let placed: Vec<DeviceId> =
        ids.filter_map(|id| assignment.get(&id)).map(|bin| bins[*bin].device.id.clone()).collect();
    let mut report = ModelReport {
        model: model.name.clone(),
        verdict: fit.verdict,
        footprint: fit.footprint.clone(),
        wanted: model.replicas.min,
        placed,
        reasons: Vec::new(),
        changes: Vec::new(),
    };
    if report.is_complete() {
        return report;
    }
    explain(&mut report, model, located, fit, bins, devices);
    report
}

/// The processor that takes most, of those that a model can come to run on.
fn cpu(bins: &[Bin<'_>]) -> Cpu {
    Cpu { amx: bins.iter().any(|bin| bin.device.cpu.amx) }
}

/// Says in bytes why a model is not where it should be, and what would change that.
fn explain(
    report: &mut ModelReport,
    model: &Deployment,
    located: &LocatedModel,
    fit: &Fit,
    bins: &[Bin<'_>],
    devices: &[PlannedDevice],
) {
    if !fit.verdict.is_ready() {
        report.reasons.extend(fit.message.clone());
        return;
    }
    let allowed = allowed(model, bins);
    if !bins.iter().any(|bin| model.nodes.matches(bin.node)) {
        let names: BTreeSet<&str> = bins.iter().map(|bin| bin.node.name.as_str()).collect();
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        report.reasons.push(format!("it is kept to {}, and there is only {names}", model.nodes));
        report.changes.push(format!("leave `nodes` of {} out, or write {names}", model.name));
        return;
    }
    if allowed.is_empty() {
        let wanted: Vec<_> = model.devices.iter().map(ToString::to_string).collect();
        let there: Vec<_> = bins.iter().map(|bin| bin.device.id.to_string()).collect();
        report.reasons.push(format!(
            "no device is {}; there are: {}",
            wanted.join(" or "),
            there.join(", ")
        ));
        return;
    }
    let need = report.footprint.total();
    let mut best = Bytes::ZERO;
    for (bin, device) in allowed.iter().map(|bin| (&bins[*bin], &devices[*bin])) {
        if !is_modelled(bin.device) {
            report.reasons.push(format!("{}: {}", bin.device.id, GPU_NOT_MODELLED));
            continue;
        }
        best = best.max(device.headroom());
        report.reasons.push(reason(need, bin, device));
    }
    if allowed.iter().any(|bin| is_modelled(bins[*bin].device)) {
        let changes = |facts| relax::changes(model, facts, cpu(bins), need, best);
        report.changes = located.facts.gguf().map_or_else(Vec::new, changes);
    } else {
        report
            .changes
            .push(format!("pin {} to the host's memory: devices = [\"host\"]", model.name));
    }
}

const GPU_NOT_MODELLED: &str = "llama_server's memory on a GPU is not modelled in this version";

fn reason(need: Bytes, bin: &Bin<'_>, device: &PlannedDevice) -> String {
    let free = device.headroom();
    let mut text = format!(
        "{}: an instance needs {need}, and {free} of {} are left: {} short",
        device.device,
        device.budget,
        need - free
    );
    if bin.is_crowded {
        text.push_str(&format!(
            " (the device has {}, others use {})",
            device.total, bin.device.used_by_others
        ));
    }
    text
}
