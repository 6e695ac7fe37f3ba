//! From [`RawSpec`] to [`Spec`]: every problem is reported, not only the first.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::deployment::{Deployment, Machines, Running};
use super::error::Problems;
use super::external::{self, External};
use super::gateway::{GatewaySpec, gateway};
use super::raw::{
    Backend, EngineKind, RawCluster, RawEngine, RawModel, RawNodeRule, RawRay, RawSpec,
    RawStrategy, RawWritten as Written,
};
use super::{NodeRule, SpecError, deployment, nodes, overlay};
use crate::adjust::{AdjustSpec, Adjustment};
use crate::inventory::Node;
use crate::memory::vllm::version;
use crate::units::Bytes;

const DEFAULT_RAY: &str = "http://127.0.0.1:8265";
const DEFAULT_FIRST_PORT: u16 = 18_100;
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
    /// vLLM's version, which its memory depends on.
    pub vllm_version: String,
    /// The deployments, in the order of their names.
    pub deployments: Vec<Deployment>,
    /// What is said to run already.
    pub running: Vec<Running>,
    /// Servers that somebody else runs.
    pub external: Vec<External>,
    /// Who adjusts what runs, and how far.
    pub adjust: AdjustSpec,
    /// Changes to flags that are in force and not in the file.
    pub adjustments: Vec<Adjustment>,
    /// Named changes, each as a whole spec.
    pub strategies: Vec<Strategy>,
    /// The file as it was read, for further strategies to be laid over it.
    #[serde(skip)]
    pub text: String,
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
    /// Machines that are planned for without looking at them; empty means this machine.
    pub nodes: Vec<Node>,
    /// The Ray cluster, with the backend of that name.
    pub ray: RaySpec,
}

impl ClusterSpec {
    /// What stays free of a budget: what the spec says, else 3 %.
    pub fn kept_free(&self, budget: Bytes) -> Bytes {
        self.headroom.unwrap_or(Bytes(budget.0 / 100 * 3))
    }
}

/// A Ray cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RaySpec {
    /// Its dashboard.
    pub address: String,
    /// A file with its token.
    pub token_file: Option<String>,
    /// The label whose value is a node's name.
    pub name_label: Option<String>,
    /// What is said of its nodes where Ray can't tell.
    pub written: Vec<Node>,
    /// Whether it is a rehearsal's: nothing of it is real.
    #[serde(default)]
    pub is_emulated: bool,
}

/// A strategy: the spec with a named change.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Strategy {
    /// Its name.
    pub name: String,
    /// What it is, in a line.
    pub title: Option<String>,
    /// What somebody else reckoned for it.
    pub written: Option<Written>,
    /// Its text, where it isn't in the spec's file.
    pub toml: Option<String>,
    /// The whole spec with the change.
    pub spec: Spec,
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
        Ok(Self { text: text.to_owned(), ..spec })
    }

    /// The same with further strategies, written as they would be in the file.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn with_strategies(&self, more: &str) -> Result<Self, SpecError> {
        let whole = format!("{}\n{more}", self.text);
        Ok(Self { text: self.text.clone(), ..Self::parse("strategies", &whole)? })
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
    let names: Vec<&str> = raw.models.keys().map(|name| name.get_ref().as_str()).collect();
    let mut spec = Spec {
        cluster: cluster(raw.cluster, problems),
        gateway: gateway(raw.gateway, &names, problems),
        binaries: BTreeMap::from([
            (EngineKind::LlamaServer, program(&raw.engines.llama_server, "llama-server")),
            (EngineKind::Ollama, program(&raw.engines.ollama, "ollama")),
            (EngineKind::Vllm, program(&raw.engines.vllm, "vllm")),
        ]),
        vllm_version: vllm_version(raw.engines.vllm.version, problems),
        deployments: Vec::new(),
        running: Vec::new(),
        external: externals(&raw.models, problems),
        adjust: adjust(raw.adjust, problems),
        adjustments: Vec::new(),
        strategies: Vec::new(),
        text: String::new(),
    };
    (spec.deployments, spec.running) =
        deployment::deployments(&raw.models, machines(&spec.cluster), problems);
    let strategies = raw.strategies.into_iter();
    let strategies =
        strategies.map(|(name, change)| strategy(name, change, &raw.models, &spec, problems));
    spec.strategies = strategies.collect();
    spec
}

fn adjust(raw: Option<Spanned<AdjustSpec>>, problems: &mut Problems<'_>) -> AdjustSpec {
    let Some(raw) = raw else { return AdjustSpec::default() };
    if let Some(problem) = raw.get_ref().problem() {
        let hint = "write adjust = { mode = \"advise\", least = 0.7, most = 0.94 }";
        problems.add_with_hint(raw.span(), problem, hint);
    }
    raw.into_inner()
}

fn strategy(
    name: Spanned<String>,
    change: RawStrategy,
    models: &BTreeMap<Spanned<String>, RawModel>,
    base: &Spec,
    problems: &mut Problems<'_>,
) -> Strategy {
    deployment::check_name("strategy", &name, problems);
    let mut spec = base.clone();
    for (rule, labels) in change.labels {
        match NodeRule::parse(&RawNodeRule::Name(rule.get_ref().clone())) {
            Err(message) => problems.add(rule.span(), message),
            Ok(parsed) => {
                deployment::check_nodes(&parsed, rule.span(), machines(&spec.cluster), problems);
                let meant = spec.cluster.nodes.iter_mut().filter(|node| parsed.matches(node));
                meant.for_each(|node| node.labels.extend(labels.clone()));
            }
        }
    }
    for (name, model) in &change.models {
        if model.running.is_some() {
            let hint = "write it in the model's own section, [models.NAME.running]";
            problems.add_with_hint(name.span(), "a strategy doesn't say what runs", hint);
        }
    }
    let mut merged = overlay::models(models, &change.models, EngineKind::default());
    // What runs is no matter of a strategy's, and it may run something else than the strategy wants.
    merged.values_mut().for_each(|model| model.running = None);
    for left_out in change.without {
        if merged.remove(&left_out).is_none() {
            let message = format!("there is no model `{}` to leave out", left_out.get_ref());
            problems.add(left_out.span(), message);
        }
    }
    spec.external = externals(&merged, problems);
    (spec.deployments, _) = deployment::deployments(&merged, machines(&spec.cluster), problems);
    Strategy {
        name: name.into_inner(),
        title: change.title,
        written: change.written,
        toml: None,
        spec,
    }
}

fn externals(
    models: &BTreeMap<Spanned<String>, RawModel>,
    problems: &mut Problems<'_>,
) -> Vec<External> {
    let of = |(name, model): (&Spanned<String>, &RawModel)| match &model.external {
        Some(raw) => external::externals(name.get_ref(), raw, problems),
        None => Vec::new(),
    };
    models.iter().flat_map(of).collect()
}

fn machines(cluster: &ClusterSpec) -> Machines<'_> {
    Machines { planned: &cluster.nodes, are_seen_later: cluster.backend == Backend::Ray }
}

fn cluster(raw: RawCluster, problems: &mut Problems<'_>) -> ClusterSpec {
    let first_port = raw.first_port.map_or(DEFAULT_FIRST_PORT, |port| {
        if *port.get_ref() < 1024 || *port.get_ref() > u16::MAX - PORT_RANGE {
            problems.add(
                port.span(),
                format!("first_port must be between 1024 and {}", u16::MAX - PORT_RANGE),
            );
        }
        port.into_inner()
    });
    let nodes = nodes::planned(raw.nodes, problems);
    ClusterSpec {
        backend: raw.backend,
        host_budget: raw.host_budget,
        headroom: raw.headroom,
        first_port,
        ray: RaySpec {
            written: if raw.backend == Backend::Ray { nodes.clone() } else { Vec::new() },
            ..ray(raw.ray.unwrap_or_default(), problems)
        },
        nodes,
    }
}

fn ray(raw: RawRay, problems: &mut Problems<'_>) -> RaySpec {
    let address = raw.address.map_or(DEFAULT_RAY.to_owned(), |address| {
        let text = address.get_ref();
        if !["http://", "https://"].iter().any(|scheme| text.starts_with(scheme)) {
            let hint = "write \"http://10.0.0.1:8265\": the dashboard of the head";
            problems.add_with_hint(address.span(), format!("`{text}` is no address"), hint);
        }
        // A name and a password in an address end up in logs.
        if text.contains('@') {
            let hint = "name a file in token_file";
            problems.add_with_hint(address.span(), "a secret doesn't belong in an address", hint);
        }
        address.into_inner()
    });
    RaySpec {
        address,
        token_file: raw.token_file,
        name_label: raw.name_label,
        written: Vec::new(),
        is_emulated: false,
    }
}

fn program(raw: &RawEngine, default: &str) -> String {
    raw.binary.clone().unwrap_or_else(|| default.to_owned())
}

fn vllm_version(raw: Option<Spanned<String>>, problems: &mut Problems<'_>) -> String {
    const DEFAULT: &str = "0.26.0";
    let Some(raw) = raw else { return DEFAULT.to_owned() };
    if !version::parse(raw.get_ref()).is_some_and(|parsed| version::MODELLED.contains(&parsed)) {
        let message = format!("vLLM {} is not modelled", raw.get_ref());
        problems.add_with_hint(raw.span(), message, "0.26 to 0.33 are, as in \"0.26.0\"");
    }
    raw.into_inner()
}
