//! Greedy, then the bound, then the polish: never worse than greedy or than what runs.

use super::Problem;
use super::branch::{Aim, minimise, value};
use super::greedy::{fill, greedy, trim};
use super::linear::{Linear, Objective, Unknown};

/// How much is done: relaxations, all stages together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// The most relaxations.
    pub steps: u64,
}

impl Effort {
    /// As many as take about a second, by the size of the program.
    pub fn for_size(linear: &Linear) -> Self {
        let cells = (linear.unknowns.len() * (linear.rows.len() + linear.wishes.len())) as u64;
        Self { steps: (6_000_000 / cells.max(1)).clamp(8, 3000) }
    }
}

/// A plan, and what is known of how good it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Solved {
    /// How many of each unknown.
    pub counts: Vec<u64>,
    /// What it comes to.
    pub objective: Objective,
    /// What greedy came to.
    pub greedy: Objective,
    /// No plan serves more, and of those that serve as much none is better in what comes first below.
    pub bound: Bound,
}

/// What no plan is better than.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// Unserved, in millionths.
    pub unserved: f64,
    /// Instances that are stopped, by plans that serve as much.
    pub disruption: f64,
    /// GPUs, of plans that serve as much and stop as few.
    pub gpus: f64,
}

impl Solved {
    /// How far the plan may be from the best, in GPUs, as a part of what it takes; whole where it isn't
    /// known to serve the most there is.
    pub fn gap(&self) -> f64 {
        self.bound.gap(&self.objective)
    }
}

impl Bound {
    /// How far from it an objective is, as in [`Solved::gap`].
    pub(super) fn gap(&self, objective: &Objective) -> f64 {
        let is_behind = |value: u64, bound: f64| value as f64 > bound + 0.5;
        if is_behind(objective.unserved, self.unserved)
            || is_behind(objective.disruption, self.disruption)
        {
            return 1.0;
        }
        let gpus = objective.gpus as f64;
        if gpus == 0.0 { 0.0 } else { ((gpus - self.gpus) / gpus).max(0.0) }
    }
}

/// Solves a problem.
pub fn solve(problem: &Problem, effort: Option<Effort>) -> Solved {
    let linear = Linear::new(problem);
    let first = greedy(problem, &linear);
    let greedy = linear.objective(&first);
    let mut steps = effort.unwrap_or_else(|| Effort::for_size(&linear)).steps;
    let mut best = trim(problem, &linear, first);
    if linear.objective(&best) > greedy {
        best = fill(problem, &linear, best);
    }
    let mut bounds = [0.0; Aim::ALL.len()];
    for (stage, aim) in Aim::ALL.into_iter().enumerate() {
        let objective = linear.objective(&best);
        // Nothing is less than nothing.
        if value(aim, &objective) == 0.0 {
            continue;
        }
        let round = |values: &[f64]| rounded(problem, &linear, values);
        let reached = minimise(&linear, aim, best, &mut steps, &round);
        best = reached.counts;
        bounds[stage] = reached.bound.max(0.0);
    }
    let objective = linear.objective(&best);
    let bound = Bound { unserved: bounds[0] * 1e6, disruption: bounds[1], gpus: bounds[2] };
    Solved { counts: best, objective, greedy, bound }
}

/// A relaxation's answer with new blocks rounded down, filled up and trimmed.
fn rounded(problem: &Problem, linear: &Linear, values: &[f64]) -> Vec<u64> {
    let mut counts: Vec<u64> = values.iter().map(|value| (value + 1e-6).floor() as u64).collect();
    keep_the_rest(problem, linear, &mut counts);
    trim(problem, linear, fill(problem, linear, counts))
}

/// Nodes that rounding has left out keep what leaves most room, which is feasible whatever is new.
fn keep_the_rest(problem: &Problem, linear: &Linear, counts: &mut [u64]) {
    for (class, at) in problem.classes.iter().enumerate() {
        let of_class =
            |unknown: &Unknown| matches!(unknown, Unknown::Keep { class: of, .. } if *of == class);
        let members = || (0..counts.len()).filter(|at| of_class(&linear.unknowns[*at]));
        let placed: u64 = members().map(|at| counts[at]).sum();
        if let Some(last) = members().next_back() {
            counts[last] += at.nodes.saturating_sub(placed);
        }
    }
}
