//! What was seen at one time.

use serde::{Deserialize, Serialize};

use super::owners::Owners;
use crate::inventory::{Device, DeviceId, DeviceKind, InstanceId, Inventory, Node};
use crate::units::Bytes;

/// Of the host's foreign processes so many are named, the largest: where there are fewer, they are all that matter.
pub const MOST_NAMED: usize = 12;

/// One look at devices and engines. What is `None` could not be seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// The devices, in the order of nodes and then of devices.
    pub devices: Vec<DeviceLook>,
    /// The engines that were asked.
    pub engines: Vec<EngineLook>,
    /// Processes that the kernel has killed for want of memory since it started.
    #[serde(default)]
    pub oom_kills: Option<u64>,
    /// What could not be seen, in words.
    pub notes: Vec<String>,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceLook {
    /// Its node.
    pub node: String,
    /// Its id.
    pub device: DeviceId,
    /// What it is called: a GPU's product, or `host memory`.
    pub name: String,
    /// All its memory.
    pub total: Bytes,
    /// What can't be had of it, whoever holds it.
    pub used: Option<Bytes>,
    /// Who holds it: berth's instances, and others as far as they were seen.
    pub holders: Option<Vec<Holder>>,
}

/// A process that holds memory of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Its program's name.
    pub name: String,
    /// The instance that it is of; none for a foreign one.
    pub instance: Option<InstanceId>,
    /// What it holds.
    pub bytes: Bytes,
}

/// What an engine says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EngineLook {
    /// The instance.
    pub instance: InstanceId,
    /// Requests that it works on.
    pub running: Option<u64>,
    /// Requests that wait in it.
    pub waiting: Option<u64>,
    /// The share of its KV cache that is taken, from 0 to 1.
    pub kv_cache_usage: Option<f64>,
    /// Requests that it had to put off for want of cache, since it started.
    pub preemptions: Option<u64>,
    /// What it says that its model holds of its devices.
    #[serde(default)]
    pub held: Option<Bytes>,
    /// Whether it sleeps.
    #[serde(default)]
    pub is_asleep: Option<bool>,
}

impl DeviceLook {
    /// What berth's instances hold.
    pub fn own(&self) -> Option<Bytes> {
        let holders = self.holders.as_ref()?.iter();
        Some(holders.filter(|one| one.instance.is_some()).map(|one| one.bytes).sum())
    }

    /// What anybody else holds, seen or not.
    pub fn foreign(&self) -> Option<Bytes> {
        Some(self.used? - self.own()?)
    }

    /// What an instance holds.
    pub fn held_by(&self, id: &InstanceId) -> Option<Bytes> {
        let holders = self.holders.as_ref()?.iter();
        Some(holders.filter(|one| one.instance.as_ref() == Some(id)).map(|one| one.bytes).sum())
    }

    /// What is taken once berth's instances hold what is planned for them. Where it isn't seen who holds what, all that is
    /// used is taken for theirs: one that starts and fills its place takes nothing more.
    pub fn taken(&self, planned: Bytes) -> Option<Bytes> {
        match self.own().zip(self.foreign()) {
            Some((own, foreign)) => Some(foreign + own.max(planned)),
            None => Some(self.used?.max(planned)),
        }
    }

    /// What is left then.
    pub fn left(&self, planned: Bytes) -> Option<Bytes> {
        Some(self.total - self.taken(planned)?)
    }

    /// What nobody holds.
    pub fn free(&self) -> Option<Bytes> {
        Some(self.total - self.used?)
    }
}

impl Look {
    /// What an inventory says in which all that is used of GPUs is counted as others': how much is used, and by whom as
    /// far as that is seen.
    pub fn of_inventory(inventory: &Inventory, at_ms: u64) -> Self {
        let owners = &Owners::new(inventory);
        let of = |node: &Node| {
            let device = |one: &Device| DeviceLook {
                node: node.name.clone(),
                device: one.id.clone(),
                name: match &one.kind {
                    DeviceKind::Host => "host memory".to_owned(),
                    DeviceKind::Gpu { name, .. } => name.clone(),
                },
                total: one.total,
                used: one.is_seen.then_some(one.used_by_others),
                holders: owners.holders(node, one),
            };
            node.devices.iter().map(device).collect::<Vec<_>>()
        };
        let devices = inventory.nodes.iter().flat_map(of).collect();
        let (engines, oom_kills) = (Vec::new(), None);
        Self { at_ms, devices, engines, oom_kills, notes: inventory.notes.clone() }
    }

    /// The device of a node.
    pub fn device(&self, node: &str, device: &DeviceId) -> Option<&DeviceLook> {
        self.devices.iter().find(|one| one.node == node && one.device == *device)
    }
}
