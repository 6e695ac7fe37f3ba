//! Who holds a GPU's memory: a driver says which process holds what, a supervisor or a marker which processes are an
//! engine's. What can't be is doubted.

use std::collections::{BTreeSet, HashMap};

use super::look::{Holder, Look};
use crate::inventory::{Device, DeviceId, InstanceId, Inventory, Node};
use crate::plan::{Plan, PlannedInstance};
use crate::units::Bytes;

/// More than a driver keeps of a GPU to itself: .6 GiB of an H200.
const DRIVERS: Bytes = Bytes(2 << 30);

/// Whose a process is, by its node and number.
pub(super) struct Owners<'a>(HashMap<(&'a str, u32), &'a InstanceId>);

impl<'a> Owners<'a> {
    pub(super) fn new(inventory: &'a Inventory) -> Self {
        let of = inventory
            .instances
            .iter()
            .flat_map(|one| one.pids.iter().map(|pid| ((one.node.as_str(), *pid), &one.id)));
        Self(of.collect())
    }

    /// Who holds memory of a device; `None` where nobody says.
    pub(super) fn holders(&self, node: &Node, device: &Device) -> Option<Vec<Holder>> {
        let holder = |pid: u32, bytes| Holder {
            pid,
            name: "?".to_owned(),
            instance: self.0.get(&(node.name.as_str(), pid)).map(|id| (*id).clone()),
            bytes,
        };
        let processes = device.processes.as_ref()?.iter();
        Some(processes.map(|one| holder(one.pid, one.bytes)).collect())
    }
}

impl Look {
    /// The same without holders of GPUs that may be wrong: what an engine that runs holds may be among what is used, and
    /// none of its processes is seen there. A container may hide them, or they aren't listed yet.
    #[must_use]
    pub fn doubted(mut self, plan: &Plan, running: &BTreeSet<InstanceId>) -> Self {
        let mut expected: HashMap<(&str, &DeviceId), Vec<(&InstanceId, Bytes)>> = HashMap::new();
        let runs = |one: &&PlannedInstance| running.contains(&one.id);
        for one in plan.instances.iter().filter(runs) {
            for share in &one.shares {
                let all = expected.entry((one.node.as_str(), &share.device)).or_default();
                all.push((&one.id, share.footprint.total()));
            }
        }
        for device in self.devices.iter_mut().filter(|device| device.device != DeviceId::host()) {
            let (Some(left), Some(holders)) = (device.foreign(), &device.holders) else { continue };
            let is_found =
                |id: &InstanceId| holders.iter().any(|one| one.instance.as_ref() == Some(id));
            // Of what is left, an engine may have begun to take its share.
            let is_nothing_yet = |planned: Bytes| left <= DRIVERS.min(Bytes(planned.0 / 2));
            let expected = expected.get(&(device.node.as_str(), &device.device));
            let mut expected = expected.into_iter().flatten();
            if !expected.all(|(id, planned)| is_found(id) || is_nothing_yet(*planned)) {
                device.holders = None;
            }
        }
        self
    }
}
