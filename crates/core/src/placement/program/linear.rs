//! The unknowns, the rows, and the objectives in their order.

use super::{Block, Class, Problem, rules};

/// Sub-multisets of what runs on a node that are told apart; of more, all and nothing are.
const MOST_KEPT: u64 = 256;
/// What is served is compared in parts of this.
const PARTS: f64 = 1e6;

/// An unknown: a count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// New blocks on nodes of a kind.
    New {
        /// The kind.
        kind: usize,
        /// The block.
        block: usize,
    },
    /// Nodes of a class that keep so much of what runs on them.
    Keep {
        /// The class.
        class: usize,
        /// Of each running block, how many stay.
        kept: Vec<u64>,
    },
}

/// `sum of coefficients times unknowns <= limit`.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Coefficients by unknown.
    pub terms: Vec<(usize, f64)>,
    /// The limit.
    pub limit: f64,
    /// Whether the sum must be equal to it.
    pub is_exact: bool,
}

/// A share of what a model needs, as a linear form that should reach 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// Coefficients by unknown.
    pub terms: Vec<(usize, f64)>,
    /// What it counts to miss all of it.
    pub weight: f64,
}

/// What is aimed at, the most important first; less is better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Objective {
    /// What is not served, in millionths of a model's need, weighted.
    pub unserved: u64,
    /// Running instances that are stopped.
    pub disruption: u64,
    /// GPUs that are taken.
    pub gpus: u64,
    /// Blocks that leave less than shall stay free.
    pub tight: u64,
    /// Of models that are spread, instances in the fullest failure domain.
    pub spread: u64,
    /// The ranks of all blocks: decides between equals.
    pub rank: u64,
}

/// The program.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// The unknowns.
    pub unknowns: Vec<Unknown>,
    /// Rows that must hold.
    pub rows: Vec<Row>,
    /// What should be reached.
    pub wishes: Vec<Wish>,
    /// Instances that are kept. These forms have whole coefficients.
    pub kept: Vec<(usize, f64)>,
    /// GPUs that are taken.
    pub gpus: Vec<(usize, f64)>,
    /// Tight blocks.
    pub tight: Vec<(usize, f64)>,
    /// Ranks.
    pub rank: Vec<(usize, f64)>,
    /// Of each model that is spread, its instances in each domain.
    pub spreads: Vec<Vec<Vec<(usize, f64)>>>,
    /// Instances that run.
    pub running: u64,
}

impl Linear {
    /// The program of a problem.
    pub fn new(problem: &Problem) -> Self {
        let mut unknowns = Vec::new();
        for (class, at) in problem.classes.iter().enumerate() {
            let sets = kept(at).into_iter();
            let sets = sets.filter(|kept| {
                rules::within_node(problem, |model| rules::kept_instances(problem, at, kept, model))
            });
            unknowns.extend(sets.map(|kept| Unknown::Keep { class, kept }));
        }
        let mut kinds: Vec<usize> = problem.classes.iter().map(|class| class.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        for kind in &kinds {
            let most = problem.classes.iter().filter(|class| class.kind == *kind);
            let most = most.map(|class| class.gpus).max().unwrap_or(0);
            let fitting = problem.blocks.iter().enumerate();
            let fitting = fitting.filter(|(_, one)| {
                one.kinds.contains(kind)
                    && one.gpus <= most
                    && rules::within_node(problem, |model| one.instances(model))
            });
            unknowns.extend(fitting.map(|(block, _)| Unknown::New { kind: *kind, block }));
        }
        let mut linear = Self {
            rows: Vec::new(),
            wishes: Vec::new(),
            kept: Vec::new(),
            gpus: Vec::new(),
            tight: Vec::new(),
            rank: Vec::new(),
            spreads: Vec::new(),
            running: problem
                .classes
                .iter()
                .map(|class| class.nodes * instances(class, problem))
                .sum(),
            unknowns,
        };
        linear.add_rows(problem, &kinds);
        linear.rows.extend(rules::rows(problem, &linear, &kinds));
        linear.spreads = rules::spreads(problem, &linear);
        linear.add_wishes(problem);
        linear.add_objectives(problem);
        linear
    }

    fn add_rows(&mut self, problem: &Problem, kinds: &[usize]) {
        for (class, at) in problem.classes.iter().enumerate() {
            let is_of = |unknown: &Unknown| matches!(unknown, Unknown::Keep { class: of, .. } if *of == class);
            let terms = self.terms(|unknown| f64::from(u8::from(is_of(unknown))));
            self.rows.push(Row { terms, limit: at.nodes as f64, is_exact: true });
        }
        let most = problem.classes.iter().map(|class| class.gpus).max().unwrap_or(0);
        for kind in kinds {
            let sizes = (0..).map(|power| 1_u64 << power).take_while(|size| *size <= most);
            for size in sizes {
                let terms = self.terms(|unknown| match unknown {
                    Unknown::New { kind: of, block } if of == kind => {
                        (problem.blocks[*block].gpus / size) as f64
                    }
                    Unknown::Keep { class, kept } if problem.classes[*class].kind == *kind => {
                        let class = &problem.classes[*class];
                        -((free(class, kept, problem) / size) as f64)
                    }
                    _ => 0.0,
                });
                self.rows.push(Row { terms, limit: 0.0, is_exact: false });
            }
        }
        for (model, asked) in problem.models.iter().enumerate() {
            let terms =
                self.terms(|unknown| each(unknown, problem, |block| block.instances(model) as f64));
            self.rows.push(Row { terms, limit: asked.max as f64, is_exact: false });
        }
    }

    fn add_wishes(&mut self, problem: &Problem) {
        for (model, asked) in problem.models.iter().enumerate() {
            if asked.need > 0.0 {
                let terms = self.terms(|unknown| {
                    each(unknown, problem, |block| block.capacity(model) / asked.need)
                });
                self.wishes.push(Wish { terms, weight: asked.priority });
            }
            if asked.min > 0 {
                let terms = self.terms(|unknown| {
                    each(unknown, problem, |block| block.instances(model) as f64 / asked.min as f64)
                });
                self.wishes.push(Wish { terms, weight: asked.priority });
            }
        }
    }

    fn add_objectives(&mut self, problem: &Problem) {
        self.kept = self.terms(|unknown| match unknown {
            Unknown::Keep { .. } => -each(unknown, problem, |block| block.size() as f64),
            Unknown::New { .. } => 0.0,
        });
        self.gpus = self.terms(|unknown| each(unknown, problem, |block| block.gpus as f64));
        self.tight = self.terms(|unknown| match unknown {
            Unknown::Keep { .. } => 0.0,
            Unknown::New { block, .. } => f64::from(u8::from(problem.blocks[*block].is_tight)),
        });
        self.rank = self.terms(|unknown| match unknown {
            Unknown::Keep { .. } => 0.0,
            Unknown::New { block, .. } => (block + 1) as f64,
        });
    }

    /// A linear form, without what is zero in it.
    pub(super) fn terms(&self, coefficient: impl Fn(&Unknown) -> f64) -> Vec<(usize, f64)> {
        let all = self.unknowns.iter().enumerate().map(|(at, unknown)| (at, coefficient(unknown)));
        all.filter(|(_, coefficient)| *coefficient != 0.0).collect()
    }

    /// What is missing of a wish under counts.
    fn missing(wish: &Wish, counts: &[u64]) -> f64 {
        (1.0 - sum(&wish.terms, counts)).max(0.0)
    }

    /// What counts come to.
    pub fn objective(&self, counts: &[u64]) -> Objective {
        let unserved: f64 =
            self.wishes.iter().map(|wish| wish.weight * Self::missing(wish, counts)).sum();
        let whole = |terms: &[(usize, f64)]| sum(terms, counts).round();
        let fullest = |domains: &Vec<Vec<(usize, f64)>>| {
            domains.iter().map(|terms| whole(terms)).fold(0.0, f64::max)
        };
        Objective {
            unserved: (unserved * PARTS).round() as u64,
            disruption: (self.running as f64 + whole(&self.kept)) as u64,
            gpus: whole(&self.gpus) as u64,
            tight: whole(&self.tight) as u64,
            spread: self.spreads.iter().map(fullest).sum::<f64>() as u64,
            rank: whole(&self.rank) as u64,
        }
    }

    /// Whether counts keep to all rows.
    pub fn is_feasible(&self, counts: &[u64]) -> bool {
        self.rows.iter().all(|row| {
            let sum = sum(&row.terms, counts);
            if row.is_exact { (sum - row.limit).abs() < 1e-6 } else { sum <= row.limit + 1e-6 }
        })
    }
}

fn sum(terms: &[(usize, f64)], counts: &[u64]) -> f64 {
    terms.iter().map(|(at, coefficient)| coefficient * counts[*at] as f64).sum()
}

/// A figure of an unknown's blocks.
pub(super) fn each(unknown: &Unknown, problem: &Problem, figure: impl Fn(&Block) -> f64) -> f64 {
    match unknown {
        Unknown::New { block, .. } => figure(&problem.blocks[*block]),
        Unknown::Keep { class, kept } => {
            let running = problem.classes[*class].running.iter().zip(kept);
            running.map(|((block, _), kept)| figure(&problem.blocks[*block]) * *kept as f64).sum()
        }
    }
}

fn instances(class: &Class, problem: &Problem) -> u64 {
    class.running.iter().map(|(block, count)| problem.blocks[*block].size() * count).sum()
}

/// GPUs of a node that keeps so much.
fn free(class: &Class, kept: &[u64], problem: &Problem) -> u64 {
    let taken = class.running.iter().zip(kept);
    let taken: u64 = taken.map(|((block, _), kept)| problem.blocks[*block].gpus * kept).sum();
    class.gpus.saturating_sub(taken)
}

/// The sub-multisets of what runs on a node of a class, all of it first.
fn kept(class: &Class) -> Vec<Vec<u64>> {
    let all: Vec<u64> = class.running.iter().map(|(_, count)| *count).collect();
    let number = all.iter().fold(1_u64, |product, count| product.saturating_mul(count + 1));
    if number > MOST_KEPT {
        return vec![all.clone(), vec![0; all.len()]];
    }
    let mut sets = vec![Vec::new()];
    for count in all {
        let longer = |set: &Vec<u64>| {
            (0..=count).rev().map(|kept| [set.as_slice(), &[kept]].concat()).collect::<Vec<_>>()
        };
        sets = sets.iter().flat_map(longer).collect();
    }
    sets
}
