//! The spec as it is written. Doc comments here become the descriptions in the JSON schema.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::external::RawExternals;
use super::flags::FlagValue;
use super::gateway::RawGateway;
use crate::adjust::AdjustSpec;
use crate::scale::Scale;
use crate::units::Bytes;

/// What berth should run, and where.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "berth.toml")]
pub struct RawSpec {
    /// The machines to run on.
    #[serde(default)]
    pub cluster: RawCluster,
    /// The one address in front of all models.
    #[serde(default)]
    pub gateway: RawGateway,
    /// Where the engines' programs are.
    #[serde(default)]
    pub engines: RawEngines,
    /// The models, by the name that clients ask for.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, RawModel>")]
    pub models: BTreeMap<Spanned<String>, RawModel>,
    /// Who adjusts the memory of what runs, and how far: nobody (`off`), berth with your consent (`advise`, the
    /// default), or berth by itself (`auto`).
    #[schemars(with = "Option<AdjustSpec>")]
    pub adjust: Option<Spanned<AdjustSpec>>,
    /// Named changes to all of the above, to be compared, planned and applied by name.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, RawStrategy>")]
    pub strategies: BTreeMap<Spanned<String>, RawStrategy>,
}

/// A named change to the spec: what it has takes the place of what the spec has, key by key.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawStrategy {
    /// What it is, in a line.
    pub title: Option<String>,
    /// What somebody else reckoned for it, to be shown beside what berth finds.
    pub written: Option<RawWritten>,
    /// Labels that nodes are given, by rules as in `nodes`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, BTreeMap<String, String>>")]
    pub labels: BTreeMap<Spanned<String>, BTreeMap<String, String>>,
    /// Models that are not run.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub without: Vec<Spanned<String>>,
    /// Changes to models, or further ones.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, RawModel>")]
    pub models: BTreeMap<Spanned<String>, RawModel>,
}

/// A sum that somebody wrote down: over all GPUs of a node, in thousands of MiB, as sums over
/// nvidia-smi's figures are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawWritten {
    /// What is used.
    pub used_gb: Option<f64>,
    /// What is free before the newcomer.
    pub free_gb: Option<f64>,
    /// What is free after it.
    pub margin_gb: Option<f64>,
}

/// The machines to run on.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawCluster {
    /// Who starts the engines: `local` starts them as child processes on this machine, `ray` as
    /// applications of Ray Serve on a cluster's.
    #[serde(default)]
    pub backend: Backend,
    /// Host memory that models may take together. Without it: what is free.
    #[schemars(with = "Option<String>")]
    pub host_budget: Option<Bytes>,
    /// Memory that stays free on every device. Without it: 3 % of the device's budget.
    #[schemars(with = "Option<String>")]
    pub headroom: Option<Bytes>,
    /// Engines listen on loopback ports from this one upwards. Default: 18100.
    #[schemars(with = "Option<u16>")]
    pub first_port: Option<Spanned<u16>>,
    /// Machines that are planned for without looking at them. Without any: this machine. With `ray` they
    /// say of its machines, by name or address, what Ray itself can't tell: the kind of their GPUs.
    #[serde(default)]
    pub nodes: Vec<RawNodes>,
    /// Where the Ray cluster is.
    pub ray: Option<RawRay>,
}

/// A Ray cluster.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawRay {
    /// Its dashboard. Default: http://127.0.0.1:8265.
    #[schemars(with = "Option<String>")]
    pub address: Option<Spanned<String>>,
    /// A file with its token. Without it: `RAY_AUTH_TOKEN`, if that is set.
    pub token_file: Option<String>,
    /// The label whose value is a node's name. Without it: its address.
    pub name_label: Option<String>,
}

/// Machines that are alike.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawNodes {
    /// Their names, with a range of numbers where there are several: `node-[0-15]`.
    #[schemars(with = "String")]
    pub names: Spanned<String>,
    /// The kind of their GPUs, as in `A10`.
    #[schemars(with = "Option<String>")]
    pub gpu: Option<Spanned<String>>,
    /// GPUs of each.
    #[serde(default)]
    #[schemars(with = "u32")]
    pub gpus: Option<Spanned<u32>>,
    /// Host memory of each that models may take.
    #[schemars(with = "Option<String>")]
    pub host_memory: Option<Bytes>,
    /// What others hold on each GPU.
    #[schemars(with = "Option<String>")]
    pub used_by_others: Option<Bytes>,
    /// The address of a single one.
    pub address: Option<String>,
    /// Labels, as Ray or Kubernetes have them.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Which machines are meant: names or addresses, or labels. `x`, `!x`, `in(x, y)`, `!in(x, y)`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a node's name, a list of names, or labels as in { zone = \"!a\" }"
)]
pub enum RawNodeRule {
    /// A name or an address.
    Name(String),
    /// Any of several.
    Names(Vec<String>),
    /// All of several labels.
    Labels(BTreeMap<String, String>),
}

/// How instances are spread.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected `node`, a label, or { over = \"rack\", most = 2 }")]
pub enum RawSpread {
    /// As evenly as there is room.
    Over(String),
    /// With a limit.
    Limited(RawSpreadLimit),
}

/// How instances are spread, with a limit.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawSpreadLimit {
    /// `node`, or a label.
    pub over: String,
    /// The most instances of the model in one.
    pub most: u32,
}

/// What instances are kept together with.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a model's name, or { model = \"embedder\", over = \"rack\" }"
)]
pub enum RawBeside {
    /// A model, on the same node.
    Model(String),
    /// A model, somewhere in the same domain.
    Over(RawBesideOver),
}

/// What instances are kept together with, and where.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawBesideOver {
    /// The model.
    pub model: String,
    /// `node`, or a label.
    pub over: String,
}

/// Who starts the engines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// Child processes on this machine.
    #[default]
    Local,
    /// Ray Serve on the machines of a Ray cluster.
    Ray,
}

/// Where the engines' programs are.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawEngines {
    /// llama.cpp's `llama-server`.
    #[serde(default)]
    pub llama_server: RawEngine,
    /// `vllm`.
    #[serde(default)]
    pub vllm: RawEngine,
    /// `ollama`.
    #[serde(default)]
    pub ollama: RawEngine,
}

/// Where one engine's program is.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawEngine {
    /// A path (relative ones start at the spec's folder) or a name found through `PATH`.
    pub binary: Option<String>,
    /// Its version, for what depends on it. Default for vllm: 0.26.0.
    #[schemars(with = "Option<String>")]
    pub version: Option<Spanned<String>>,
}

/// One model. In a strategy every key may be left out.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawModel {
    /// For llama_server a .gguf file, a folder with one (relative ones start at the spec's folder), or
    /// `hub:OWNER/NAME/FILE.gguf`. For vllm a folder with a config.json, a name that berth knows, or
    /// `OWNER/NAME`. For ollama the name that Ollama knows it by.
    #[schemars(with = "Option<String>")]
    pub source: Option<Spanned<String>>,
    /// What to reckon with where no file can be read: a known model and the type of its tensors.
    pub facts: Option<RawFacts>,
    /// The engine that runs it. Default: llama_server.
    pub engine: Option<EngineKind>,
    /// How many instances: a number, or `{ min = 1, max = 3 }`. On this machine `min` of them are planned;
    /// on machines that are planned for up to `max`, as many as have room, as if all were scaled up.
    pub replicas: Option<Replicas>,
    /// With bounds in `replicas` and a Ray cluster: how many run, by the requests that are ongoing, as in
    /// `{ target_ongoing_requests = 5 }`. Without it all that have room run.
    #[schemars(with = "Option<Scale>")]
    pub scale: Option<Spanned<Scale>>,
    /// The machines it may use: `node-0`, `!node-0`, `["a", "b"]`, or labels as in `{ zone = "a" }`.
    #[schemars(with = "Option<RawNodeRule>")]
    pub nodes: Option<Spanned<RawNodeRule>>,
    /// How instances are spread over failure domains: `node`, or a label as in `rack`; with a limit,
    /// `{ over = "rack", most = 2 }`.
    #[schemars(with = "Option<RawSpread>")]
    pub spread: Option<Spanned<RawSpread>>,
    /// A model that each instance must have on its node; or on nodes with the same value of a label,
    /// `{ model = "embedder", over = "rack" }`.
    #[schemars(with = "Option<RawBeside>")]
    pub beside: Option<Spanned<RawBeside>>,
    /// The devices it may use: `host`, `gpu:INDEX` or a GPU's UUID. Without it: any.
    #[schemars(with = "Option<Vec<String>>")]
    pub devices: Option<Vec<Spanned<String>>>,
    /// The engine's own flags under their own names, without the leading dashes.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, FlagValue>")]
    pub flags: BTreeMap<Spanned<String>, FlagValue>,
    /// Further words for the engine's command line, passed as they are: for flags that this
    /// version of berth doesn't know. Memory that unknown flags take is not counted.
    #[schemars(with = "Option<Vec<String>>")]
    pub extra_args: Option<Vec<Spanned<String>>>,
    /// What is asked of it.
    #[schemars(with = "Option<Demand>")]
    pub demand: Option<Spanned<Demand>>,
    /// Of a model with several deployments: how many of its requests this one gets, beside the others' weights.
    /// Default: 1.
    pub weight: Option<u32>,
    /// vLLM may be put to sleep while it is idle and others have taken its GPUs' memory: 1 keeps its weights in host
    /// memory, 2 reads them again when it wakes. Without it: never.
    #[schemars(with = "Option<u8>")]
    pub sleep_level: Option<Spanned<u8>>,
    /// Servers that somebody else runs: requests go to them, beside berth's own instances if there are any;
    /// they are watched, and never started or stopped. One, or a list.
    #[schemars(with = "Option<RawExternals>")]
    pub external: Option<Spanned<RawExternals>>,
    /// Groups of instances that differ, by name; what they don't say is the model's. Without any, the
    /// model is one group.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, RawModel>")]
    pub deployments: BTreeMap<Spanned<String>, RawModel>,
    /// What runs of it today, where berth can't see it: one instance on each of its `nodes`.
    pub running: Option<Box<RawRunning>>,
}

/// What runs today.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawRunning {
    /// The machines that have an instance.
    #[schemars(with = "RawNodeRule")]
    pub nodes: Spanned<RawNodeRule>,
    /// The devices of each; without it the first ones.
    #[schemars(with = "Option<Vec<String>>")]
    pub devices: Option<Vec<Spanned<String>>>,
    /// The flags that it runs with.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, FlagValue>")]
    pub flags: BTreeMap<Spanned<String>, FlagValue>,
    /// What is seen in use on each of its GPUs.
    #[schemars(with = "Option<String>")]
    pub observed: Option<Bytes>,
}

/// A model that is known, as a GGUF that isn't here.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawFacts {
    /// A name that berth knows, as in `medgemma-4b`.
    #[schemars(with = "String")]
    pub model: Spanned<String>,
    /// The type of its tensors: `q8_0`, `f16` or `bf16`; for vllm `w4a16`.
    #[serde(rename = "type")]
    #[schemars(with = "String")]
    pub tensor_type: Spanned<String>,
}

/// What is asked of a model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Demand {
    /// Requests a second, on average.
    pub requests_per_second: f64,
    /// Tokens of a prompt. Default: 1000.
    #[serde(default = "default_prompt")]
    pub prompt_tokens: u32,
    /// Tokens of an answer. Default: 250.
    #[serde(default = "default_answer")]
    pub answer_tokens: u32,
    /// The longest that a token may take under load, in milliseconds.
    pub token_ms: Option<f64>,
}

fn default_prompt() -> u32 {
    1000
}

fn default_answer() -> u32 {
    250
}

/// The engines that can run a model.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// llama.cpp's HTTP server.
    #[default]
    LlamaServer,
    /// Ollama.
    Ollama,
    /// vLLM.
    Vllm,
}

impl EngineKind {
    /// Its name in a spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LlamaServer => "llama_server",
            Self::Ollama => "ollama",
            Self::Vllm => "vllm",
        }
    }

    /// Where a server of it says whether it is well: 200 once it is.
    pub fn health_path(self) -> &'static str {
        match self {
            Self::LlamaServer | Self::Vllm => "/health",
            // Ollama answers before it has loaded anything.
            Self::Ollama => "/api/version",
        }
    }
}

/// How many instances of a model there may be. `min` of them are planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "RawReplicas")]
#[schemars(with = "RawReplicas")]
pub struct Replicas {
    /// At least this many: a plan without them does not fit.
    pub min: u32,
    /// At most this many.
    pub max: u32,
}

impl Default for Replicas {
    fn default() -> Self {
        Self { min: 1, max: 1 }
    }
}

/// Far beyond what one machine holds, and still small enough to enumerate.
const MAX_REPLICAS: u32 = 1024;

#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a number of replicas or { min = 1, max = 3 }")]
enum RawReplicas {
    /// Exactly this many.
    Fixed(u32),
    /// Between two bounds.
    Bounds(RawBounds),
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawBounds {
    min: u32,
    max: u32,
}

impl TryFrom<RawReplicas> for Replicas {
    type Error = String;

    fn try_from(raw: RawReplicas) -> Result<Self, Self::Error> {
        let (min, max) = match raw {
            RawReplicas::Fixed(n) => (n, n),
            RawReplicas::Bounds(RawBounds { min, max }) => (min, max),
        };
        match () {
            () if min == 0 => {
                Err("replicas: at least 1; take the model out to run none".to_owned())
            }
            () if min > max => Err(format!("replicas: min = {min} is more than max = {max}")),
            () if max > MAX_REPLICAS => Err(format!("replicas: at most {MAX_REPLICAS}")),
            () => Ok(Self { min, max }),
        }
    }
}
