//! A plan at once: what runs stays, then the block that serves most for its GPUs, again and again.

use super::Problem;
use super::linear::{Linear, Unknown};

/// Blocks are added one by one up to this, and in growing strides beyond.
const ONE_BY_ONE: u64 = 64;

/// The better of two plans: with all that runs kept, and from an empty cluster.
pub fn greedy(problem: &Problem, linear: &Linear) -> Vec<u64> {
    let kept = fill(problem, linear, start(problem, linear, true));
    let fresh = fill(problem, linear, start(problem, linear, false));
    if linear.objective(&fresh) < linear.objective(&kept) { fresh } else { kept }
}

/// Nothing new, and of what runs all or nothing. Where all is more than may be, nothing.
fn start(problem: &Problem, linear: &Linear, keeps: bool) -> Vec<u64> {
    let count = |unknown: &Unknown| match unknown {
        Unknown::New { .. } => 0,
        Unknown::Keep { class, kept } => {
            let at = &problem.classes[*class];
            let is_meant = at
                .running
                .iter()
                .zip(kept)
                .all(|((_, count), kept)| if keeps { kept == count } else { *kept == 0 });
            if is_meant { at.nodes } else { 0 }
        }
    };
    let counts: Vec<u64> = linear.unknowns.iter().map(count).collect();
    match keeps && !linear.is_feasible(&counts) {
        true => start(problem, linear, false),
        false => counts,
    }
}

/// Adds blocks while that serves more.
pub fn fill(problem: &Problem, linear: &Linear, mut counts: Vec<u64>) -> Vec<u64> {
    let mut slack = Slack::new(linear, &counts);
    loop {
        let mut best: Option<(f64, usize)> = None;
        for (at, unknown) in linear.unknowns.iter().enumerate() {
            let Unknown::New { block, .. } = unknown else { continue };
            if slack.room(at) == 0 {
                continue;
            }
            let block = &problem.blocks[*block];
            let tight = if block.is_tight { 0.999 } else { 1.0 };
            let worth = slack.gain(at) * tight / block.gpus as f64;
            if worth > 1e-9 && best.is_none_or(|(most, _)| worth > most * (1.0 + 1e-9)) {
                best = Some((worth, at));
            }
        }
        let Some((_, at)) = best else { return counts };
        // As many as are wholly of use, so that thousands of nodes are not thousands of rounds.
        let useful = slack.wholly_useful(at).min(slack.room(at));
        let number = if useful > ONE_BY_ONE { useful / 2 } else { 1 };
        counts[at] += number;
        slack.take(at, number);
    }
}

/// What is left of each row, and what is missing of each wish; with the places where an unknown is.
struct Slack {
    left: Vec<f64>,
    missing: Vec<f64>,
    weights: Vec<f64>,
    in_rows: Vec<Vec<(usize, f64)>>,
    in_wishes: Vec<Vec<(usize, f64)>>,
}

impl Slack {
    fn new(linear: &Linear, counts: &[u64]) -> Self {
        let mut in_rows = vec![Vec::new(); counts.len()];
        let mut in_wishes = vec![Vec::new(); counts.len()];
        let value = |terms: &[(usize, f64)]| -> f64 {
            terms.iter().map(|(at, coefficient)| coefficient * counts[*at] as f64).sum()
        };
        for (row, of) in linear.rows.iter().enumerate() {
            of.terms.iter().for_each(|(at, coefficient)| in_rows[*at].push((row, *coefficient)));
        }
        for (wish, of) in linear.wishes.iter().enumerate() {
            of.terms.iter().for_each(|(at, coefficient)| in_wishes[*at].push((wish, *coefficient)));
        }
        Self {
            left: linear.rows.iter().map(|row| row.limit - value(&row.terms)).collect(),
            missing: linear.wishes.iter().map(|wish| (1.0 - value(&wish.terms)).max(0.0)).collect(),
            weights: linear.wishes.iter().map(|wish| wish.weight).collect(),
            in_rows,
            in_wishes,
        }
    }

    /// How many more of an unknown there is room for.
    fn room(&self, at: usize) -> u64 {
        let rows = self.in_rows[at].iter().filter(|(_, coefficient)| *coefficient > 0.0);
        let room = rows.map(|(row, coefficient)| ((self.left[*row] + 1e-6) / coefficient).floor());
        room.fold(f64::INFINITY, f64::min).clamp(0.0, 1e12) as u64
    }

    /// What one more serves of what is missing.
    fn gain(&self, at: usize) -> f64 {
        let wishes = self.in_wishes[at].iter();
        wishes.map(|(wish, share)| self.weights[*wish] * share.min(self.missing[*wish])).sum()
    }

    /// How many more would be wholly of use.
    fn wholly_useful(&self, at: usize) -> u64 {
        let wishes = self.in_wishes[at].iter().filter(|(_, share)| *share > 0.0);
        let useful = wishes.map(|(wish, share)| (self.missing[*wish] / share).floor());
        useful.fold(f64::INFINITY, f64::min).clamp(0.0, 1e12) as u64
    }

    fn take(&mut self, at: usize, number: u64) {
        for (row, coefficient) in &self.in_rows[at] {
            self.left[*row] -= coefficient * number as f64;
        }
        for (wish, share) in &self.in_wishes[at] {
            self.missing[*wish] = (self.missing[*wish] - share * number as f64).max(0.0);
        }
    }
}

/// Takes away new blocks that nothing is lost without, the largest first.
pub fn trim(problem: &Problem, linear: &Linear, mut counts: Vec<u64>) -> Vec<u64> {
    let unserved = linear.objective(&counts).unserved;
    // Only what others stay beside can be missed by a row.
    let has_partners = problem.models.iter().any(|model| model.beside.is_some());
    let mut order: Vec<(std::cmp::Reverse<u64>, usize)> = Vec::new();
    for (at, unknown) in linear.unknowns.iter().enumerate() {
        if let Unknown::New { block, .. } = unknown {
            order.push((std::cmp::Reverse(problem.blocks[*block].gpus), at));
        }
    }
    order.sort_unstable();
    for (_, at) in order {
        while counts[at] > 0 {
            counts[at] -= 1;
            let is_missed = linear.objective(&counts).unserved > unserved
                || has_partners && !linear.is_feasible(&counts);
            if is_missed {
                counts[at] += 1;
                break;
            }
        }
    }
    counts
}
