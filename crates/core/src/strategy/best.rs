//! The strategy that the integer program finds: which blocks go to how many nodes of which kind.
//!
//! Blocks are tried on the memory model at the pessimistic end before the program sees them: every
//! model alone on 1, 2, 4, 8 GPUs, pairs of models that share GPUs, and what runs. What runs today and
//! has no demand of its own is asked for what it serves today. Weights stay in the form that they have.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde_json::{Value, json};

use super::evaluate::{Cluster, gpus, kept_free, nodes};
use super::find::{self, REQUESTS, SEQUENCES, devices, inline};
use super::report::SolverReport;
use crate::inventory::{Device, Node};
use crate::memory::vllm::Gpu;
use crate::model::hf_config::Transformer;
use crate::placement::Facts;
use crate::placement::gpus::prepared::arguments;
use crate::placement::gpus::{lay_out, layout, pace, prepare};
use crate::placement::program::{
    self, Block, Class, Domains, Model, OnNode, Placed, Problem, place,
};
use crate::spec::{
    Deployment, DeviceSelector, Domain, EngineKind, NodeRule, Replicas, Running, Spec, Strategy,
};
use crate::units::Bytes;

const MIB: u64 = 1 << 20;

/// The name of the strategy.
pub const NAME: &str = "best";

/// What the program found.
#[derive(Clone, Debug)]
pub struct Best {
    /// As a strategy.
    pub strategy: Strategy,
    /// How good it is known to be.
    pub solver: SolverReport,
}

/// Nodes of a kind: the same devices, the same deployments allowed, the same failure domains.
#[derive(Clone, Debug, PartialEq)]
struct Kind {
    gpus: Vec<Gpu>,
    devices: Vec<Device>,
    host: Option<Bytes>,
    allowed: Vec<bool>,
    /// For each label that a rule asks for, the nodes' value of it.
    labels: BTreeMap<Domain, Option<String>>,
}

/// What a block was seen to come to.
struct Tried {
    /// Tokens a second of each instance.
    speeds: Vec<f64>,
    /// Host memory of all at the pessimistic end, in MiB.
    host: u64,
}

/// What is solved, and what its parts mean.
struct Program<'a> {
    spec: &'a Spec,
    cluster: &'a Cluster<'a>,
    nodes: &'a [Node],
    kinds: Vec<Kind>,
    /// The kind of each node.
    kind_of: Vec<usize>,
    /// The instances of each block.
    made: Vec<Vec<Deployment>>,
    /// The first GPU of each block that runs.
    runs_at: BTreeMap<usize, usize>,
    problem: Problem,
    /// The nodes of each class, in order.
    members: Vec<Vec<usize>>,
}

/// Solves a spec; none where it has models that can't be laid out in several ways.
pub fn best(spec: &Spec, cluster: &Cluster<'_>) -> Option<Best> {
    if spec.strategies.iter().any(|one| one.name == NAME) {
        return None;
    }
    let program = Program::new(spec, cluster)?;
    let placed = place(&program.problem, None);
    let text = program.text(&placed.nodes);
    let mut strategies = spec.with_strategies(&text).ok()?.strategies;
    let at = strategies.iter().position(|one| one.name == NAME)?;
    let mut strategy = strategies.swap_remove(at);
    strategy.toml = Some(text);
    Some(Best { strategy, solver: report(&placed) })
}

fn report(placed: &Placed) -> SolverReport {
    SolverReport {
        objective: placed.objective.gpus as f64,
        bound: placed.bound.gpus,
        gap: placed.gap(),
        ms: 0.0,
    }
}

impl<'a> Program<'a> {
    fn new(spec: &'a Spec, cluster: &'a Cluster<'a>) -> Option<Self> {
        let is_vllm = |one: &Deployment| one.engine == EngineKind::Vllm;
        // Blocks choose layouts and GPUs themselves, and divide models into groups of their own.
        let is_free = |one: &Deployment| {
            is_vllm(one) && one.devices.is_empty() && find::is_whole(spec, &one.model)
        };
        if spec.deployments.is_empty() || !spec.deployments.iter().all(is_free) {
            return None;
        }
        let nodes = nodes(cluster, spec);
        let mut program = Self {
            spec,
            cluster,
            nodes,
            kinds: Vec::new(),
            kind_of: Vec::new(),
            made: Vec::new(),
            runs_at: BTreeMap::new(),
            problem: Problem::default(),
            members: Vec::new(),
        };
        program.add_kinds();
        for kind in 0..program.kinds.len() {
            program.add_blocks(kind);
        }
        let running = program.add_running();
        if running.iter().enumerate().any(|(node, blocks)| program.is_shared(node, blocks)) {
            return None;
        }
        program.add_classes(&running);
        program.add_models();
        Some(program)
    }

    fn add_kinds(&mut self) {
        let domains = self.spec.deployments.iter().flat_map(Deployment::domains);
        let labels: BTreeSet<Domain> =
            domains.filter(|domain| **domain != Domain::Node).cloned().collect();
        for (node, gpus) in self.nodes.iter().zip(gpus(self.nodes)) {
            let is_gpu = |device: &&Device| Gpu::of_device(device).is_some();
            let kind = Kind {
                gpus,
                devices: node.devices.iter().filter(is_gpu).cloned().collect(),
                host: layout::host(node),
                labels: labels
                    .iter()
                    .map(|label| (label.clone(), label.of(node).map(str::to_owned)))
                    .collect(),
                allowed: self.spec.deployments.iter().map(|one| one.nodes.matches(node)).collect(),
            };
            let known = self.kinds.iter().position(|other| *other == kind);
            self.kind_of.push(known.unwrap_or(self.kinds.len()));
            if known.is_none() {
                self.kinds.push(kind);
            }
        }
    }

    fn transformer(&self, deployment: &Deployment) -> Option<&'a Transformer> {
        match &self.cluster.found.model(deployment)?.facts {
            Facts::Transformer(model) => Some(model),
            Facts::Gguf(_) => None,
        }
    }

    fn keep(&self, gpus: &[Gpu]) -> Bytes {
        let total = gpus.iter().map(|gpu| gpu.total).min().unwrap_or_default();
        kept_free(self.spec, total)
    }

    /// Every model alone, and every pair that shares, on 1, 2, 4... GPUs of a kind of node.
    fn add_blocks(&mut self, kind: usize) {
        let Kind { gpus, allowed, .. } = self.kinds[kind].clone();
        let sizes = (0..).map(|power| 1_usize << power).take_while(|size| *size <= gpus.len());
        for size in sizes {
            let here = &gpus[..size];
            let models: Vec<usize> = (0..allowed.len()).filter(|model| allowed[*model]).collect();
            for model in &models {
                let room = self.keep(here);
                if let Some(alone) = self.leaving(*model, size, here, room) {
                    self.add(kind, size, vec![alone]);
                }
                for other in models.iter().filter(|other| *other != model) {
                    self.add_pair(kind, size, *model, *other);
                }
            }
        }
    }

    /// A model on all of a block's GPUs with a second, smaller one on all of them, or on the first.
    fn add_pair(&mut self, kind: usize, size: usize, model: usize, other: usize) {
        let gpus = self.kinds[kind].gpus.clone();
        let here = &gpus[..size];
        let mut ranks = vec![size, 1];
        ranks.dedup();
        for ranks in ranks {
            let Some((small, peak)) = self.small(other, ranks, here) else { continue };
            let room = peak + self.keep(here);
            let Some(large) = self.leaving(model, size, here, room) else { continue };
            self.add(kind, size, vec![large, small]);
        }
    }

    /// A model over so many GPUs, with the largest fraction that leaves `room` of each.
    fn leaving(&self, model: usize, size: usize, gpus: &[Gpu], room: Bytes) -> Option<Deployment> {
        let deployment = &self.spec.deployments[model];
        let mut args = self.over(deployment, size);
        let found = self.cluster.question(self.transformer(deployment)?, &args, gpus);
        let value = found.largest_utilization_leaving(room)?.value;
        args["gpu_memory_utilization"] = json!(value);
        Some(with_flags(deployment, &args, 0..size))
    }

    /// A model over so many GPUs, as small as it serves, and the most that it holds of one.
    fn small(&self, model: usize, ranks: usize, gpus: &[Gpu]) -> Option<(Deployment, Bytes)> {
        let deployment = &self.spec.deployments[model];
        let transformer = self.transformer(deployment)?;
        let mut args = self.over(deployment, ranks);
        args["max_num_seqs"] = json!(SEQUENCES);
        let tokens = args["max_model_len"].as_u64().unwrap_or(transformer.max_position);
        let question = self.cluster.question(transformer, &args, &gpus[..ranks]);
        let found = question.smallest_utilization(REQUESTS, tokens)?;
        let peak = found.fit.stages.iter().map(|stage| stage.peak).max()?;
        args["gpu_memory_utilization"] = json!(found.value);
        Some((with_flags(deployment, &args, 0..ranks), peak))
    }

    fn over(&self, deployment: &Deployment, ranks: usize) -> Value {
        let mut args = arguments(&deployment.flags);
        args["tensor_parallel_size"] = json!(ranks);
        args["pipeline_parallel_size"] = json!(1);
        args
    }

    /// Tries a block on a node of a kind, and keeps it if all of it starts.
    fn add(&mut self, kind: usize, size: usize, members: Vec<Deployment>) {
        if let Some(tried) = self.try_out(kind, size, &members, &[]) {
            self.push(size, vec![kind], members, &tried);
        }
    }

    fn push(&mut self, size: usize, kinds: Vec<usize>, members: Vec<Deployment>, tried: &Tried) {
        let serves = members.iter().zip(&tried.speeds);
        let serves = serves.filter_map(|(member, speed)| Some((self.model_of(member)?, 1, *speed)));
        let serves = serves.collect();
        self.problem.blocks.push(Block {
            gpus: size as u64,
            host: tried.host,
            kinds,
            serves,
            is_tight: false,
        });
        self.made.push(members);
    }

    /// The model that a deployment is of, among those that are wanted.
    fn model_of(&self, deployment: &Deployment) -> Option<usize> {
        self.spec.deployments.iter().position(|one| one.model == deployment.model)
    }

    /// What a block comes to; none where one of its instances doesn't start at the pessimistic end. What
    /// runs has started.
    fn try_out(
        &self,
        kind: usize,
        size: usize,
        members: &[Deployment],
        running: &[Running],
    ) -> Option<Tried> {
        let Kind { gpus, devices, .. } = &self.kinds[kind];
        let devices = devices.get(..size)?.to_vec();
        let node = Node { name: "block".to_owned(), devices, ..Node::default() };
        let found = self.cluster.found;
        let prepared: Vec<_> =
            members.iter().map(|one| prepare(one, found)).collect::<Result<_, _>>().ok()?;
        let running: Vec<_> = running
            .iter()
            .map(|one| Some((one, prepare(&one.deployment, found).ok()?)))
            .collect::<Option<_>>()?;
        let gpus = [gpus[..size].to_vec()];
        let layout = lay_out(&prepared, &running, &[node], &gpus, &self.cluster.engine);
        if !layout.missing.is_empty() || layout.seats.iter().any(|seat| seat.risk.is_some()) {
            return None;
        }
        let speed = |member: usize| {
            let seat = layout.seats.iter().find(|seat| seat.deployment == member)?;
            let kind = gpus[0].first().and_then(|gpu| gpu.kind);
            let wanted = &prepared[member];
            pace::speed(seat, &layout, wanted, kind, self.cluster.speeds)
        };
        let speed = |member| speed(member).map_or(0.0, |speed| speed.tokens_per_second.mid);
        let host: Bytes = layout.seats.iter().map(|seat| seat.started.host.1).sum();
        let speeds = (0..members.len()).map(speed).collect();
        Some(Tried { speeds, host: host.0.div_ceil(MIB) })
    }

    /// A block for each distinct instance that runs; gives those of each node.
    fn add_running(&mut self) -> Vec<Vec<usize>> {
        let mut of_node = vec![Vec::new(); self.nodes.len()];
        for running in &self.spec.running {
            let mut known: BTreeMap<usize, Option<usize>> = BTreeMap::new();
            for (node, blocks) in of_node.iter_mut().enumerate() {
                if running.deployment.nodes.matches(&self.nodes[node]) {
                    let kind = self.kind_of[node];
                    let block =
                        known.entry(kind).or_insert_with(|| self.running_block(running, kind));
                    blocks.extend(*block);
                }
            }
        }
        of_node
    }

    /// Whether blocks that run on a node take the same GPUs: such are no blocks of the program's.
    fn is_shared(&self, node: usize, blocks: &[usize]) -> bool {
        let mut taken = vec![false; self.kinds[self.kind_of[node]].gpus.len()];
        blocks.iter().any(|block| {
            let first = self.runs_at.get(block).copied().unwrap_or(0);
            let range = first..first + self.problem.blocks[*block].gpus as usize;
            match taken.get_mut(range) {
                Some(here) if here.iter().all(|one| !*one) => {
                    here.fill(true);
                    false
                }
                _ => true,
            }
        })
    }

    fn running_block(&mut self, running: &Running, kind: usize) -> Option<usize> {
        let prepared = prepare(&running.deployment, self.cluster.found).ok()?;
        let (ranks, first) = (prepared.gpus.max(1), prepared.first_gpu());
        let size = ranks.next_power_of_two();
        let args = arguments(&running.deployment.flags);
        let member = with_flags(&running.deployment, &args, 0..ranks);
        let alone = Running { deployment: member.clone(), observed: None };
        let members = vec![member];
        let tried = self.try_out(kind, size, &members, &[alone])?;
        // It is there already; whether more of it would start is another matter.
        self.push(size, Vec::new(), members, &tried);
        self.runs_at.insert(self.made.len() - 1, first);
        Some(self.made.len() - 1)
    }

    /// Nodes of a kind on which the same runs are one class.
    fn add_classes(&mut self, running: &[Vec<usize>]) {
        let mut classes: BTreeMap<(usize, &[usize]), Vec<usize>> = BTreeMap::new();
        for (node, blocks) in running.iter().enumerate() {
            classes.entry((self.kind_of[node], blocks)).or_default().push(node);
        }
        for ((kind, blocks), nodes) in classes {
            self.problem.classes.push(Class {
                nodes: nodes.len() as u64,
                gpus: self.kinds[kind].gpus.len() as u64,
                host: self.kinds[kind].host.map(|host| host.0 / MIB),
                kind,
                running: blocks.iter().map(|block| (*block, 1)).collect(),
            });
            self.members.push(nodes);
        }
    }

    /// What has no demand of its own is asked for what it serves today.
    fn add_models(&mut self) {
        for (model, deployment) in self.spec.deployments.iter().enumerate() {
            let asked = deployment
                .demand
                .map(|demand| demand.requests_per_second * f64::from(demand.answer_tokens));
            let today: f64 = self
                .problem
                .classes
                .iter()
                .flat_map(|class| class.running.iter().map(move |(block, _)| (class.nodes, *block)))
                .map(|(nodes, block)| nodes as f64 * self.problem.blocks[block].capacity(model))
                .sum();
            self.problem.models.push(Model {
                need: asked.unwrap_or(today),
                min: u64::from(deployment.replicas.min),
                max: u64::from(deployment.replicas.max),
                spread: deployment.spread.as_ref().map(|spread| program::Spread {
                    domains: self.domains(&spread.over),
                    most: u64::from(spread.most),
                }),
                beside: deployment.beside.as_ref().and_then(|beside| {
                    let is_meant = |one: &Deployment| one.model == beside.model;
                    Some(program::Beside {
                        model: self.spec.deployments.iter().position(is_meant)?,
                        domains: self.domains(&beside.over),
                    })
                }),
                ..Model::default()
            });
        }
    }

    /// Failure domains as kinds of nodes. Every machine that may be used is in one.
    fn domains(&self, over: &Domain) -> Domains {
        let mut kinds: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (at, kind) in self.kinds.iter().enumerate() {
            if let Some(Some(name)) = kind.labels.get(over) {
                kinds.entry(name).or_default().push(at);
            }
        }
        match over {
            Domain::Node => Domains::Nodes,
            Domain::Label(_) => Domains::Kinds(kinds.into_values().collect()),
        }
    }

    /// The answer as a strategy's text: a deployment for each member of each block and each place on a
    /// node, with the nodes that have it.
    fn text(&self, placed: &[OnNode]) -> String {
        let mut parts: BTreeMap<(&str, usize, usize, usize), Vec<&str>> = BTreeMap::new();
        let mut next: Vec<std::slice::Iter<'_, usize>> =
            self.members.iter().map(|all| all.iter()).collect();
        for on in placed {
            let Some(node) = next[on.class].next() else { continue };
            for (block, first) in self.places(on) {
                for (member, deployment) in self.made[block].iter().enumerate() {
                    let key = (deployment.model.as_str(), block, member, first);
                    parts.entry(key).or_default().push(&self.nodes[*node].name);
                }
            }
        }
        let mut text = format!("\n[strategies.{NAME}]\ntitle = \"the integer program's own\"\n");
        let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
        for ((model, block, member, first), nodes) in parts {
            let deployment = &self.made[block][member];
            let number = numbers.entry(model).or_default();
            *number += 1;
            let taken = deployment.devices.len();
            let names: Vec<String> = nodes.iter().map(|name| format!("\"{name}\"")).collect();
            text.push_str(&format!(
                "[strategies.{NAME}.models.\"{model}\".deployments.{number}]\nnodes = [{}]\n\
                 replicas = {{ min = 1, max = {} }}\n{}\nflags = {}\n",
                names.join(", "),
                nodes.len(),
                devices(first..first + taken),
                inline(&arguments(&deployment.flags))
            ));
        }
        text
    }

    /// The blocks of a node with their first GPUs: what stays stays where it is, the rest goes to free
    /// windows, aligned ones first, the largest block first.
    fn places(&self, on: &OnNode) -> Vec<(usize, usize)> {
        let class = &self.problem.classes[on.class];
        let kept = class.running.iter().zip(&on.kept).filter(|(_, count)| **count > 0);
        let mut taken = vec![false; class.gpus as usize];
        let mut places = Vec::new();
        for ((block, _), _) in kept {
            let first = self.runs_at.get(block).copied().unwrap_or(0);
            let last = (first + self.problem.blocks[*block].gpus as usize).min(taken.len());
            taken[first.min(last)..last].fill(true);
            places.push((*block, first));
        }
        for block in &on.new {
            let size = self.problem.blocks[*block].gpus as usize;
            let is_free = |first: &usize| {
                taken.get(*first..first + size).is_some_and(|here| here.iter().all(|one| !one))
            };
            let aligned = (0..taken.len()).step_by(size).find(is_free);
            let Some(first) = aligned.or_else(|| (0..taken.len()).find(is_free)) else { continue };
            taken[first..first + size].fill(true);
            places.push((*block, first));
        }
        places
    }
}

/// A deployment with other flags, on some GPUs of a node of its own, where no rule about others counts.
fn with_flags(deployment: &Deployment, args: &Value, gpus: Range<usize>) -> Deployment {
    let flags = serde_json::from_value(args.clone()).unwrap_or_else(|_| deployment.flags.clone());
    let devices = gpus.map(|index| DeviceSelector::GpuIndex(index as u32)).collect();
    let replicas = Replicas { min: 1, max: 1 };
    let (nodes, spread, beside) = (NodeRule::Any, None, None);
    Deployment { flags, devices, replicas, nodes, spread, beside, ..deployment.clone() }
}
