//! Deployments: the groups of instances that a model is run as.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Serialize;
use toml::Spanned;

use super::domains::{self, Beside, Domain, Spread};
use super::error::{Problems, nearest};
use super::raw::{Demand, EngineKind, RawFacts, RawModel, RawNodeRule, RawRunning, Replicas};
use super::{DeviceSelector, FlagValue, Flags, NodeRule, Source, check_flags, overlay, source};
use crate::inventory::Node;
use crate::model::{GgmlType, assumed, known};
use crate::scale::Scale;
use crate::units::Bytes;

/// A group of instances of a model that are alike.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Deployment {
    /// Its name: the model's, or `MODEL-GROUP` where the model has several.
    pub name: String,
    /// The name that clients ask for.
    pub model: String,
    /// Where its weights are.
    pub source: Source,
    /// What to reckon with where no file can be read.
    pub facts: Option<AssumedFacts>,
    /// The engine that runs it.
    pub engine: EngineKind,
    /// How many instances.
    pub replicas: Replicas,
    /// How many of these run, by what is asked of them.
    pub scale: Option<Scale>,
    /// The machines it may use.
    pub nodes: NodeRule,
    /// How the model's instances are spread over failure domains.
    pub spread: Option<Spread>,
    /// What its instances are kept together with.
    pub beside: Option<Beside>,
    /// The devices it may use; empty means any.
    pub devices: Vec<DeviceSelector>,
    /// The engine's own flags.
    pub flags: Flags,
    /// Further words of its command line, as they are.
    pub extra_args: Vec<String>,
    /// What is asked of the model.
    pub demand: Option<Demand>,
    /// How many of the model's requests it gets, beside the weights of its other deployments.
    pub weight: u32,
    /// vLLM's level of sleep while it is idle and memory is short; it stays awake where there is none.
    pub sleep_level: Option<u8>,
}

impl Deployment {
    /// The GPUs that it names by their indices.
    pub fn gpu_indices(&self) -> impl Iterator<Item = usize> {
        self.devices.iter().filter_map(|device| match device {
            DeviceSelector::GpuIndex(index) => Some(*index as usize),
            _ => None,
        })
    }

    /// The failure domains that its rules are about.
    pub fn domains(&self) -> impl Iterator<Item = &Domain> {
        let spread = self.spread.as_ref().map(|spread| &spread.over);
        spread.into_iter().chain(self.beside.as_ref().map(|beside| &beside.over))
    }

    /// What its weights are, as a key: deployments with the same share their facts.
    pub fn weights(&self) -> String {
        let facts = self.facts.as_ref();
        let facts = facts.map(|facts| format!(" as {} {}", facts.model, facts.tensor_type));
        format!("{} {}{}", self.engine.as_str(), self.source, facts.unwrap_or_default())
    }
}

/// The machines as far as a spec knows them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machines<'a> {
    /// Those that it writes down.
    pub(super) planned: &'a [Node],
    /// Whether which there are, and their labels, is seen on the cluster.
    pub(super) are_seen_later: bool,
}

/// What is said to run already: an instance on each machine that its rule means.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Running {
    /// How it runs.
    pub deployment: Deployment,
    /// What is seen in use on each of its GPUs.
    pub observed: Option<Bytes>,
}

/// A model that is known, as a GGUF that isn't here.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AssumedFacts {
    /// The name that berth knows.
    pub model: String,
    /// The type of its tensors: a type of GGML, or for vLLM [`INT4`].
    pub tensor_type: String,
}

/// Four bits a weight in groups of 128 (compressed-tensors), sixteen for activations.
pub const INT4: &str = "w4a16";

/// All deployments of all models, and what runs of them.
pub(super) fn deployments(
    models: &BTreeMap<Spanned<String>, RawModel>,
    machines: Machines<'_>,
    problems: &mut Problems<'_>,
) -> (Vec<Deployment>, Vec<Running>) {
    let (mut deployments, mut running) = (Vec::new(), Vec::new());
    for (name, raw) in models {
        check_name("model", name, problems);
        for (group, over) in &raw.deployments {
            if over.running.is_some() || !over.deployments.is_empty() {
                let message = "a deployment has neither `running` nor deployments of its own";
                problems.add_with_hint(group.span(), message, "write them in the model's section");
            }
        }
        // Somebody else's server alone is nothing to place.
        if raw.external.is_some() && raw.source.is_none() && raw.deployments.is_empty() {
            continue;
        }
        let mut whole = raw.clone();
        let (groups, runs) = (std::mem::take(&mut whole.deployments), whole.running.take());
        let model = name.get_ref();
        if groups.is_empty() {
            deployments.push(deployment(name, model, model.clone(), &whole, machines, problems));
        }
        for (group, over) in &groups {
            check_name("deployment", group, problems);
            let merged = overlay::model(&whole, over, EngineKind::default());
            let full = format!("{model}-{}", group.get_ref());
            deployments.push(deployment(name, model, full, &merged, machines, problems));
        }
        if let Some(runs) = runs {
            running.push(as_it_runs(name, &whole, *runs, machines, problems));
        }
    }
    domains::check_partners(models, problems);
    for (i, one) in deployments.iter().enumerate() {
        if deployments[..i].iter().any(|other| other.name == one.name) {
            problems.add(0..0, format!("two deployments are called `{}`", one.name));
        }
    }
    (deployments, running)
}

fn as_it_runs(
    name: &Spanned<String>,
    model: &RawModel,
    raw: RawRunning,
    machines: Machines<'_>,
    problems: &mut Problems<'_>,
) -> Running {
    let mut whole = model.clone();
    whole.nodes = Some(raw.nodes);
    (whole.spread, whole.beside) = (None, None);
    whole.devices = raw.devices;
    whole.flags.extend(raw.flags);
    let text = name.get_ref();
    let at = whole.nodes.as_ref().map(Spanned::span);
    let mut deployment = deployment(name, text, text.clone(), &whole, machines, problems);
    let size = |name: &str| match deployment.flags.get(name) {
        Some(FlagValue::Int(size)) => usize::try_from(*size).unwrap_or(usize::MAX),
        _ => 1,
    };
    let gpus = size("tensor_parallel_size").saturating_mul(size("pipeline_parallel_size"));
    let last = deployment.gpu_indices().min().unwrap_or(0).saturating_add(gpus);
    let has_room = |node: &&Node| node.devices.iter().filter(|one| one.is_gpu()).count() >= last;
    let nodes = machines.planned;
    let mut meant = nodes.iter().filter(|node| deployment.nodes.matches(node));
    if let Some(node) = meant.find(|node| !has_room(node)) {
        let message =
            format!("{text} takes GPUs up to gpu:{} there, and {} has fewer", last - 1, node.name);
        problems.add(at.unwrap_or_default(), message);
    }
    let count = nodes.iter().filter(|node| deployment.nodes.matches(node)).count();
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    deployment.replicas = Replicas { min: count, max: count };
    Running { deployment, observed: raw.observed }
}

fn deployment(
    at: &Spanned<String>,
    model: &str,
    name: String,
    raw: &RawModel,
    machines: Machines<'_>,
    problems: &mut Problems<'_>,
) -> Deployment {
    let engine = raw.engine.unwrap_or_default();
    let source = match &raw.source {
        Some(text) => source::source(text, engine, problems),
        None => {
            let hint = "add source = \"...\": where its weights are";
            problems.add_with_hint(at.span(), format!("the model `{model}` has no source"), hint);
            Source::Path(String::new())
        }
    };
    let facts = raw.facts.as_ref().and_then(|facts| assumed_facts(facts, engine, problems));
    if raw.facts.is_none() && engine == EngineKind::Ollama {
        problems.add_with_hint(
            at.span(),
            format!("what `{model}` is made of can't be read from Ollama's library"),
            "add facts = { model = \"medgemma-4b\", type = \"q8_0\" }: a model that berth knows",
        );
    }
    let mut devices = Vec::new();
    for raw in raw.devices.iter().flatten() {
        let Some(selector) = source::selector(raw, problems) else { continue };
        if !machines.planned.is_empty() && !matches!(selector, DeviceSelector::GpuIndex(_)) {
            let message = format!("machines that are planned for have no `{selector}` to run on");
            problems.add_with_hint(raw.span(), message, "write \"gpu:0\", \"gpu:1\"...");
        }
        devices.push(selector);
    }
    let rule = raw.nodes.as_ref().map_or(NodeRule::Any, |rule| node_rule(rule, machines, problems));
    let spread = raw.spread.as_ref().map(|raw| domains::spread(raw, &rule, machines, problems));
    let beside = raw.beside.as_ref().map(|raw| domains::beside(raw, &rule, machines, problems));
    let mut flags = check_flags::flags(raw.flags.clone(), engine, problems);
    let level = raw.sleep_level.as_ref();
    let sleep_level = level.and_then(|level| sleep_level(level, engine, &mut flags, problems));
    Deployment {
        model: model.to_owned(),
        source,
        facts,
        engine,
        replicas: raw.replicas.unwrap_or_default(),
        scale: raw.scale.as_ref().map(|scale| checked_scale(scale, problems)),
        nodes: rule,
        spread,
        beside,
        devices,
        flags,
        sleep_level,
        weight: raw.weight.unwrap_or(1),
        extra_args: check_flags::extra_args(
            raw.extra_args.clone().unwrap_or_default(),
            engine,
            problems,
        ),
        demand: raw.demand.as_ref().map(|demand| checked(demand, problems)),
        name,
    }
}

/// A level of sleep, with the flag that it needs.
fn sleep_level(
    raw: &Spanned<u8>,
    engine: EngineKind,
    flags: &mut Flags,
    problems: &mut Problems<'_>,
) -> Option<u8> {
    const FLAG: &str = "enable_sleep_mode";
    let mut refuse = |message: &str, hint: &str| problems.add_with_hint(raw.span(), message, hint);
    match (engine, *raw.get_ref()) {
        (EngineKind::Vllm, 1 | 2) if flags.get(FLAG) == Some(&FlagValue::Bool(false)) => {
            refuse("it can't sleep with enable_sleep_mode = false", "leave the flag out");
        }
        (EngineKind::Vllm, level @ 1..=2) => {
            flags.insert(FLAG.to_owned(), FlagValue::Bool(true));
            return Some(level);
        }
        (EngineKind::Vllm, _) => refuse(
            "vLLM has sleep levels 1 and 2",
            "1 keeps weights in host memory, 2 reads them again; leave it out for none",
        ),
        _ => refuse("only vLLM can be put to sleep", "leave sleep_level out"),
    }
    None
}

fn checked_scale(raw: &Spanned<Scale>, problems: &mut Problems<'_>) -> Scale {
    let scale = *raw.get_ref();
    if let Some(problem) = scale.problem() {
        let hint =
            "write scale = { target_ongoing_requests = 5, up_delay_s = 30, down_delay_s = 600 }";
        problems.add_with_hint(raw.span(), problem, hint);
    }
    scale
}

fn checked(raw: &Spanned<Demand>, problems: &mut Problems<'_>) -> Demand {
    let demand = *raw.get_ref();
    // What is smaller than this is nothing, and nothing can be divided by it.
    let is_fine = |number: f64| number == 0.0 || (1e-6..=1e9).contains(&number);
    if !is_fine(demand.requests_per_second) || !demand.token_ms.is_none_or(is_fine) {
        let message = "a demand is a number from 0 up to a thousand million";
        let hint = "write demand = { requests_per_second = 2.5, prompt_tokens = 1000, answer_tokens = 250 }";
        problems.add_with_hint(raw.span(), message, hint);
    }
    if demand.answer_tokens == 0 {
        problems.add(raw.span(), "answer_tokens: an answer has at least one token");
    }
    demand
}

fn assumed_facts(
    raw: &RawFacts,
    engine: EngineKind,
    problems: &mut Problems<'_>,
) -> Option<AssumedFacts> {
    let (model, type_name) = (raw.model.get_ref(), raw.tensor_type.get_ref());
    if known::find(model).is_none() {
        let hint = known::nearest(model).map_or_else(
            || "`berth fit` lists names in its help".to_owned(),
            |near| format!("did you mean `{near}`?"),
        );
        problems.add_with_hint(raw.model.span(), format!("berth knows no model `{model}`"), hint);
        return None;
    }
    let is_known = match engine {
        EngineKind::Vllm => type_name == INT4,
        _ => GgmlType::from_name(type_name).is_some_and(assumed::is_uniform),
    };
    if !is_known {
        let message =
            format!("`{type_name}` is no type that can be assumed for {}", engine.as_str());
        let hint =
            if engine == EngineKind::Vllm { "write w4a16" } else { "write q8_0, f16 or bf16" };
        problems.add_with_hint(raw.tensor_type.span(), message, hint);
        return None;
    }
    Some(AssumedFacts { model: model.clone(), tensor_type: type_name.clone() })
}

fn node_rule(
    raw: &Spanned<RawNodeRule>,
    machines: Machines<'_>,
    problems: &mut Problems<'_>,
) -> NodeRule {
    match NodeRule::parse(raw.get_ref()) {
        Ok(rule) => {
            check_nodes(&rule, raw.span(), machines, problems);
            rule
        }
        Err(message) => {
            let hint = "write node-0, !node-0, in(node-0, node-1), or labels as { zone = \"a\" }";
            problems.add_with_hint(raw.span(), message, hint);
            NodeRule::Any
        }
    }
}

/// A rule that means no planned machine, or names one that isn't there, is a slip of the pen.
pub(super) fn check_nodes(
    rule: &NodeRule,
    at: Range<usize>,
    machines: Machines<'_>,
    problems: &mut Problems<'_>,
) {
    let nodes = machines.planned;
    if nodes.is_empty() || machines.are_seen_later {
        return;
    }
    let names = || nodes.iter().map(|node| node.name.as_str());
    if let Some(label) = rule.unknown_label(nodes) {
        let labels = nodes.iter().flat_map(|node| node.labels.keys().map(String::as_str));
        let hint = match nearest(label, labels) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "give nodes some in [[cluster.nodes]], or in labels of the strategy".to_owned(),
        };
        problems.add_with_hint(at, format!("no node has a label `{label}`"), hint);
    } else if let Some(unknown) = rule.unknown(nodes).first() {
        let hint = match nearest(unknown, names()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("there are: {}", names().take(20).collect::<Vec<_>>().join(", ")),
        };
        problems.add_with_hint(at, format!("there is no node `{unknown}`"), hint);
    } else if !nodes.iter().any(|node| rule.matches(node)) {
        let labels = nodes.iter().flat_map(|node| &node.labels);
        let mut labels: Vec<String> =
            labels.map(|(key, value)| format!("{key} = {value}")).collect();
        labels.sort();
        labels.dedup();
        let hint = match labels.as_slice() {
            [] => "no node has a label: give them some in [[cluster.nodes]]".to_owned(),
            some => format!("labels that there are: {}", some.join(", ")),
        };
        problems.add_with_hint(at, format!("no node is {rule}"), hint);
    }
}

/// What names are made of.
pub(super) const NAMES: &str = "use letters, digits, `-`, `_`, `.` and `:`, at most 128 of them";

/// Names become parts of file names, of instance ids, of routes and of strategies that are written out.
pub(super) fn is_good_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    !name.is_empty() && name.len() <= 128 && !name.starts_with('.') && name.chars().all(good)
}

/// Refuses a name that can't be one.
pub(super) fn check_name(what: &str, name: &Spanned<String>, problems: &mut Problems<'_>) {
    let text = name.get_ref();
    if !is_good_name(text) {
        let message = format!("`{text}` can't be a {what}'s name");
        problems.add_with_hint(name.span(), message, NAMES);
    }
}
