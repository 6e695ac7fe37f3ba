//! From counts to nodes: what each keeps, and which new blocks it gets.

use super::linear::{Linear, Unknown};
use super::rules::{has_partners, host_left, kept_instances, within_node};
use super::{Block, Problem};

/// What is on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OnNode {
    /// The node's class.
    pub class: usize,
    /// Of each block that runs there, how many stay.
    pub kept: Vec<u64>,
    /// New blocks, the largest first.
    pub new: Vec<usize>,
}

/// What became of counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// The nodes, in the order of their classes.
    pub nodes: Vec<OnNode>,
    /// The counts that have a place.
    pub counts: Vec<u64>,
    /// Nodes that keep an instance without what it is kept together with, as indices.
    pub alone: Vec<usize>,
}

/// Gives every node of every class its part: nodes in the order of their classes. The largest blocks
/// come first, each to the first node that takes it. For counts that keep to the rows that can't fail,
/// but where a rule is about single nodes and a kind has several; what finds no place then is left out.
pub fn unpack(problem: &Problem, linear: &Linear, counts: &[u64]) -> Unpacked {
    let mut filling: Vec<Filling> = Vec::new();
    for (unknown, count) in linear.unknowns.iter().zip(counts) {
        if let Unknown::Keep { class, kept } = unknown {
            let node = Filling::keeping(problem, *class, kept);
            filling.extend(std::iter::repeat_n(node, usize::try_from(*count).unwrap_or(0)));
        }
    }
    let mut new: Vec<(usize, std::cmp::Reverse<u64>, usize, usize, usize)> = Vec::new();
    for (at, unknown) in linear.unknowns.iter().enumerate() {
        if let Unknown::New { kind, block } = unknown {
            let gpus = problem.blocks[*block].gpus;
            let depth = depth(problem, &problem.blocks[*block]);
            new.push((depth, std::cmp::Reverse(gpus), *block, *kind, at));
        }
    }
    new.sort_unstable();
    let mut placed = counts.to_vec();
    for (_, _, block, kind, unknown) in new {
        let is_of = |node: &Filling| problem.classes[node.on.class].kind == kind;
        let alone = filling.iter().filter(|node| is_of(node)).count() == 1;
        let mut at = 0;
        for number in 0..counts[unknown] {
            // A node that doesn't take a block doesn't take another like it.
            let takes = |node: &Filling| is_of(node) && node.takes(problem, block, alone);
            at += filling[at..].iter().position(takes).unwrap_or(filling.len() - at);
            let Some(node) = filling.get_mut(at) else {
                placed[unknown] = number;
                break;
            };
            node.add(problem, block);
        }
    }
    let is_alone = |node: &Filling| !has_partners(problem, |model| node.instances[model]);
    let alone = filling.iter().enumerate().filter(|(_, node)| is_alone(node));
    Unpacked {
        alone: alone.map(|(at, _)| at).collect(),
        nodes: filling.into_iter().map(|node| node.on).collect(),
        counts: placed,
    }
}

/// How many models a block's own stay beside, one after the other: those come first.
fn depth(problem: &Problem, block: &Block) -> usize {
    let of = |mut model: usize| {
        let mut depth = 0;
        while let Some(beside) = &problem.models[model].beside {
            if depth > problem.models.len() || block.instances(beside.model) > 0 {
                break;
            }
            (model, depth) = (beside.model, depth + 1);
        }
        depth
    };
    block.serves.iter().map(|(model, ..)| of(*model)).max().unwrap_or(0)
}

/// A node while it is filled.
#[derive(Clone, Debug)]
struct Filling {
    on: OnNode,
    free: u64,
    host: Option<u64>,
    /// Instances of each model.
    instances: Vec<u64>,
}

impl Filling {
    fn keeping(problem: &Problem, class: usize, kept: &[u64]) -> Self {
        let of = &problem.classes[class];
        let mut node = Self {
            on: OnNode { class, kept: kept.to_vec(), new: Vec::new() },
            free: of.gpus,
            host: host_left(problem, of, kept),
            instances: (0..problem.models.len())
                .map(|model| kept_instances(problem, of, kept, model))
                .collect(),
        };
        for ((block, _), kept) in of.running.iter().zip(kept) {
            node.free = node.free.saturating_sub(problem.blocks[*block].gpus * kept);
        }
        node
    }

    /// Whether there is room. Where it is the only node of its kind, the rows have seen to the rest.
    fn takes(&self, problem: &Problem, block: usize, alone: bool) -> bool {
        let block = &problem.blocks[block];
        let has_host = self.host.is_none_or(|left| block.host <= left);
        let after = |model: usize| self.instances[model] + block.instances(model);
        let keeps_rules = || within_node(problem, after) && has_partners(problem, after);
        block.gpus <= self.free && has_host && (alone || keeps_rules())
    }

    fn add(&mut self, problem: &Problem, index: usize) {
        let block = &problem.blocks[index];
        self.free -= block.gpus;
        self.host = self.host.map(|left| left.saturating_sub(block.host));
        block.serves.iter().for_each(|(model, count, _)| self.instances[*model] += count);
        self.on.new.push(index);
    }
}
