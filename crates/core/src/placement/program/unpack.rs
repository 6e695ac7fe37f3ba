//! From counts to nodes: what each keeps, and which new blocks it gets.

use super::Problem;
use super::linear::{Linear, Unknown};

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

/// Gives every node of every class its part: nodes in the order of their classes. The largest blocks
/// come first, each to the first node with room, which can't fail for counts that keep to the rows.
/// None where they don't.
pub fn unpack(problem: &Problem, linear: &Linear, counts: &[u64]) -> Option<Vec<OnNode>> {
    let mut nodes = Vec::new();
    let mut free = Vec::new();
    for (unknown, count) in linear.unknowns.iter().zip(counts) {
        let Unknown::Keep { class, kept } = unknown else { continue };
        let at = &problem.classes[*class];
        let taken = at.running.iter().zip(kept);
        let taken: u64 = taken.map(|((block, _), kept)| problem.blocks[*block].gpus * kept).sum();
        for _ in 0..*count {
            nodes.push(OnNode { class: *class, kept: kept.clone(), new: Vec::new() });
            free.push(at.gpus.checked_sub(taken)?);
        }
    }
    let mut new: Vec<(std::cmp::Reverse<u64>, usize, usize, u64)> = Vec::new();
    for (unknown, count) in linear.unknowns.iter().zip(counts) {
        if let Unknown::New { kind, block } = unknown {
            new.push((std::cmp::Reverse(problem.blocks[*block].gpus), *block, *kind, *count));
        }
    }
    new.sort_unstable();
    for (std::cmp::Reverse(gpus), block, kind, count) in new {
        let mut at = 0;
        for _ in 0..count {
            // A node that has no room for a block has none for its likes.
            while problem.classes[nodes.get(at)?.class].kind != kind || free[at] < gpus {
                at += 1;
            }
            nodes[at].new.push(block);
            free[at] -= gpus;
        }
    }
    Some(nodes)
}
