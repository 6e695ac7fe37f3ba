//! From [`RawSpec`] to [`Spec`]: every problem is reported, not only the first.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::error::Problems;
use super::raw::{Backend, EngineKind, RawModel, RawSpec, Replicas};
use super::{Flags, SpecError};
use crate::memory::llama_cpp::LlamaFlags;
use crate::memory::llama_cpp::flags::{self as llama_flags, Class};
use crate::units::Bytes;

const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);
const DEFAULT_FIRST_PORT: u16 = 18_100;
const DEFAULT_MAX_BODY: Bytes = Bytes::mib(32);
/// Ports that may be tried from `first_port` upwards.
pub(crate) const PORT_RANGE: u16 = 1_000;

/// A valid spec.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spec {
    /// The machines to run on.
    pub cluster: ClusterSpec,
    /// The one address in front of all models.
    pub gateway: GatewaySpec,
    /// Each engine's program, as the spec names it.
    pub binaries: BTreeMap<EngineKind, String>,
    /// The models, in the order of their names.
    pub models: Vec<ModelSpec>,
}

/// The machines to run on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClusterSpec {
    /// Who starts the engines.
    pub backend: Backend,
    /// Host memory that models may take together.
    pub host_budget: Option<Bytes>,
    /// Memory that stays free on every device.
    pub headroom: Option<Bytes>,
    /// Engines listen on loopback ports from this one upwards.
    pub first_port: u16,
}

/// The one address in front of all models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GatewaySpec {
    /// Address and port.
    pub listen: SocketAddr,
    /// Largest request body.
    pub max_body: Bytes,
}

/// One model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelSpec {
    /// The name that clients ask for.
    pub name: String,
    /// Where its weights are.
    pub source: Source,
    /// The engine that runs it.
    pub engine: EngineKind,
    /// How many instances.
    pub replicas: Replicas,
    /// The devices it may use; empty means any.
    pub devices: Vec<DeviceSelector>,
    /// The engine's own flags.
    pub flags: Flags,
    /// Further words of its command line, as they are.
    pub extra_args: Vec<String>,
}

/// Where a model's weights are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A file or folder, as the spec writes it.
    Path(String),
    /// A file of a model hub's repository.
    Hub {
        /// `OWNER/NAME`.
        repo: String,
        /// The file in it.
        file: String,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(path),
            Self::Hub { repo, file } => write!(f, "hub:{repo}/{file}"),
        }
    }
}

/// A device as a person names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceSelector {
    /// The host's memory.
    Host,
    /// A GPU by the index that NVML gives it.
    GpuIndex(u32),
    /// A GPU by its UUID.
    GpuUuid(String),
}

impl fmt::Display for DeviceSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::GpuIndex(index) => write!(f, "gpu:{index}"),
            Self::GpuUuid(uuid) => f.write_str(uuid),
        }
    }
}

impl Default for GatewaySpec {
    fn default() -> Self {
        Self { listen: DEFAULT_LISTEN, max_body: DEFAULT_MAX_BODY }
    }
}

impl Spec {
    /// Reads a spec. `file` is only for messages.
    ///
    /// # Errors
    /// Every problem that was found, with line, column and what to write instead.
    pub fn parse(file: &str, text: &str) -> Result<Self, SpecError> {
        let mut problems = Problems::new(file, text);
        let raw: RawSpec = match toml::from_str(text) {
            Ok(raw) => raw,
            Err(error) => {
                problems.add_toml(&error);
                problems.into_result()?;
                unreachable!("a problem was added");
            }
        };
        let spec = validate(raw, &mut problems);
        problems.into_result()?;
        Ok(spec)
    }
}

fn validate(raw: RawSpec, problems: &mut Problems<'_>) -> Spec {
    if raw.models.is_empty() {
        problems.add_with_hint(
            0..0,
            "there is no model in this spec",
            "add a section such as\n    [models.tiny]\n    source = \"models/tiny.gguf\"",
        );
    }
    let first_port = raw.cluster.first_port.map_or(DEFAULT_FIRST_PORT, |port| {
        if *port.get_ref() < 1024 || *port.get_ref() > u16::MAX - PORT_RANGE {
            problems.add(
                port.span(),
                format!("first_port must be between 1024 and {}", u16::MAX - PORT_RANGE),
            );
        }
        port.into_inner()
    });
    let listen = raw.gateway.listen.map_or(DEFAULT_LISTEN, |listen| {
        if !listen.get_ref().ip().is_loopback() && !raw.gateway.allow_remote {
            problems.add_with_hint(
                listen.span(),
                format!("{} is reachable from other machines", listen.get_ref()),
                "listen on 127.0.0.1, or set allow_remote = true in [gateway] if anybody who \
                 reaches it may use the models",
            );
        }
        listen.into_inner()
    });
    let llama_server = raw.engines.llama_server.binary.unwrap_or_else(|| "llama-server".to_owned());
    Spec {
        cluster: ClusterSpec {
            backend: raw.cluster.backend,
            host_budget: raw.cluster.host_budget,
            headroom: raw.cluster.headroom,
            first_port,
        },
        gateway: GatewaySpec { listen, max_body: raw.gateway.max_body.unwrap_or(DEFAULT_MAX_BODY) },
        binaries: BTreeMap::from([(EngineKind::LlamaServer, llama_server)]),
        models: raw
            .models
            .into_iter()
            .map(|(name, model)| model_spec(name, model, problems))
            .collect(),
    }
}

fn model_spec(name: Spanned<String>, raw: RawModel, problems: &mut Problems<'_>) -> ModelSpec {
    check_name(&name, problems);
    let devices = raw.devices.iter().filter_map(|device| selector(device, problems)).collect();
    ModelSpec {
        source: source(&raw.source, problems),
        engine: raw.engine,
        replicas: raw.replicas,
        devices,
        flags: flags(raw.flags, problems),
        extra_args: extra_args(raw.extra_args, problems),
        name: name.into_inner(),
    }
}

/// Names become parts of file names, of instance ids and of routes.
fn check_name(name: &Spanned<String>, problems: &mut Problems<'_>) {
    let text = name.get_ref();
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    if text.is_empty() || text.len() > 128 || text.starts_with('.') || !text.chars().all(good) {
        problems.add_with_hint(
            name.span(),
            format!("`{text}` can't be a model's name"),
            "use letters, digits, `-`, `_`, `.` and `:`, at most 128 of them",
        );
    }
}

fn source(raw: &Spanned<String>, problems: &mut Problems<'_>) -> Source {
    let text = raw.get_ref();
    if text.is_empty() {
        problems.add(raw.span(), "source is empty: name a .gguf file or a folder");
    }
    let Some(hub) = text.strip_prefix("hub:") else {
        return Source::Path(text.clone());
    };
    let mut parts = hub.splitn(3, '/').map(str::to_owned);
    match (parts.next(), parts.next(), parts.next()) {
        (Some(owner), Some(name), Some(file))
            if is_plain_name(&owner) && is_plain_name(&name) && is_plain_file(&file) =>
        {
            Source::Hub { repo: format!("{owner}/{name}"), file }
        }
        _ => {
            problems.add_with_hint(
                raw.span(),
                format!("`{text}` does not name a file on a hub"),
                "write hub:OWNER/NAME/FILE.gguf",
            );
            Source::Path(text.clone())
        }
    }
}

/// Names become parts of paths in the cache: nothing may lead out of it.
fn is_plain_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && !name.starts_with('.') && name.chars().all(good)
}

fn is_plain_file(file: &str) -> bool {
    file.ends_with(".gguf") && file.split('/').all(is_plain_name)
}

fn selector(raw: &Spanned<String>, problems: &mut Problems<'_>) -> Option<DeviceSelector> {
    let text = raw.get_ref();
    let index = text.strip_prefix("gpu:").map(str::parse);
    match index {
        Some(Ok(index)) => Some(DeviceSelector::GpuIndex(index)),
        None if text == "host" => Some(DeviceSelector::Host),
        None if text.starts_with("GPU-") => Some(DeviceSelector::GpuUuid(text.clone())),
        _ => {
            problems.add_with_hint(
                raw.span(),
                format!("`{text}` does not name a device"),
                "write \"host\", \"gpu:0\" or a GPU's UUID (\"GPU-...\")",
            );
            None
        }
    }
}

fn flags(raw: BTreeMap<Spanned<String>, super::FlagValue>, problems: &mut Problems<'_>) -> Flags {
    let mut seen: HashSet<&'static str> = HashSet::new();
    let mut flags = Flags::new();
    for (name, value) in raw {
        if let Err((message, hint)) = check_flag(name.get_ref(), &value, &mut seen) {
            problems.add_with_hint(name.span(), message, hint);
        }
        flags.insert(name.into_inner(), value);
    }
    flags
}

/// Extra words may say anything but what berth decides or keeps closed.
fn extra_args(raw: Vec<Spanned<String>>, problems: &mut Problems<'_>) -> Vec<String> {
    for word in &raw {
        let flag = llama_flags::find(word.get_ref());
        if let Some((message, hint)) = flag.and_then(|flag| not_to_be_set(word.get_ref(), flag)) {
            problems.add_with_hint(word.span(), message, hint);
        }
    }
    raw.into_iter().map(Spanned::into_inner).collect()
}

/// Why a spec can't set a flag, and what to do.
fn not_to_be_set(name: &str, flag: &llama_flags::Flag) -> Option<(String, String)> {
    let (why, hint) = match flag.class {
        Class::SetByBerth => ("is set by berth itself", "leave it out: the plan decides it"),
        Class::Closed => (
            "can't be set: it would open what berth keeps closed, or run another model",
            "leave it out; clients reach the models through the gateway",
        ),
        Class::Free | Class::Unmodelled => return None,
    };
    Some((format!("`{name}` {why}"), hint.to_owned()))
}

/// What is wrong with a flag of llama-server, and what to write instead. Flags may be there once,
/// under any one of their names.
fn check_flag(
    name: &str,
    value: &super::FlagValue,
    seen: &mut HashSet<&'static str>,
) -> Result<(), (String, String)> {
    let bare = name.trim_start_matches('-');
    if bare != name {
        return Err(("write flags without their dashes".to_owned(), format!("write `{bare}`")));
    }
    match llama_flags::find_bare(name) {
        None => Err((
            format!("llama-server has no flag `{name}`"),
            llama_flags::nearest(&format!("--{name}")).map_or_else(
                || {
                    format!(
                        "if yours is newer than {LLAMA_SERVER} and has it, write it in extra_args"
                    )
                },
                |near| format!("did you mean `{}`?", near.trim_start_matches('-')),
            ),
        )),
        Some((flag, _)) if !seen.insert(flag.spellings[0]) => Err((
            format!("`{name}` is given twice, under two of its names"),
            "keep one of them".to_owned(),
        )),
        Some((flag, _)) => match not_to_be_set(name, flag) {
            Some(problem) => Err(problem),
            None => LlamaFlags::from_args(&llama_flags::words(name, value))
                .map(drop)
                .map_err(|error| (error.to_string(), "llama-server would refuse it".to_owned())),
        },
    }
}

/// The version whose flags are known.
const LLAMA_SERVER: &str = "b10434";
