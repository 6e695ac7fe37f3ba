//! The spec as it is written. Doc comments here become the descriptions in the JSON schema.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::flags::FlagValue;
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
}

/// The machines to run on.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawCluster {
    /// Who starts the engines: `local` starts them as child processes on this machine.
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
}

/// Who starts the engines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// Child processes on this machine.
    #[default]
    Local,
}

/// The one address in front of all models.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawGateway {
    /// Address and port. Default: 127.0.0.1:8080. Beyond loopback anybody who reaches it can use
    /// the models: say so with `allow_remote`.
    #[schemars(with = "Option<String>")]
    pub listen: Option<Spanned<SocketAddr>>,
    /// Allow an address beyond loopback although there are no keys yet.
    #[serde(default)]
    pub allow_remote: bool,
    /// Largest request body. Default: 32 MiB.
    #[schemars(with = "Option<String>")]
    pub max_body: Option<Bytes>,
}

/// Where the engines' programs are.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawEngines {
    /// llama.cpp's `llama-server`.
    #[serde(default)]
    pub llama_server: RawEngine,
}

/// Where one engine's program is.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawEngine {
    /// A path (relative ones start at the spec's folder) or a name found through `PATH`.
    pub binary: Option<String>,
}

/// One model.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawModel {
    /// A .gguf file, a folder with one (relative ones start at the spec's folder), or
    /// `hub:OWNER/NAME/FILE.gguf`.
    #[schemars(with = "String")]
    pub source: Spanned<String>,
    /// The engine that runs it.
    #[serde(default)]
    pub engine: EngineKind,
    /// How many instances: a number, or `{ min = 1, max = 3 }`; `min` of them are planned.
    #[serde(default)]
    pub replicas: Replicas,
    /// The devices it may use: `host`, `gpu:INDEX` or a GPU's UUID. Without it: any.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub devices: Vec<Spanned<String>>,
    /// The engine's own flags under their own names, without the leading dashes.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, FlagValue>")]
    pub flags: BTreeMap<Spanned<String>, FlagValue>,
    /// Further words for the engine's command line, passed as they are: for flags that this
    /// version of berth doesn't know. Memory that unknown flags take is not counted.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub extra_args: Vec<Spanned<String>>,
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
}

impl EngineKind {
    /// Its name in a spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LlamaServer => "llama_server",
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
