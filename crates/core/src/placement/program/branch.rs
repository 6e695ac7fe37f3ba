//! The relaxation, and branch and bound over it.
//!
//! The relaxation is solved by a library; branching is our own, because it must be bounded in steps
//! rather than in time, and the same on every machine.

use good_lp::{
    Expression, ProblemVariables, ResolutionError, Solution as _, SolverModel as _, Variable,
    variable,
};

use super::linear::{Linear, Objective};

#[cfg(feature = "highs")]
use good_lp::highs as SOLVER;
#[cfg(not(feature = "highs"))]
use good_lp::microlp as SOLVER;

/// Whatever is nearer to a whole number than this is one.
const WHOLE: f64 = 1e-6;

/// What a stage aims at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Aim {
    /// That nothing is unserved.
    Wishes,
    /// That little of what runs is stopped.
    Disruption,
    /// Few GPUs.
    Gpus,
    /// Few tight blocks.
    Tight,
    /// Few instances in one failure domain.
    Spread,
    /// The same answer wherever it is asked.
    Rank,
}

impl Aim {
    /// All, the most important first.
    pub const ALL: [Self; 6] =
        [Self::Wishes, Self::Disruption, Self::Gpus, Self::Tight, Self::Spread, Self::Rank];
}

/// How far a stage got.
#[derive(Clone, Debug, PartialEq)]
pub struct Reached {
    /// The best counts that were found.
    pub counts: Vec<u64>,
    /// No counts are better than this, in the stage's own unit.
    pub bound: f64,
}

/// The value of a stage's aim.
pub fn value(aim: Aim, objective: &Objective) -> f64 {
    match aim {
        Aim::Wishes => objective.unserved as f64 / 1e6,
        Aim::Disruption => objective.disruption as f64,
        Aim::Gpus => objective.gpus as f64,
        Aim::Tight => objective.tight as f64,
        Aim::Spread => objective.spread as f64,
        Aim::Rank => objective.rank as f64,
    }
}

/// A part of the search: bounds of some unknowns, and what the relaxation came to above it.
#[derive(Clone, Debug)]
struct Branch {
    bounds: Vec<(usize, f64, f64)>,
    above: f64,
}

/// Searches for better counts than `best`, keeping what earlier stages came to. Takes at most `steps`
/// relaxations off the count. `round` makes counts of a relaxation's answer.
///
/// It dives to the nearer whole number until a branch ends, then goes on where most is still possible.
pub fn minimise(
    linear: &Linear,
    aim: Aim,
    best: Vec<u64>,
    steps: &mut u64,
    round: &dyn Fn(&[f64]) -> Vec<u64>,
) -> Reached {
    let mut search = Search::new(linear, aim, best);
    let mut next = Some(Branch { bounds: Vec::new(), above: f64::NEG_INFINITY });
    while let Some(branch) = next.take().or_else(|| search.most_promising()) {
        if search.is_no_better(branch.above) {
            continue;
        }
        if *steps == 0 {
            search.open.push(branch);
            break;
        }
        *steps -= 1;
        let (lowest, values) = match relax(linear, aim, &search.fixed, &branch.bounds) {
            Relaxed::Solved(lowest, values) => (lowest, values),
            Relaxed::Infeasible => continue,
            Relaxed::GaveUp => {
                search.given_up = search.given_up.min(branch.above);
                continue;
            }
        };
        if search.is_no_better(lowest) {
            continue;
        }
        search.consider(round(&values));
        let Some(at) = most_fractional(&values) else {
            search.consider(values.iter().map(|value| value.round() as u64).collect());
            continue;
        };
        let value = values[at];
        let with = |low: f64, high: f64| Branch {
            bounds: [branch.bounds.as_slice(), &[(at, low, high)]].concat(),
            above: lowest,
        };
        let (down, up) = (with(0.0, value.floor()), with(value.ceil(), f64::INFINITY));
        let (nearer, farther) = if value.fract() >= 0.5 { (up, down) } else { (down, up) };
        search.open.push(farther);
        next = Some(nearer);
    }
    let left = search.open.iter().chain(&next).map(|branch| branch.above);
    let left = left.fold(search.given_up, f64::min);
    let bound = value(aim, &search.objective).min(whole_above(aim, left));
    Reached { counts: search.best, bound }
}

/// The state of a search.
struct Search<'a> {
    linear: &'a Linear,
    aim: Aim,
    /// What earlier stages came to.
    fixed: Objective,
    best: Vec<u64>,
    objective: Objective,
    open: Vec<Branch>,
    /// The least that may be where the library had no answer.
    given_up: f64,
}

impl<'a> Search<'a> {
    fn new(linear: &'a Linear, aim: Aim, best: Vec<u64>) -> Self {
        let objective = linear.objective(&best);
        let (open, given_up) = (Vec::new(), f64::INFINITY);
        Self { linear, aim, fixed: objective, best, objective, open, given_up }
    }

    /// Takes the branch off where most is possible; the newest of equals.
    fn most_promising(&mut self) -> Option<Branch> {
        let above = self.open.iter().enumerate();
        let least = above.min_by(|(a, x), (b, y)| x.above.total_cmp(&y.above).then(b.cmp(a)))?;
        let at = least.0;
        Some(self.open.remove(at))
    }

    fn is_no_better(&self, lowest: f64) -> bool {
        let margin = if self.aim == Aim::Wishes { 5e-7 } else { 0.5 };
        whole_above(self.aim, lowest) > value(self.aim, &self.objective) - margin
    }

    fn consider(&mut self, counts: Vec<u64>) {
        let found = self.linear.objective(&counts);
        if found < self.objective && self.linear.is_feasible(&counts) {
            (self.objective, self.best) = (found, counts);
        }
    }
}

/// Whole objectives can't be between two whole numbers.
fn whole_above(aim: Aim, lowest: f64) -> f64 {
    match aim {
        Aim::Wishes => lowest,
        _ if lowest.is_finite() => (lowest - WHOLE).ceil(),
        _ => lowest,
    }
}

fn most_fractional(values: &[f64]) -> Option<usize> {
    let distance = |value: f64| (value - value.round()).abs();
    let fractional = values.iter().enumerate().filter(|(_, value)| distance(**value) > WHOLE);
    let most = fractional
        .max_by(|(a, x), (b, y)| distance(**x).total_cmp(&distance(**y)).then_with(|| b.cmp(a)));
    most.map(|(at, _)| at)
}

/// What a relaxation comes to.
#[derive(Clone, Debug, PartialEq)]
pub enum Relaxed {
    /// The aim's value, and the unknowns'.
    Solved(f64, Vec<f64>),
    /// Nothing keeps to the bounds.
    Infeasible,
    /// The library has no answer, which says nothing.
    GaveUp,
}

/// The relaxation with some bounds, keeping what was reached before.
pub fn relax(
    linear: &Linear,
    aim: Aim,
    fixed: &Objective,
    bounds: &[(usize, f64, f64)],
) -> Relaxed {
    let mut limits = vec![(0.0_f64, f64::INFINITY); linear.unknowns.len()];
    for (at, low, high) in bounds {
        limits[*at] = (limits[*at].0.max(*low), limits[*at].1.min(*high));
    }
    if limits.iter().any(|(low, high)| low > high) {
        return Relaxed::Infeasible;
    }
    let mut variables = ProblemVariables::new();
    let unknowns: Vec<Variable> = limits
        .into_iter()
        .map(|(low, high)| {
            let bounded = variable().min(low);
            variables.add(if high.is_finite() { bounded.max(high) } else { bounded })
        })
        .collect();
    let missing: Vec<Variable> =
        linear.wishes.iter().map(|_| variables.add(variable().min(0.0).max(1.0))).collect();
    let form = |terms: &[(usize, f64)]| -> Expression {
        terms.iter().map(|(at, coefficient)| *coefficient * unknowns[*at]).sum()
    };
    // What the fullest domain of a model has: only where that is aimed at, or kept to.
    let spreads = if aim >= Aim::Spread { linear.spreads.as_slice() } else { &[] };
    let fullest: Vec<Variable> =
        spreads.iter().map(|_| variables.add(variable().min(0.0))).collect();
    let unserved: Expression =
        linear.wishes.iter().zip(&missing).map(|(wish, missing)| wish.weight * *missing).sum();
    let of = |aim: Aim| match aim {
        Aim::Wishes => unserved.clone(),
        // What runs less what is kept.
        Aim::Disruption => linear.running as f64 + form(&linear.kept),
        Aim::Gpus => form(&linear.gpus),
        Aim::Tight => form(&linear.tight),
        Aim::Spread => fullest.iter().sum(),
        Aim::Rank => form(&linear.rank),
    };
    let aimed = of(aim);
    let mut model = variables.minimise(aimed.clone()).using(SOLVER);
    for row in &linear.rows {
        let form = form(&row.terms);
        let constraint = if row.is_exact { form.eq(row.limit) } else { form.leq(row.limit) };
        model.add_constraint(constraint);
    }
    for (wish, missing) in linear.wishes.iter().zip(&missing) {
        model.add_constraint((form(&wish.terms) + *missing).geq(1.0));
    }
    for (domains, fullest) in spreads.iter().zip(&fullest) {
        for terms in domains {
            model.add_constraint(form(terms).leq(*fullest));
        }
    }
    for earlier in Aim::ALL.into_iter().filter(|earlier| *earlier < aim) {
        // What is unserved was rounded; what is found is compared as it rounds.
        let slack = if earlier == Aim::Wishes { 0.6e-6 } else { 1e-6 };
        model.add_constraint(of(earlier).leq(value(earlier, fixed) + slack));
    }
    let solution = match model.solve() {
        Ok(solution) => solution,
        Err(ResolutionError::Infeasible) => return Relaxed::Infeasible,
        Err(_) => return Relaxed::GaveUp,
    };
    let values = unknowns.iter().map(|unknown| solution.value(*unknown).max(0.0)).collect();
    Relaxed::Solved(solution.eval(&aimed), values)
}
