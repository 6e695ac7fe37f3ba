//! The independent checker: reads a plan as a stranger would and says what is wrong with it.
//!
//! It shares no code with the placement. Every plan passes it before it is applied.

use std::collections::{BTreeMap, BTreeSet};

use crate::inventory::{Device, DeviceId, DeviceKind, InstanceId, Inventory};
use crate::plan::{Plan, PlannedInstance};
use crate::spec::{Deployment, Spec};
use crate::units::Bytes;

/// Something that a plan may not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// More is planned on a device than it has.
    #[error("{device} of {node}: {planned} planned, {available} available")]
    Overcommitted {
        /// The node.
        node: String,
        /// The device.
        device: DeviceId,
        /// The sum of all shares.
        planned: Bytes,
        /// What models may take there.
        available: Bytes,
    },
    /// A device's line in the plan is not the sum of its instances.
    #[error("{device} of {node}: the plan says {stated}, its instances add up to {sum}")]
    WrongSum {
        /// The node.
        node: String,
        /// The device.
        device: DeviceId,
        /// What the plan states.
        stated: Bytes,
        /// What the instances add up to.
        sum: Bytes,
    },
    /// An instance is on a device that the inventory doesn't have.
    #[error("{instance} is on {device} of {node}, which does not exist")]
    NoSuchDevice {
        /// The instance.
        instance: InstanceId,
        /// The node.
        node: String,
        /// The device.
        device: DeviceId,
    },
    /// An instance is on a device that its model may not use.
    #[error("{instance} may not use {device}")]
    DeviceNotAllowed {
        /// The instance.
        instance: InstanceId,
        /// The device.
        device: DeviceId,
    },
    /// An instance that uses no memory at all can't be right.
    #[error("{0} takes no memory on any device")]
    NoShare(InstanceId),
    /// Two instances have one id.
    #[error("two instances are called {0}")]
    DuplicateInstance(InstanceId),
    /// Two instances, or an instance and somebody else, have one port.
    #[error("{instance} listens on port {port}, which is not free")]
    PortTaken {
        /// The instance.
        instance: InstanceId,
        /// The port.
        port: u16,
    },
    /// A model has too few or too many instances.
    #[error("{model} has {planned} instances, not {min} to {max}")]
    WrongReplicas {
        /// The model.
        model: String,
        /// Instances in the plan.
        planned: u32,
        /// The least.
        min: u32,
        /// The most.
        max: u32,
    },
    /// An instance of a model that the spec doesn't have.
    #[error("{instance} serves {model}, which the spec does not have")]
    UnknownModel {
        /// The instance.
        instance: InstanceId,
        /// The model.
        model: String,
    },
}

/// Everything that is wrong with `plan`; empty for a plan that may be applied.
pub fn check(plan: &Plan, spec: &Spec, inventory: &Inventory) -> Vec<Violation> {
    let mut violations = Vec::new();
    check_identity(plan, inventory, &mut violations);
    check_replicas(plan, spec, &mut violations);
    check_devices(plan, spec, inventory, &mut violations);
    check_memory(plan, spec, inventory, &mut violations);
    violations
}

fn check_identity(plan: &Plan, inventory: &Inventory, violations: &mut Vec<Violation>) {
    let mut ids = BTreeSet::new();
    let mut ports: BTreeSet<(&str, u16)> = inventory
        .nodes
        .iter()
        .flat_map(|node| node.ports_taken.iter().map(|port| (node.name.as_str(), *port)))
        .collect();
    for instance in &plan.instances {
        if !ids.insert(&instance.id) {
            violations.push(Violation::DuplicateInstance(instance.id.clone()));
        }
        if !ports.insert((&instance.node, instance.port)) {
            let (instance, port) = (instance.id.clone(), instance.port);
            violations.push(Violation::PortTaken { instance, port });
        }
    }
}

fn check_replicas(plan: &Plan, spec: &Spec, violations: &mut Vec<Violation>) {
    for model in &spec.deployments {
        let planned = plan.instances.iter().filter(|i| i.deployment == model.name).count() as u32;
        let (min, max) = (model.replicas.min, model.replicas.max);
        if planned < min || planned > max {
            let model = model.name.clone();
            violations.push(Violation::WrongReplicas { model, planned, min, max });
        }
    }
}

fn check_devices(plan: &Plan, spec: &Spec, inventory: &Inventory, violations: &mut Vec<Violation>) {
    for instance in &plan.instances {
        let Some(model) = spec
            .deployments
            .iter()
            .find(|one| one.name == instance.deployment && one.model == instance.model)
        else {
            let (instance, model) = (instance.id.clone(), instance.model.clone());
            violations.push(Violation::UnknownModel { instance, model });
            continue;
        };
        if instance.shares.iter().all(|share| share.footprint.terms.is_empty()) {
            violations.push(Violation::NoShare(instance.id.clone()));
        }
        check_shares(instance, model, inventory, violations);
    }
}

fn check_shares(
    instance: &PlannedInstance,
    model: &Deployment,
    inventory: &Inventory,
    violations: &mut Vec<Violation>,
) {
    for share in &instance.shares {
        let id = instance.id.clone();
        let device_id = share.device.clone();
        match find_device(inventory, &instance.node, &share.device) {
            None => violations.push(Violation::NoSuchDevice {
                instance: id,
                node: instance.node.clone(),
                device: device_id,
            }),
            Some(device) => {
                let pinned = !model.devices.is_empty();
                if pinned && !model.devices.iter().any(|selector| device.is(selector)) {
                    violations
                        .push(Violation::DeviceNotAllowed { instance: id, device: device_id });
                }
            }
        }
    }
}

fn check_memory(plan: &Plan, spec: &Spec, inventory: &Inventory, violations: &mut Vec<Violation>) {
    let mut sums: BTreeMap<(&str, &DeviceId), u128> = BTreeMap::new();
    for instance in &plan.instances {
        for share in &instance.shares {
            let bytes: u128 =
                share.footprint.terms.iter().map(|term| u128::from(term.bytes.0)).sum();
            *sums.entry((&instance.node, &share.device)).or_default() += bytes;
        }
    }
    for device in &plan.devices {
        let key = (device.node.as_str(), &device.device);
        let sum = Bytes(sums.get(&key).copied().unwrap_or(0).min(u128::from(u64::MAX)) as u64);
        if sum != device.planned {
            violations.push(Violation::WrongSum {
                node: device.node.clone(),
                device: device.device.clone(),
                stated: device.planned,
                sum,
            });
        }
    }
    for ((node, id), sum) in sums {
        let Some(device) = find_device(inventory, node, id) else { continue };
        let available = available_on(device, spec);
        if sum > u128::from(available.0) {
            violations.push(Violation::Overcommitted {
                node: node.to_owned(),
                device: id.clone(),
                planned: Bytes(sum.min(u128::from(u64::MAX)) as u64),
                available,
            });
        }
    }
}

/// What models may take on a device, counted anew: never more than nobody else uses. Of the host's memory
/// never more than the spec allows, less what shall stay free; engines on GPUs size themselves, and what
/// they leave is told as a note.
fn available_on(device: &Device, spec: &Spec) -> Bytes {
    let unused = device.total.0.saturating_sub(device.used_by_others.0);
    if device.is_gpu() {
        return Bytes(unused);
    }
    let limit = match (&device.kind, spec.cluster.host_budget) {
        (DeviceKind::Host, Some(budget)) => unused.min(budget.0),
        _ => unused,
    };
    let kept_free = spec.cluster.headroom.map_or(limit / 100 * 3, |headroom| headroom.0);
    Bytes(limit.saturating_sub(kept_free))
}

fn find_device<'a>(inventory: &'a Inventory, node: &str, id: &DeviceId) -> Option<&'a Device> {
    let node = inventory.nodes.iter().find(|candidate| candidate.name == node)?;
    node.devices.iter().find(|device| device.id == *id)
}
