//! Which instance goes to which GPUs of which node: the emptiest that holds it, each start tried on the
//! memory model beside what is there already.
//!
//! Deployments come in the order in which they start: what runs unchanged stays, then the largest.
//! Nodes that are in the same state are tried once.

use std::collections::{BTreeMap, BTreeSet};

use super::prepared::{Prepared, Started};
use super::rules::Rules;
use crate::inventory::{DeviceKind, InstanceId, Node};
use crate::memory::Verdict;
use crate::memory::vllm::tenancy::{SharedGpu, Sharing};
use crate::memory::vllm::{Engine, Estimate, Gpu};
use crate::spec::Running;
use crate::units::Bytes;

/// An instance and where it is.
#[derive(Clone, Debug)]
pub struct Seat {
    /// Its id.
    pub id: InstanceId,
    /// Its deployment, as an index.
    pub deployment: usize,
    /// Its node, as an index.
    pub node: usize,
    /// The first of its GPUs, as an index among the node's.
    pub first_gpu: usize,
    /// How many it takes.
    pub gpus: usize,
    /// Whether it runs there already, as it is.
    pub is_kept: bool,
    /// Its start, as it likely is.
    pub started: Started,
    /// Why it might not start, at the pessimistic end.
    pub risk: Option<String>,
}

impl Seat {
    /// The indices of its GPUs.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.first_gpu..self.first_gpu + self.gpus
    }
}

/// An instance that found no place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its deployment, as an index.
    pub deployment: usize,
    /// Instances that must run.
    pub wanted: u32,
    /// Instances that have a place.
    pub placed: u32,
    /// What the engine would do, on the first node where it was tried.
    pub verdict: Verdict,
    /// Why, in the engine's words where it has some.
    pub reason: String,
}

/// One node's GPUs under a layout.
#[derive(Clone, Debug)]
pub struct NodeLayout {
    /// Each GPU as it likely is.
    pub likely: Vec<SharedGpu>,
    /// Each GPU at the pessimistic end.
    pub high: Vec<SharedGpu>,
}

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The instances in the order in which they start.
    pub seats: Vec<Seat>,
    /// The nodes, as the inventory has them.
    pub nodes: Vec<NodeLayout>,
    /// The seats of each node.
    on: Vec<Vec<usize>>,
    /// What found no place.
    pub missing: Vec<Missing>,
    /// What runs today and is stopped or restarted: deployment among those that run, and node.
    pub stopped: Vec<(usize, usize)>,
}

impl Layout {
    /// The instances on a node.
    pub fn on(&self, node: usize) -> impl Iterator<Item = &Seat> {
        self.on.get(node).into_iter().flatten().filter_map(|index| self.seats.get(*index))
    }
}

/// A node while it is filled.
#[derive(Clone, Debug)]
struct Filling<'a> {
    likely: Sharing<'a>,
    high: Sharing<'a>,
    /// Host memory that is left, as it likely is and at the pessimistic end; none where nothing is known
    /// of it.
    host: Option<(Bytes, Bytes)>,
    /// Deployments with their first GPUs and whether they ran before, in order: nodes of a kind with
    /// the same are in one state.
    holds: Vec<(usize, usize, bool)>,
}

/// Puts every deployment on its nodes. `gpus` are those of each node.
pub fn lay_out(
    wanted: &[Prepared<'_>],
    running: &[(&Running, Prepared<'_>)],
    nodes: &[Node],
    gpus: &[Vec<Gpu>],
    engine: &Engine<'_>,
) -> Layout {
    let empty = |(node, gpus): (&Node, _)| Filling {
        likely: Sharing::new(gpus),
        high: Sharing::new(gpus),
        host: host(node).map(|left| (left, left)),
        holds: Vec::new(),
    };
    let rules = Rules::new(wanted);
    let kinds = kinds(wanted, &rules, nodes, gpus);
    let mut states: BTreeMap<State, BTreeSet<usize>> = BTreeMap::new();
    for (node, kind) in kinds.iter().enumerate() {
        states.entry((*kind, Vec::new())).or_default().insert(node);
    }
    let mut filler = Filler {
        wanted,
        nodes,
        gpus,
        engine,
        filling: nodes.iter().zip(gpus.iter().map(Vec::as_slice)).map(empty).collect(),
        kinds,
        states,
        placed: vec![0; wanted.len()],
        rules,
        seats: Vec::new(),
    };
    let stopped = filler.keep_running(running);
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    let depth: Vec<usize> = order.iter().map(|index| filler.rules.depth(wanted, *index)).collect();
    let size = |index: &usize| wanted[*index].located.active_parameters;
    order.sort_by(|a, b| {
        let names = || wanted[*a].deployment.name.cmp(&wanted[*b].deployment.name);
        depth[*a].cmp(&depth[*b]).then(size(b).cmp(&size(a))).then_with(names)
    });
    let missing = order.into_iter().filter_map(|index| filler.place(index)).collect();
    let Filler { filling, seats, .. } = filler;
    let nodes = filling
        .into_iter()
        .map(|node| NodeLayout {
            likely: node.likely.gpus().to_vec(),
            high: node.high.gpus().to_vec(),
        })
        .collect();
    let mut on = vec![Vec::new(); gpus.len()];
    for (index, seat) in seats.iter().enumerate() {
        on[seat.node].push(index);
    }
    Layout { seats, nodes, on, missing, stopped }
}

/// What engines may take of a node's host memory together.
pub(crate) fn host(node: &Node) -> Option<Bytes> {
    let host = node.devices.iter().find(|device| matches!(device.kind, DeviceKind::Host))?;
    Some(host.total - host.used_by_others)
}

/// A number for each distinct node: its GPUs, its host memory, which deployments may run there, and in
/// which failure domains it is.
fn kinds(wanted: &[Prepared<'_>], rules: &Rules, nodes: &[Node], gpus: &[Vec<Gpu>]) -> Vec<usize> {
    let kind = |(node, gpus)| {
        let may_run: Vec<bool> =
            wanted.iter().map(|one| one.deployment.nodes.matches(node)).collect();
        (gpus, host(node), may_run, rules.labels(node))
    };
    let mut distinct = Vec::new();
    let number = |kind| {
        distinct.iter().position(|known| *known == kind).unwrap_or_else(|| {
            distinct.push(kind);
            distinct.len() - 1
        })
    };
    nodes.iter().zip(gpus).map(kind).map(number).collect()
}

/// What a node's next start depends on: its kind, and what it holds. Nodes in one state are tried once.
type State = (usize, Vec<(usize, usize, bool)>);

struct Filler<'a> {
    wanted: &'a [Prepared<'a>],
    nodes: &'a [Node],
    gpus: &'a [Vec<Gpu>],
    engine: &'a Engine<'a>,
    filling: Vec<Filling<'a>>,
    kinds: Vec<usize>,
    states: BTreeMap<State, BTreeSet<usize>>,
    /// Instances of each deployment that have a place.
    placed: Vec<u32>,
    rules: Rules,
    seats: Vec<Seat>,
}

/// A start that was tried.
struct Trial<'a> {
    started: Started,
    risk: Option<String>,
    filling: Filling<'a>,
}

impl<'a> Filler<'a> {
    /// Keeps what runs as it is wanted; gives the rest.
    fn keep_running(&mut self, running: &[(&Running, Prepared<'_>)]) -> Vec<(usize, usize)> {
        let mut stopped = Vec::new();
        // What others stay beside comes first.
        let mut order: Vec<usize> = (0..running.len()).collect();
        let model = |index: &usize| &running[*index].1.deployment.model;
        order.sort_by_key(|index| {
            let wanted = self.wanted.iter().position(|one| one.deployment.model == *model(index));
            wanted.map(|wanted| self.rules.depth(self.wanted, wanted))
        });
        for index in order {
            let (running, prepared) = &running[index];
            for node in 0..self.nodes.len() {
                if !running.deployment.nodes.matches(&self.nodes[node]) {
                    continue;
                }
                let same =
                    (0..self.wanted.len()).find(|wanted| self.is_same(*wanted, prepared, node));
                match same {
                    Some(wanted) => self.keep(wanted, prepared, running.observed, node),
                    None => stopped.push((index, node)),
                }
            }
        }
        stopped
    }

    /// Whether a deployment wants just what runs on a node.
    fn is_same(&self, wanted: usize, running: &Prepared<'_>, node: usize) -> bool {
        let (wants, runs) = (self.wanted[wanted].deployment, running.deployment);
        wants.model == runs.model
            && wants.engine == runs.engine
            && wants.flags == runs.flags
            && wants.weights() == runs.weights()
            && wants.nodes.matches(&self.nodes[node])
            && self.placed[wanted] < wants.replicas.max
            && wants.extra_args == runs.extra_args
            && self.wanted[wanted].may_be_at(running.first_gpu(), running.gpus)
            && self.rules.broken(wants, &self.nodes[node]).is_none()
    }

    /// What runs needs no start; it holds what is seen, or else what it is reckoned to.
    fn keep(
        &mut self,
        wanted: usize,
        running: &Prepared<'_>,
        observed: Option<Bytes>,
        node: usize,
    ) {
        let first = running.first_gpu();
        let gpus = &self.gpus[node];
        let id = self.next_id(wanted);
        let mut alone = Sharing::new(gpus);
        let started = running.start(&id.0, first, gpus, &mut alone, self.engine);
        let filling = &mut self.filling[node];
        let count = running.gpus_of(gpus.len());
        let held = match observed {
            Some(bytes) => vec![bytes; count],
            None => started.bytes.clone(),
        };
        let on_all: Vec<Bytes> =
            std::iter::repeat_n(Bytes::ZERO, first).chain(held.iter().copied()).collect();
        filling.likely.hold(&id.0, &on_all);
        filling.high.hold(&id.0, &on_all);
        filling.host =
            filling.host.map(|(likely, high)| (likely - started.host.0, high - started.host.1));
        self.enter(node, (wanted, first, true));
        let seat = Seat {
            id,
            deployment: wanted,
            node,
            first_gpu: first,
            gpus: count,
            is_kept: true,
            started: Started { bytes: held, ..started },
            risk: None,
        };
        self.seats.push(seat);
    }

    fn next_id(&self, deployment: usize) -> InstanceId {
        InstanceId::new(&self.wanted[deployment].deployment.name, self.placed[deployment])
    }

    /// Notes that a node holds one more, and so is in another state.
    fn enter(&mut self, node: usize, held: (usize, usize, bool)) {
        let holds = &mut self.filling[node].holds;
        let mut state = (self.kinds[node], holds.clone());
        if let Some(nodes) = self.states.get_mut(&state) {
            nodes.remove(&node);
            if nodes.is_empty() {
                self.states.remove(&state);
            }
        }
        holds.push(held);
        state.1.push(held);
        self.rules.add(&self.wanted[held.0].deployment.model, &self.nodes[node]);
        self.states.entry(state).or_default().insert(node);
        self.placed[held.0] += 1;
    }

    /// Places a deployment's instances, up to its most; says what is missing of its least.
    fn place(&mut self, index: usize) -> Option<Missing> {
        let replicas = self.wanted[index].deployment.replicas;
        let mut failure = None;
        loop {
            let placed = self.placed[index];
            if placed >= replicas.max {
                return None;
            }
            match self.place_one(index) {
                Ok(seat) => self.seats.push(seat),
                Err((verdict, reason)) => {
                    failure.get_or_insert((verdict, reason));
                    let (verdict, reason) = failure?;
                    let missing = Missing {
                        deployment: index,
                        wanted: replicas.min,
                        placed,
                        verdict,
                        reason,
                    };
                    return (placed < replicas.min).then_some(missing);
                }
            }
        }
    }

    fn place_one(&mut self, index: usize) -> Result<Seat, (Verdict, String)> {
        let id = self.next_id(index);
        let mut tight = None;
        let mut failure = None;
        for (node, first) in self.places(index) {
            let trial = self.try_start(index, &id, node, first);
            if !trial.started.verdict.is_ready() {
                let name = &self.wanted[index].deployment.name;
                let message = trial.started.message.unwrap_or_default();
                let reason = format!("{name} on {}: {message}", self.nodes[node].name);
                failure.get_or_insert((trial.started.verdict, reason));
            } else if trial.risk.is_none() {
                return Ok(self.settle(index, id, node, first, trial));
            } else {
                tight.get_or_insert((node, first, trial));
            }
        }
        match (tight, failure) {
            (Some((node, first, trial)), _) => Ok(self.settle(index, id, node, first, trial)),
            (None, Some(failure)) => Err(failure),
            (None, None) => Err((Verdict::Unsupported, self.nowhere(index))),
        }
    }

    /// Why there is not even a place to try.
    fn nowhere(&self, index: usize) -> String {
        let Prepared { deployment, gpus, pinned, .. } = &self.wanted[index];
        let name = &deployment.name;
        let may_run = |node: &usize| deployment.nodes.matches(&self.nodes[*node]);
        let allowed: Vec<usize> = (0..self.nodes.len()).filter(may_run).collect();
        let most = allowed.iter().map(|node| self.gpus[*node].len()).max().unwrap_or(0);
        let needed = (*gpus).max(1);
        let broken = |node: &usize| self.rules.broken(deployment, &self.nodes[*node]);
        let rules: Option<BTreeSet<String>> = allowed.iter().map(broken).collect();
        match () {
            () if allowed.is_empty() => {
                format!("no node is {}, where {name} may run", deployment.nodes)
            }
            () if most < needed => {
                format!(
                    "{name} takes {needed} GPUs of a node, and none that it may use has more than {most}"
                )
            }
            () if let Some(broken) = &rules => {
                format!("{name}: {}", broken.iter().cloned().collect::<Vec<_>>().join("; "))
            }
            () if !pinned.is_empty() && self.wanted[index].windows(most).is_empty() => {
                let named: Vec<String> = pinned.iter().map(|gpu| format!("gpu:{gpu}")).collect();
                let named = named.join(", ");
                format!(
                    "{name} takes {needed} GPUs side by side, and is kept to {named}: name others in devices"
                )
            }
            () => format!("{name} is on all GPUs that it may use already ({})", deployment.nodes),
        }
    }

    /// Nodes and first GPUs to try, one for each state: where fewest of the model are of the domains that
    /// it is spread over, where fewest of the deployment are, then aligned windows, so that instances don't break each other's up, then where most is free.
    fn places(&self, index: usize) -> Vec<(usize, usize)> {
        let wanted = &self.wanted[index];
        let mut places = Vec::new();
        for ((_, holds), nodes) in &self.states {
            let Some(node) = nodes.first().copied() else { continue };
            if !wanted.deployment.nodes.matches(&self.nodes[node]) {
                continue;
            }
            if self.rules.broken(wanted.deployment, &self.nodes[node]).is_some() {
                continue;
            }
            let around = self.rules.around(wanted.deployment, &self.nodes[node]);
            let here = holds.iter().filter(|(held, ..)| *held == index).count();
            let free = self.filling[node].likely.free();
            let count = wanted.gpus_of(free.len());
            for first in wanted.windows(free.len()) {
                let window = free.get(first..first + count);
                let least = window.and_then(|window| window.iter().min()).copied();
                // An instance beside another of its own deployment is never what a replica is for.
                let doubles = holds.iter().any(|(held, at, _)| {
                    *held == index && *at < first + count && first < *at + count
                });
                if !doubles && !free.is_empty() {
                    let least = std::cmp::Reverse(least.unwrap_or_default());
                    let is_apart = !first.is_multiple_of(count.next_power_of_two());
                    places.push((around, here, is_apart, least, node, first));
                }
            }
        }
        places.sort_unstable();
        places.into_iter().map(|(.., node, first)| (node, first)).collect()
    }

    fn try_start(&self, index: usize, id: &InstanceId, node: usize, first: usize) -> Trial<'a> {
        let (wanted, gpus) = (&self.wanted[index], &self.gpus[node]);
        let mut filling = self.filling[node].clone();
        let mut started = wanted.start(&id.0, first, gpus, &mut filling.likely, self.engine);
        if let Some(message) =
            overfull(filling.likely.gpus()).filter(|_| started.verdict.is_ready())
        {
            (started.verdict, started.message) = (Verdict::OomAtRuntime, Some(message));
        }
        let mut risk = None;
        if let Some((likely, high)) = &mut filling.host
            && started.verdict.is_ready()
        {
            let (needs, at_most) = started.host;
            if needs > *likely {
                let message = format!("it takes {needs} of host memory, and {likely} are left");
                (started.verdict, started.message) = (Verdict::OomAtRuntime, Some(message));
            } else if at_most > *high {
                risk = Some(format!("it may take {at_most} of host memory, and {high} are left"));
            }
            (*likely, *high) = (*likely - needs, *high - at_most);
        }
        if started.verdict.is_ready() {
            let engine = Engine { estimate: Estimate::High, ..*self.engine };
            let high = wanted.start(&id.0, first, gpus, &mut filling.high, &engine);
            risk = high.message.or_else(|| overfull(filling.high.gpus())).or(risk);
        }
        Trial { started, risk, filling }
    }

    fn settle(
        &mut self,
        index: usize,
        id: InstanceId,
        node: usize,
        first: usize,
        trial: Trial<'a>,
    ) -> Seat {
        self.filling[node] = trial.filling;
        self.enter(node, (index, first, false));
        let gpus = self.wanted[index].gpus_of(self.gpus[node].len());
        let Trial { started, risk, .. } = trial;
        Seat { id, deployment: index, node, first_gpu: first, gpus, is_kept: false, started, risk }
    }
}

/// A GPU on which all together hold more than there is.
fn overfull(gpus: &[SharedGpu]) -> Option<String> {
    gpus.iter().enumerate().find(|(_, gpu)| gpu.used() > gpu.total).map(|(index, gpu)| {
        format!("GPU {index}: all engines together hold {} of {} under load", gpu.used(), gpu.total)
    })
}
