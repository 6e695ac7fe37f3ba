//! Strategies that nobody wrote down, in the form in which users write theirs: a model that is wanted
//! beside what runs, on the machines that it is wanted on.
//!
//! Fractions are searched on the memory model at the pessimistic end. What can't be found is shown all
//! the same, with flags that come nearest, so that the engine's refusal can be read.

use serde_json::{Value, json};

use super::evaluate::{Cluster, gpus, kept_free, nodes};
use crate::inventory::Node;
use crate::memory::vllm::Gpu;
use crate::model::hf_config::{Quantization, Transformer};
use crate::model::known;
use crate::placement::gpus::prepared::arguments;
use crate::placement::gpus::{Prepared, prepare};
use crate::placement::{Facts, facts};
use crate::spec::{Deployment, EngineKind, Running, Spec, Strategy};
use crate::units::Bytes;

/// Requests of its longest length that a newcomer shall hold at once.
pub(super) const REQUESTS: u64 = 2;
/// A newcomer that shares a GPU takes few requests at once: state and logits grow with them.
pub(super) const SEQUENCES: u64 = 16;

/// A newcomer, what runs where it is wanted, and where that is.
struct Case<'a> {
    spec: &'a Spec,
    newcomer: &'a Deployment,
    new_model: &'a Transformer,
    resident: &'a Running,
    old_model: &'a Transformer,
    node: &'a Node,
    gpus: Vec<Gpu>,
    cluster: Cluster<'a>,
    /// What shall stay free of each GPU.
    keep: Bytes,
    /// Other nodes with an instance of the resident.
    elsewhere: usize,
}

/// What is found for a spec. Names that the spec has already are left to it; where several models are
/// wanted, a name ends in the model's.
pub fn find(spec: &Spec, cluster: &Cluster<'_>) -> Vec<Strategy> {
    let cases = cases(spec, cluster);
    let mut found: Vec<Strategy> = Vec::new();
    for case in &cases {
        let ending =
            if cases.len() > 1 { format!("-{}", case.newcomer.model) } else { String::new() };
        for text in case.strategies() {
            let Some(name) = name_of(&text) else { continue };
            let text = text.replace(
                &format!("[strategies.{name}"),
                &format!("[strategies.\"{name}{ending}\""),
            );
            let is_taken = |one: &Strategy| one.name == format!("{name}{ending}");
            if spec.strategies.iter().chain(&found).any(is_taken) {
                continue;
            }
            let parsed = spec.with_strategies(&text).map(|spec| spec.strategies);
            let one = parsed.unwrap_or_default().into_iter().find(is_taken);
            found.extend(one.map(|one| Strategy { toml: Some(text), ..one }));
        }
    }
    found
}

/// The name in a strategy's text.
fn name_of(text: &str) -> Option<&str> {
    text.split_once("[strategies.")?.1.split_once(']').map(|(name, _)| name)
}

/// Whether a model is run as one group, so that it can be divided anew.
pub(super) fn is_whole(spec: &Spec, model: &str) -> bool {
    spec.deployments.iter().filter(|one| one.model == model).count() == 1
        && spec.deployments.iter().any(|one| one.name == model)
}

/// Each model that is wanted and doesn't run, with what runs on the first machine where it may be.
fn cases<'a>(spec: &'a Spec, cluster: &Cluster<'a>) -> Vec<Case<'a>> {
    let nodes = nodes(cluster, spec);
    let all_gpus = gpus(nodes);
    let transformer = |deployment: &'a Deployment| match &cluster.found.model(deployment)?.facts {
        Facts::Transformer(model) => Some(&**model),
        Facts::Gguf(_) => None,
    };
    let runs = |model: &str| spec.running.iter().any(|running| running.deployment.model == model);
    let mut cases = Vec::new();
    for newcomer in spec.deployments.iter().filter(|one| !runs(&one.model)) {
        let Some(new_model) = transformer(newcomer) else { continue };
        let at = nodes.iter().position(|node| newcomer.nodes.matches(node));
        let Some((at, node)) = at.map(|at| (at, &nodes[at])) else { continue };
        let here = spec.running.iter().find(|running| running.deployment.nodes.matches(node));
        let Some(resident) = here else { continue };
        if ![&newcomer.model, &resident.deployment.model].into_iter().all(|one| is_whole(spec, one))
        {
            continue;
        }
        let Some(old_model) = transformer(&resident.deployment) else { continue };
        let Some(total) = all_gpus[at].iter().map(|gpu| gpu.total).min() else { continue };
        cases.push(Case {
            spec,
            newcomer,
            new_model,
            resident,
            old_model,
            node,
            gpus: all_gpus[at].clone(),
            cluster: *cluster,
            keep: kept_free(spec, total),
            elsewhere: (resident.deployment.replicas.min as usize).saturating_sub(1),
        });
    }
    cases
}

/// How the newcomer is run beside the resident.
struct Newcomer {
    /// Lines of its section.
    lines: Vec<String>,
    /// The most that it ever holds of a GPU.
    peak: Bytes,
}

impl Case<'_> {
    /// All strategies for it, as texts.
    fn strategies(&self) -> Vec<String> {
        let all = [
            self.fewer_sequences(),
            self.spread(None),
            self.spread(Some("fp8")),
            self.beside_on_one(Some("fp8")),
            self.in_ollama(),
            self.pipeline(None),
            self.pipeline(Some("fp8")),
            self.fewer_gpus(Some("fp8")),
            self.int4(),
            self.node_for_newcomer(),
        ];
        all.into_iter().flatten().collect()
    }

    /// The flags of the newcomer, and of the resident as it runs, with some replaced.
    fn args(deployment: &Deployment, changes: &[(&str, Value)]) -> Value {
        let mut args = arguments(&deployment.flags);
        for (name, value) in changes {
            args[*name] = value.clone();
        }
        args
    }

    /// Whether a method can be asked for at all: a checkpoint that is quantised stays as it is.
    fn may_quantise(model: &Transformer, method: Option<&str>) -> bool {
        method.is_none() || model.quantization.is_none()
    }

    /// A strategy's text: the resident changed on this node and as it is elsewhere, and the newcomer.
    fn text(&self, name: &str, title: &str, here: &[String], newcomer: &[String]) -> String {
        let (old, new) = (&self.resident.deployment.model, &self.newcomer.model);
        let node = &self.node.name;
        let head = format!("\n[strategies.{name}]\ntitle = {title:?}\n");
        let flags = self.running_flags();
        let elsewhere = match self.elsewhere {
            0 => String::new(),
            count => format!(
                "[strategies.{name}.models.\"{old}\".deployments.elsewhere]\nnodes = \"!{node}\"\n\
                 replicas = {{ min = 1, max = {count} }}\nflags = {flags}\n"
            ),
        };
        let here = match here {
            [] => String::new(),
            lines => format!(
                "[strategies.{name}.models.\"{old}\".deployments.here]\nnodes = \"{node}\"\n\
                 replicas = 1\n{}\n",
                lines.join("\n")
            ),
        };
        let newcomer = format!("[strategies.{name}.models.\"{new}\"]\n{}\n", newcomer.join("\n"));
        format!("{head}{here}{elsewhere}{newcomer}")
    }

    fn running_flags(&self) -> String {
        inline(&arguments(&self.resident.deployment.flags))
    }

    /// The newcomer on `ranks` GPUs, as small as it serves.
    fn small(&self, ranks: u64, method: Option<&str>) -> Option<Newcomer> {
        if !Self::may_quantise(self.new_model, method) {
            return None;
        }
        let mut changes =
            vec![("tensor_parallel_size", json!(ranks)), ("max_num_seqs", json!(SEQUENCES))];
        changes.extend(method.map(|method| ("quantization", json!(method))));
        let mut args = Self::args(self.newcomer, &changes);
        let gpus = self.gpus.get(..ranks as usize)?;
        let tokens = args["max_model_len"].as_u64().unwrap_or(self.new_model.max_position);
        let question = self.cluster.question(self.new_model, &args, gpus);
        let found = question.smallest_utilization(REQUESTS, tokens)?;
        // Beside a neighbour its context is smaller and its fraction counts the same.
        let peak = found.fit.stages.iter().map(|stage| stage.peak).max()?;
        args["gpu_memory_utilization"] = json!(found.value);
        let lines = vec![format!("flags = {}", inline(&args)), "replicas = 1".to_owned()];
        Some(Newcomer { lines, peak })
    }

    /// The resident, leaving so much of each GPU.
    fn leaving(&self, bytes: Bytes) -> String {
        let args = Self::args(&self.resident.deployment, &[]);
        let question = self.cluster.question(self.old_model, &args, &self.gpus);
        let room = bytes + self.keep;
        let found = question.largest_utilization_leaving(room).map(|found| found.value);
        // Where there is none, this much is left, and the engine says what it lacks.
        let total = self.gpus.iter().map(|gpu| gpu.total.0).min().unwrap_or(1) as f64;
        let nearest = ((1.0 - room.0 as f64 / total) * 100.0).floor() / 100.0;
        let value = found.unwrap_or(nearest.clamp(0.05, 0.99));
        let changes = [("gpu_memory_utilization", json!(value))];
        format!("flags = {}", inline(&Self::args(&self.resident.deployment, &changes)))
    }

    fn spread(&self, method: Option<&str>) -> Option<String> {
        let ranks = self.gpus.len() as u64;
        let ranks = (1..=ranks).rev().find(|ranks| self.new_model.heads.is_multiple_of(*ranks))?;
        let small = self.small(ranks, method)?;
        let suffix = method.map_or(String::new(), |method| format!("-{method}"));
        let form = method.map_or(String::new(), |method| format!(" in {method}"));
        let (old, new) = (&self.resident.deployment.model, &self.newcomer.model);
        let title = format!("{new}{form} spread over {ranks} GPUs beside {old}");
        let name = format!("spread{suffix}");
        Some(self.text(&name, &title, &[self.leaving(small.peak)], &small.lines))
    }

    fn beside_on_one(&self, method: Option<&str>) -> Option<String> {
        let small = self.small(1, method)?;
        let (old, new) = (&self.resident.deployment.model, &self.newcomer.model);
        let title = format!("{new} in {} on one GPU beside {old}", method.unwrap_or("full"));
        let name = format!("beside-{}", method.unwrap_or("full"));
        Some(self.text(&name, &title, &[self.leaving(small.peak)], &small.lines))
    }

    fn fewer_sequences(&self) -> Option<String> {
        let given = self.resident.deployment.flags.get("max_num_seqs");
        let resident = &self.resident.deployment;
        if given.is_some() {
            return None;
        }
        let args = Self::args(resident, &[("max_num_seqs", json!(SEQUENCES))]);
        let used = args["gpu_memory_utilization"].as_f64().unwrap_or(0.92);
        let rest = ((1.0 - used) * 100.0).round() / 100.0;
        let small = Self::args(
            self.newcomer,
            &[
                ("gpu_memory_utilization", json!(rest.max(0.01))),
                ("max_num_seqs", json!(SEQUENCES)),
            ],
        );
        let title =
            format!("{} with max_num_seqs {SEQUENCES} and nothing else changed", resident.model);
        let here = format!("flags = {}", inline(&args));
        let newcomer = [format!("flags = {}", inline(&small)), "replicas = 1".to_owned()];
        Some(self.text("fewer-sequences", &title, &[here], &newcomer))
    }

    fn in_ollama(&self) -> Option<String> {
        let known = known::find(&self.newcomer.source.to_string())?;
        let context = arguments(&self.newcomer.flags)["max_model_len"].as_u64().unwrap_or(8192);
        let lines = vec![
            "engine = \"ollama\"".to_owned(),
            format!("source = \"{}:q8_0\"", known.name),
            format!("facts = {{ model = \"{}\", type = \"q8_0\" }}", known.name),
            format!("flags = {{ num_ctx = {context}, num_parallel = 1 }}"),
            "devices = [\"gpu:0\"]".to_owned(),
            "replicas = 1".to_owned(),
        ];
        let text = self.text("ollama-q8", "as below", &[], &lines);
        let spec = self.spec.with_strategies(&text).ok()?;
        let one = spec.strategies.iter().find(|one| one.name == "ollama-q8")?;
        let deployment =
            one.spec.deployments.iter().find(|one| one.engine == EngineKind::Ollama)?;
        let located = facts::assumed(deployment)?;
        let mut found = crate::placement::Found::default();
        found.models.insert(deployment.weights(), located);
        let prepared: Prepared<'_> = prepare(deployment, &found).ok()?;
        let mut sharing = crate::memory::vllm::tenancy::Sharing::new(&self.gpus);
        let started =
            prepared.start("new", 0, &self.gpus, &mut sharing, &self.cluster.pessimistic());
        let needed = started.bytes.into_iter().max()?;
        // Ollama wants a fifth of what is free to stay free.
        let gate = Bytes(needed.0 / 4 * 5);
        let (old, new) = (&self.resident.deployment.model, &self.newcomer.model);
        let title = format!("{new} in 8 bits in Ollama on one GPU beside {old}");
        Some(self.text("ollama-q8", &title, &[self.leaving(gate)], &lines))
    }

    /// The resident in stages on all GPUs but the last, which the newcomer gets.
    fn pipeline(&self, method: Option<&str>) -> Option<String> {
        let stages = self.gpus.len().checked_sub(1).filter(|stages| *stages > 1)?;
        let mut changes =
            vec![("tensor_parallel_size", json!(1)), ("pipeline_parallel_size", json!(stages))];
        changes.extend(method.map(|method| ("quantization", json!(method))));
        let form = method.map_or(String::new(), |method| format!(" in {method}"));
        let suffix = method.map_or(String::new(), |method| format!("-{method}"));
        let (old, new) = (&self.resident.deployment.model, &self.newcomer.model);
        let title = format!("{old}{form} in {stages} stages, {new} on the last GPU");
        self.apart(&format!("pipeline-plus-one{suffix}"), &title, &changes, stages, method)
    }

    /// The resident quantised on half of the GPUs, the newcomer on the others.
    fn fewer_gpus(&self, method: Option<&str>) -> Option<String> {
        let half = self.gpus.len() / 2;
        let mut changes =
            vec![("tensor_parallel_size", json!(half)), ("pipeline_parallel_size", json!(1))];
        changes.extend(method.map(|method| ("quantization", json!(method))));
        let (old, new) = (&self.resident.deployment.model, &self.newcomer.model);
        let form = method.unwrap_or("full");
        let title = format!("{old} in {form} on {half} GPUs, {new} on the others");
        self.apart(&format!("half-{form}"), &title, &changes, half, method)
    }

    /// The resident on the first GPUs with other flags, the newcomer on those after them.
    fn apart(
        &self,
        name: &str,
        title: &str,
        changes: &[(&str, Value)],
        taken: usize,
        method: Option<&str>,
    ) -> Option<String> {
        if !Self::may_quantise(self.old_model, method) || taken == 0 || taken >= self.gpus.len() {
            return None;
        }
        let args = Self::args(&self.resident.deployment, changes);
        let question = self.cluster.question(self.old_model, &args, &self.gpus[..taken]);
        let largest = question.largest_utilization_leaving(self.keep).map(|found| found.value);
        let given = args["gpu_memory_utilization"].clone();
        let mut args = args;
        args["gpu_memory_utilization"] = largest.map_or(given, |value| json!(value));
        let here = [format!("flags = {}", inline(&args)), devices(0..taken)];
        Some(self.text(name, title, &here, &self.on_the_rest(taken)))
    }

    /// The newcomer on each GPU from `first` on.
    fn on_the_rest(&self, first: usize) -> Vec<String> {
        let args = Self::args(self.newcomer, &[("tensor_parallel_size", json!(1))]);
        let question = self.cluster.question(self.new_model, &args, &self.gpus[..1]);
        let largest = question.largest_utilization_leaving(self.keep).map(|found| found.value);
        let mut args = args;
        args["gpu_memory_utilization"] = largest.map_or_else(|| json!(0.85), |value| json!(value));
        let mut lines = vec![
            format!("flags = {}", inline(&args)),
            format!("replicas = {{ min = 1, max = {} }}", self.gpus.len() - first),
        ];
        lines.push(devices(first..self.gpus.len()));
        lines
    }

    /// The resident in four bits on the fewest GPUs that hold it.
    fn int4(&self) -> Option<String> {
        let resident = &self.resident.deployment;
        let known = known::find(&resident.source.to_string())?;
        if self.old_model.quantization.is_some() {
            return None;
        }
        let quantization = Some(Quantization::Integer {
            bits: 4,
            group: 128,
            zero_points: false,
            format: crate::model::hf_config::IntegerFormat::CompressedTensors,
        });
        let model = Transformer { quantization, ..self.old_model.clone() };
        let half = self.gpus.len() / 2;
        let mut found = None;
        for ranks in (0..).map(|power| 1_usize << power).take_while(|ranks| *ranks <= half.max(1)) {
            let changes =
                [("tensor_parallel_size", json!(ranks)), ("pipeline_parallel_size", json!(1))];
            let args = Self::args(resident, &changes);
            let question = self.cluster.question(&model, &args, &self.gpus[..ranks]);
            if let Some(largest) = question.largest_utilization_leaving(self.keep) {
                found = Some((ranks, largest.value, args));
                break;
            }
        }
        let (ranks, value, mut args) = found.filter(|(ranks, ..)| *ranks < self.gpus.len())?;
        args["gpu_memory_utilization"] = json!(value);
        let here = [
            format!("source = \"{}-w4a16\"", known.name),
            format!("facts = {{ model = \"{}\", type = \"w4a16\" }}", known.name),
            format!("flags = {}", inline(&args)),
            devices(0..ranks),
        ];
        let title = format!(
            "{} in 4 bits on {ranks} GPUs, {} on the others",
            resident.model, self.newcomer.model
        );
        Some(self.text("int4", &title, &here, &self.on_the_rest(ranks)))
    }

    /// The whole node for the newcomer.
    fn node_for_newcomer(&self) -> Option<String> {
        (self.elsewhere > 0).then(|| {
            let (old, new) = (&self.resident.deployment.model, &self.newcomer.model);
            let title = format!("{} for {new} alone, {old} on the others", self.node.name);
            self.text("node-for-newcomer", &title, &[], &self.on_the_rest(0))
        })
    }
}

/// Devices as a line of TOML.
pub(super) fn devices(range: std::ops::Range<usize>) -> String {
    let named: Vec<String> = range.map(|index| format!("\"gpu:{index}\"")).collect();
    format!("devices = [{}]", named.join(", "))
}

/// Arguments as an inline table of TOML.
pub(super) fn inline(args: &Value) -> String {
    let all = args.as_object().into_iter().flatten();
    let all = all.map(|(name, value)| format!("{name} = {value}"));
    format!("{{ {} }}", all.collect::<Vec<_>>().join(", "))
}
