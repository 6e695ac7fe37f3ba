//! A plan is a complete value: apply has no choice left to make.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::adjust::{AdjustSpec, Adjustment};
use crate::digest::Digest;
use crate::inventory::{DeviceId, InstanceId, RunningInstance};
use crate::memory::Footprint;
use crate::scale::Scaled;
use crate::spec::{EngineKind, External, GatewaySpec, RaySpec};
use crate::units::Bytes;

/// What shall run where. Immutable; its [`Plan::digest`] names it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The digest of the plan that was in force when this one was made: a plan whose parent is no
    /// longer in force is stale, and refused.
    pub parent: Option<Digest>,
    /// The strategy that it carries out; none for the spec as it is written.
    #[serde(default)]
    pub strategy: Option<String>,
    /// The Ray cluster that it is for; none for this machine.
    #[serde(default)]
    pub ray: Option<RaySpec>,
    /// The address that clients use.
    pub gateway: GatewaySpec,
    /// Deployments of which only as many instances run as are called for.
    #[serde(default)]
    pub scaled: BTreeMap<String, Scaled>,
    /// Servers that somebody else runs, to which requests go too.
    #[serde(default)]
    pub external: Vec<External>,
    /// Who adjusts it, and how far.
    #[serde(default)]
    pub adjust: AdjustSpec,
    /// What it has otherwise than the spec says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adjustments: Vec<Adjustment>,
    /// At least so long between two restarts on the way to it: set where nobody asked for it just now.
    #[serde(default)]
    pub pace_s: u64,
    /// The instances in the order in which they start.
    pub instances: Vec<PlannedInstance>,
    /// The devices with what the plan puts on them.
    pub devices: Vec<PlannedDevice>,
}

/// One engine process, to the last flag.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedInstance {
    /// Its id.
    pub id: InstanceId,
    /// The deployment that it belongs to.
    #[serde(default)]
    pub deployment: String,
    /// The model that it serves, by the name that clients ask for.
    pub model: String,
    /// The engine.
    pub engine: EngineKind,
    /// Its version, where the memory model goes by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_version: Option<String>,
    /// The engine's program.
    pub binary: String,
    /// All its arguments.
    pub args: Vec<String>,
    /// What its environment has beside what the engine's machine gives it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// What it is told to load once it answers; none for engines that load as they start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub library: Option<LibraryModel>,
    /// The address that it listens on.
    #[serde(default = "loopback", skip_serializing_if = "is_loopback")]
    pub host: String,
    /// The port that it listens on.
    pub port: u16,
    /// The node that it runs on.
    pub node: String,
    /// The folder that it starts in.
    pub folder: String,
    /// What it takes on each device that it uses.
    pub shares: Vec<DeviceShare>,
    /// Tokens that its cache holds, as planned: the gateway has no more in flight on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_tokens: Option<u64>,
    /// How many of the model's requests its deployment gets, beside the others' weights.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: u32,
    /// How it may be put to sleep; none where it stays awake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep: Option<Sleep>,
}

/// An instance's sleep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sleep {
    /// vLLM's level: 1 keeps its weights in host memory, 2 reads them again when it wakes.
    pub level: u8,
    /// What it holds of each device meanwhile, in the order of its shares.
    pub bytes: Vec<Bytes>,
    /// What it takes of host memory, and keeps once it is awake again.
    pub host: Bytes,
}

/// A model that an engine (Ollama) pulls from a library and loads when it is told to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LibraryModel {
    /// What the engine calls it.
    pub name: String,
    /// Tokens of a context, where the plan sets them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_ctx: Option<u64>,
    /// Tokens of a batch that the plan counts on: only the model itself can set them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_batch: Option<u64>,
}

/// What an instance takes on one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceShare {
    /// The device.
    pub device: DeviceId,
    /// The bytes by term; their sum is the most that the instance can come to hold.
    pub footprint: Footprint,
    /// The most that is resident until the engine is ready.
    pub resident_ready: Bytes,
}

/// One device and what is planned on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlannedDevice {
    /// The node.
    pub node: String,
    /// The device.
    pub device: DeviceId,
    /// All its memory.
    pub total: Bytes,
    /// What models may take together: the spec's budget or what nobody else uses, less what stays
    /// free.
    pub budget: Bytes,
    /// What the plan takes.
    pub planned: Bytes,
}

impl PlannedDevice {
    /// What is left of the budget.
    pub fn headroom(&self) -> Bytes {
        self.budget - self.planned
    }
}

fn one() -> u32 {
    1
}

/// Plans of before there were weights have the digests that they had.
fn is_one(weight: &u32) -> bool {
    *weight == 1
}

fn loopback() -> String {
    "127.0.0.1".to_owned()
}

/// Plans of before there were other addresses have the digests that they had.
fn is_loopback(host: &str) -> bool {
    host == "127.0.0.1"
}

impl PlannedInstance {
    /// The digest of what the process is started with: an instance whose digest changes restarts.
    pub fn config(&self) -> Digest {
        let devices: Vec<_> = self.shares.iter().map(|share| &share.device).collect();
        let (binary, args) = (&self.binary, &self.args);
        let start = (&self.id, self.engine, binary, args, &self.node, &self.folder, devices);
        // Plans of before there was more have the digests that they had.
        match (self.environment.is_empty(), &self.library, &self.sleep) {
            (true, None, None) => Digest::of(&start),
            (_, library, None) => Digest::of(&(start, &self.environment, library)),
            // It is started with what it needs to be told; at which level is told later.
            (_, library, Some(_)) => Digest::of(&(start, &self.environment, library, "sleeps")),
        }
    }

    /// What the model is called at the engine.
    pub fn served_name(&self) -> &str {
        self.library.as_ref().map_or(&self.model, |library| &library.name)
    }

    /// The process that runs it, as it is planned, of those that were seen.
    pub fn find_in<'a>(&self, running: &'a [RunningInstance]) -> Option<&'a RunningInstance> {
        let config = self.config();
        running.iter().find(|running| running.id == self.id && running.config == config)
    }

    /// What it takes on a device of a node.
    pub fn bytes_on(&self, node: &str, device: &DeviceId) -> Bytes {
        let shares =
            self.shares.iter().filter(|share| self.node == node && share.device == *device);
        shares.map(|share| share.footprint.total()).sum()
    }

    /// What it holds of a device of its node while it sleeps; none where it never does.
    pub fn bytes_asleep(&self, device: &DeviceId) -> Option<Bytes> {
        let at = self.shares.iter().position(|share| share.device == *device)?;
        self.sleep.as_ref()?.bytes.get(at).copied()
    }

    /// Whether it uses this device of its node.
    pub fn uses(&self, device: &DeviceId) -> bool {
        self.shares.iter().any(|share| share.device == *device)
    }
}

/// What becomes of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It runs on as it is.
    Stay,
    /// It is started.
    Start,
    /// It is stopped and started otherwise.
    Restart,
    /// It is stopped.
    Stop,
}

impl Plan {
    /// The plan's name: a digest of what shall run, and not of how it came to be nor of what was
    /// free at that moment.
    pub fn digest(&self) -> Digest {
        match self.scaled.is_empty() && self.external.is_empty() {
            true => Digest::of(&(&self.gateway, &self.instances)),
            false => Digest::of(&(&self.gateway, &self.instances, &self.scaled, &self.external)),
        }
    }

    /// The plan under which nothing runs, after `parent`.
    pub fn nothing(gateway: GatewaySpec, parent: Option<Digest>) -> Self {
        let (instances, devices, scaled) = (Vec::new(), Vec::new(), BTreeMap::new());
        Self {
            parent,
            strategy: None,
            ray: None,
            gateway,
            scaled,
            external: Vec::new(),
            adjust: AdjustSpec::default(),
            adjustments: Vec::new(),
            pace_s: 0,
            instances,
            devices,
        }
    }

    /// What becomes of instances when it follows another, in the order of their ids.
    pub fn changes_from(&self, before: Option<&Self>) -> BTreeMap<InstanceId, Change> {
        let earlier = |id: &InstanceId| before.and_then(|before| before.instance(id));
        let of = |one: &PlannedInstance| match earlier(&one.id) {
            None => Change::Start,
            Some(earlier) if earlier.config() == one.config() => Change::Stay,
            Some(_) => Change::Restart,
        };
        let mut changes: BTreeMap<InstanceId, Change> =
            self.instances.iter().map(|one| (one.id.clone(), of(one))).collect();
        for gone in before.into_iter().flat_map(|before| &before.instances) {
            changes.entry(gone.id.clone()).or_insert(Change::Stop);
        }
        changes
    }

    /// Whether it has an instance that was seen running, as it runs.
    pub fn wants(&self, running: &RunningInstance) -> bool {
        self.instance(&running.id).is_some_and(|planned| planned.config() == running.config)
    }

    /// The plan with only so many instances of deployments that are scaled: those that run first, then in the
    /// plan's order.
    #[must_use]
    pub fn with_counts(
        &self,
        counts: &BTreeMap<String, u32>,
        runs: impl Fn(&PlannedInstance) -> bool,
    ) -> Self {
        let mut left = counts.clone();
        let mut kept: BTreeSet<&InstanceId> = BTreeSet::new();
        let (first, then): (Vec<_>, Vec<_>) = self.instances.iter().partition(|one| runs(one));
        for instance in first.into_iter().chain(then) {
            match left.get_mut(&instance.deployment) {
                Some(0) => continue,
                Some(left) => *left -= 1,
                None => {}
            }
            kept.insert(&instance.id);
        }
        let instances = self.instances.iter().filter(|one| kept.contains(&one.id));
        Self { instances: instances.cloned().collect(), ..self.clone() }
    }

    /// What it puts on a device of a node, all instances together.
    pub fn bytes_on(&self, node: &str, device: &DeviceId) -> Bytes {
        let here = self.devices.iter().filter(|one| one.node == node && one.device == *device);
        here.map(|one| one.planned).sum()
    }

    /// The instance with this id.
    pub fn instance(&self, id: &InstanceId) -> Option<&PlannedInstance> {
        self.instances.iter().find(|instance| instance.id == *id)
    }
}
