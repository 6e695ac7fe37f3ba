//! Who holds a GPU's memory, where one says which process holds what (a driver), and another which processes are an
//! engine's (its supervisor).

use std::collections::{HashMap, HashSet};

use super::look::Holder;
use crate::inventory::{Device, DeviceId, InstanceId, Inventory, Node};
use crate::plan::{Plan, PlannedInstance};
use crate::units::Bytes;

/// More than a driver keeps of a GPU to itself: .6 GiB of an H200.
const DRIVERS: Bytes = Bytes(2 << 30);

/// Whose processes are whose, and who should be found where.
pub(super) struct Owners<'a> {
    /// By node and process.
    of_process: HashMap<(&'a str, u32), &'a InstanceId>,
    /// Instances that run, by node and device, and what each is to hold there.
    expected: HashMap<(&'a str, &'a DeviceId), Vec<(&'a InstanceId, Bytes)>>,
}

impl<'a> Owners<'a> {
    pub(super) fn new(inventory: &'a Inventory, plan: &'a Plan) -> Self {
        let running = inventory.instances.iter();
        let of_process = running
            .flat_map(|one| one.pids.iter().map(|pid| ((one.node.as_str(), *pid), &one.id)))
            .collect();
        let running: HashSet<&InstanceId> = inventory.instances.iter().map(|one| &one.id).collect();
        let mut expected: HashMap<_, Vec<_>> = HashMap::new();
        let runs = |one: &&PlannedInstance| running.contains(&one.id);
        for one in plan.instances.iter().filter(runs) {
            for share in &one.shares {
                let all = expected.entry((one.node.as_str(), &share.device)).or_default();
                all.push((&one.id, share.footprint.total()));
            }
        }
        Self { of_process, expected }
    }

    /// Who holds memory of a device. `None` where it isn't seen: nobody says, or what an engine holds may be among what is
    /// used and none of its processes is (a container may hide them, or they aren't listed yet).
    pub(super) fn holders(&self, node: &Node, device: &Device) -> Option<Vec<Holder>> {
        let holder = |pid: u32, bytes| Holder {
            pid,
            name: "?".to_owned(),
            instance: self.of_process.get(&(node.name.as_str(), pid)).map(|id| (*id).clone()),
            bytes,
        };
        let processes = device.processes.as_ref()?.iter();
        let holders: Vec<Holder> = processes.map(|one| holder(one.pid, one.bytes)).collect();
        let own = holders.iter().filter(|one| one.instance.is_some());
        let own: Bytes = own.map(|one| one.bytes).sum();
        let left = device.used_by_others - own;
        let is_found =
            |id: &InstanceId| holders.iter().any(|one| one.instance.as_ref() == Some(id));
        // Of what is left, an engine may have begun to take its share.
        let is_nothing_yet = |planned: Bytes| left <= DRIVERS.min(Bytes(planned.0 / 2));
        let expected = self.expected.get(&(node.name.as_str(), &device.id));
        let mut expected = expected.into_iter().flatten();
        let is_plausible = expected.all(|(id, planned)| is_found(id) || is_nothing_yet(*planned));
        is_plausible.then_some(holders)
    }
}
