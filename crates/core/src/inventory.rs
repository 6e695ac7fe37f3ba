//! One observation of what is there: nodes, devices, and the instances that run on them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::plan::{Plan, PlannedInstance};
use crate::spec::DeviceSelector;
use crate::units::Bytes;

/// What an observer saw at one time. It may be partial: what could not be read is in `notes`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    /// The machines, in the order of their names.
    pub nodes: Vec<Node>,
    /// Instances of berth's that run, in the order of their ids.
    pub instances: Vec<RunningInstance>,
    /// What could not be observed, in words.
    pub notes: Vec<String>,
}

impl Inventory {
    /// The same without what a plan's instances hold of GPUs, where all that is held was counted as others'.
    /// It is reckoned by the plan: what an instance doesn't hold of it yet is its own all the same.
    #[must_use]
    pub fn without(mut self, plan: &Plan) -> Self {
        let running: BTreeSet<&InstanceId> = self.instances.iter().map(|one| &one.id).collect();
        let runs = |one: &&PlannedInstance| running.contains(&one.id);
        for node in &mut self.nodes {
            for device in node.devices.iter_mut().filter(|device| device.is_gpu()) {
                let own = plan.instances.iter().filter(runs);
                let own: Bytes = own.map(|one| one.bytes_on(&node.name, &device.id)).sum();
                device.used_by_others = device.used_by_others - own;
            }
        }
        self
    }
}

/// One machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its devices: host memory first, then GPUs by index.
    pub devices: Vec<Device>,
    /// TCP ports that somebody other than berth's instances listens on.
    pub ports_taken: BTreeSet<u16>,
    /// Its address, where it is known.
    #[serde(default)]
    pub address: Option<String>,
    /// What its cluster calls it, where that is another name: Ray's id of a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Memory that models can be placed in: a GPU's, or the host's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// `host`, or the GPU's UUID.
    pub id: DeviceId,
    /// What it is.
    pub kind: DeviceKind,
    /// All its memory.
    pub total: Bytes,
    /// What anything but berth's own instances holds or keeps from use.
    pub used_by_others: Bytes,
    /// Whether that was looked at, and not only written down.
    #[serde(default)]
    pub is_seen: bool,
    /// Processes that hold memory of it; `None` where they aren't seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<Vec<DeviceProcess>>,
    /// The processor beside it.
    #[serde(default)]
    pub cpu: Cpu,
}

/// A process of the device's machine, and what it holds of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceProcess {
    /// Its id.
    pub pid: u32,
    /// What it holds.
    pub bytes: Bytes,
}

/// What engines' memory depends on of a processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// Whether it has Intel's matrix extensions for 8-bit integers: llama.cpp keeps most weights a
    /// second time for them.
    pub amx: bool,
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// The host's memory.
    Host,
    /// A GPU.
    Gpu {
        /// NVML's index.
        index: u32,
        /// The product's name.
        name: String,
    },
}

/// The name of a device: `host`, or a GPU's UUID.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct DeviceId(pub String);

impl DeviceId {
    /// The host's memory.
    pub fn host() -> Self {
        Self("host".to_owned())
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Device {
    /// Whether it is a GPU.
    pub fn is_gpu(&self) -> bool {
        matches!(self.kind, DeviceKind::Gpu { .. })
    }

    /// Whether a selector means this device.
    pub fn is(&self, selector: &DeviceSelector) -> bool {
        match (selector, &self.kind) {
            (DeviceSelector::Host, DeviceKind::Host) => true,
            (DeviceSelector::GpuIndex(wanted), DeviceKind::Gpu { index, .. }) => wanted == index,
            (DeviceSelector::GpuUuid(uuid), DeviceKind::Gpu { .. }) => self.id.0 == *uuid,
            _ => false,
        }
    }
}

/// The name of an instance: its model's name and its number, as in `tiny-0`.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct InstanceId(pub String);

impl InstanceId {
    /// The id of a model's instance number `replica`.
    pub fn new(model: &str, replica: u32) -> Self {
        Self(format!("{model}-{replica}"))
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// An instance that an observer saw running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningInstance {
    /// Its id.
    pub id: InstanceId,
    /// The digest of the configuration that it was started with.
    pub config: Digest,
    /// The machine that it runs on; empty before it has one.
    pub node: String,
    /// The engine's first process, or one that survived it; on a Ray cluster its replica's.
    pub pid: u32,
    /// All its processes; none where they aren't seen.
    pub pids: Vec<u32>,
    /// Their process group, which signals are sent to.
    pub group: u32,
    /// When the kernel started the process, in clock ticks after boot: with the pid, its identity.
    pub started_ticks: u64,
    /// What the operating system says it holds.
    pub memory: ProcessMemory,
    /// What its log said last, where that was read while it starts.
    pub doing: Option<String>,
}

/// A process's memory as the operating system counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessMemory {
    /// Resident now (VmRSS).
    pub resident: Bytes,
    /// The most that was ever resident (VmHWM).
    pub resident_peak: Bytes,
    /// The part of `resident` that is not backed by files (RssAnon).
    pub anonymous: Bytes,
}
