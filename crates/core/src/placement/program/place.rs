//! A problem's answer, node by node.

use super::linear::{Linear, Objective, Unknown};
use super::solve::{Bound, Effort, Solved, solve};
use super::unpack::{OnNode, Unpacked, unpack};
use super::{Beside, Class, Domains, Problem, Spread};

/// With more nodes than this they are not told apart: an answer then leaves out what finds no place.
const MOST_APART: u64 = 64;

/// Where everything goes, and what is known of how good that is.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// The nodes, in the order of their classes.
    pub nodes: Vec<OnNode>,
    /// What it comes to.
    pub objective: Objective,
    /// What greedy came to, where rules about single nodes are seen for all nodes of a kind together.
    pub greedy: Objective,
    /// What no plan is better than.
    pub bound: Bound,
}

impl Unpacked {
    /// Whether all counts have a place that breaks no rule.
    fn is_all_of(&self, counts: &[u64]) -> bool {
        self.alone.is_empty() && self.counts == counts
    }
}

impl Placed {
    /// As [`Solved::gap`].
    pub fn gap(&self) -> f64 {
        self.bound.gap(&self.objective)
    }
}

/// Solves a problem and unpacks it. Where the counts find no place because a rule is about single nodes,
/// every node becomes a kind of its own, for which the rows say all there is to say.
pub fn place(problem: &Problem, effort: Option<Effort>) -> Placed {
    let linear = Linear::new(problem);
    let solved = solve(problem, effort);
    let unpacked = unpack(problem, &linear, &solved.counts);
    if unpacked.is_all_of(&solved.counts) {
        return of(solved.objective, unpacked.nodes, &solved);
    }
    let nodes: u64 = problem.classes.iter().map(|class| class.nodes).sum();
    if nodes <= MOST_APART {
        let (apart, classes) = apart(problem);
        let again = solve(&apart, effort);
        let mut found = unpack(&apart, &Linear::new(&apart), &again.counts);
        if found.is_all_of(&again.counts) {
            found.nodes.iter_mut().for_each(|node| node.class = classes[node.class]);
            found.nodes.sort_by_key(|node| node.class);
            // Both bounds hold; that of nodes told apart is the nearer one.
            return of(again.objective, found.nodes, &again);
        }
    }
    let (counts, nodes) = without_the_rest(problem, &linear, unpacked);
    of(linear.objective(&counts), nodes, &solved)
}

fn of(objective: Objective, nodes: Vec<OnNode>, solved: &Solved) -> Placed {
    Placed { nodes, objective, greedy: solved.greedy, bound: solved.bound }
}

/// What is left once blocks without a place are left out. With them go those that stay beside others,
/// and what runs without what it is kept together with.
fn without_the_rest(
    problem: &Problem,
    linear: &Linear,
    unpacked: Unpacked,
) -> (Vec<u64>, Vec<OnNode>) {
    let Unpacked { nodes, mut counts, alone } = unpacked;
    if alone.is_empty() && linear.is_feasible(&counts) {
        return (counts, nodes);
    }
    for (unknown, count) in linear.unknowns.iter().zip(&mut counts) {
        let Unknown::New { block, .. } = unknown else { continue };
        let mut models = problem.blocks[*block].serves.iter().map(|(model, ..)| *model);
        if models.any(|model| problem.models[model].beside.is_some()) {
            *count = 0;
        }
    }
    let keeps = |class: usize, wanted: Option<&[u64]>| {
        linear.unknowns.iter().position(|unknown| match unknown {
            Unknown::Keep { class: of, kept } if *of == class => match wanted {
                Some(wanted) => kept == wanted,
                None => kept.iter().all(|kept| *kept == 0),
            },
            _ => false,
        })
    };
    for node in alone.into_iter().map(|at| &nodes[at]) {
        if let (Some(from), Some(to)) =
            (keeps(node.class, Some(&node.kept)), keeps(node.class, None))
        {
            counts[from] -= 1;
            counts[to] += 1;
        }
    }
    let again = unpack(problem, linear, &counts);
    (again.counts, again.nodes)
}

/// The same problem with every node a kind of its own; and the class that each was of.
fn apart(problem: &Problem) -> (Problem, Vec<usize>) {
    let (mut classes, mut was) = (Vec::new(), Vec::new());
    let mut kinds_of: Vec<(usize, usize)> = Vec::new();
    for (class, at) in problem.classes.iter().enumerate() {
        for _ in 0..at.nodes {
            kinds_of.push((at.kind, classes.len()));
            classes.push(Class { nodes: 1, kind: classes.len(), ..at.clone() });
            was.push(class);
        }
    }
    let now = |kinds: &[usize]| -> Vec<usize> {
        let of = kinds_of.iter().filter(|(was, _)| kinds.contains(was));
        of.map(|(_, now)| *now).collect()
    };
    let domains = |domains: &Domains| match domains {
        Domains::Nodes => Domains::Nodes,
        Domains::Kinds(all) => Domains::Kinds(all.iter().map(|kinds| now(kinds)).collect()),
    };
    let mut apart = Problem { classes, ..problem.clone() };
    apart.blocks.iter_mut().for_each(|block| block.kinds = now(&block.kinds));
    for model in &mut apart.models {
        let spread = model.spread.take();
        model.spread = spread.map(|one| Spread { domains: domains(&one.domains), ..one });
        let beside = model.beside.take();
        model.beside = beside.map(|one| Beside { domains: domains(&one.domains), ..one });
    }
    (apart, was)
}
