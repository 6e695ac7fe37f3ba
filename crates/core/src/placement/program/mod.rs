//! Placement as an integer program: how many of which block go to nodes of which class.
//!
//! A block is what is put on 1, 2, 4, 8... GPUs of a node together: an instance over all of them, or
//! several that share them. Sizes are powers of two, so that "all blocks fit on the nodes" is a few
//! linear rows, and the number of unknowns doesn't grow with the number of nodes (Coffman, Garey and
//! Johnson 1987: for divisible sizes, first fit decreasing is optimal). Nodes that are alike in their
//! GPUs, in what may run there and in what runs there are one class.
//!
//! - [`linear`]: the unknowns, the rows, and the objectives in their order
//! - `rules`: rows for host memory, for failure domains and for models that stay together
//! - [`greedy`](mod@greedy): a plan at once, from what runs or from a relaxed plan
//! - [`branch`]: the relaxation, and branch and bound over it, bounded in steps and not in time: the
//!   same answer on every machine
//! - [`solve`](mod@solve): greedy, then the bound, then the polish
//! - [`unpack`](mod@unpack): from counts to nodes
//! - [`place`](mod@place): all of it, with nodes told apart where a rule needs that

pub mod branch;
pub mod greedy;
pub mod linear;
pub mod place;
mod rules;
pub mod solve;
pub mod unpack;

pub use linear::{Linear, Objective};
pub use place::{Placed, place};
pub use solve::{Bound, Effort, Solved, solve};
pub use unpack::OnNode;

/// What shall be placed, and where.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Problem {
    /// The nodes, by class.
    pub classes: Vec<Class>,
    /// The models.
    pub models: Vec<Model>,
    /// What can be put on GPUs together. Their order decides between equals.
    pub blocks: Vec<Block>,
}

/// Nodes that are alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Class {
    /// How many there are.
    pub nodes: u64,
    /// GPUs of each.
    pub gpus: u64,
    /// Host memory of each that engines may take, in MiB; none where it isn't known.
    pub host: Option<u64>,
    /// What may run on them: classes of one kind take the same blocks.
    pub kind: usize,
    /// Blocks that run on each, with how often.
    pub running: Vec<(usize, u64)>,
}

/// What is asked of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// What it must serve, in the unit of the blocks' `serves`; zero where only instances count.
    pub need: f64,
    /// Instances that it must have.
    pub min: u64,
    /// Instances that it may have.
    pub max: u64,
    /// How much it counts where not all can be served.
    pub priority: f64,
    /// How its instances are spread.
    pub spread: Option<Spread>,
    /// What it is kept together with.
    pub beside: Option<Beside>,
}

impl Default for Model {
    fn default() -> Self {
        Self { need: 0.0, min: 0, max: u64::MAX, priority: 1.0, spread: None, beside: None }
    }
}

/// Parts of a cluster that fail together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Domains {
    /// Every node is one.
    Nodes,
    /// The nodes of some kinds each; no kind is in two of them.
    Kinds(Vec<Vec<usize>>),
}

/// How instances are spread over failure domains. Over nodes only the limit counts; over others, plans
/// with fewer in the fullest are better.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    /// The domains.
    pub domains: Domains,
    /// Instances that may be in one.
    pub most: u64,
}

/// That instances are only in domains that have one of another model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beside {
    /// The other model.
    pub model: usize,
    /// The domains.
    pub domains: Domains,
}

/// Instances that go to the same GPUs.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// GPUs: a power of two.
    pub gpus: u64,
    /// Host memory of all its instances, in MiB.
    pub host: u64,
    /// Kinds of nodes that it may go to.
    pub kinds: Vec<usize>,
    /// Its instances: of which model, how many, and what all of these serve.
    pub serves: Vec<(usize, u64, f64)>,
    /// Whether it leaves less than shall stay free.
    pub is_tight: bool,
}

impl Block {
    /// Instances of a model.
    pub fn instances(&self, model: usize) -> u64 {
        self.serves.iter().filter(|(served, ..)| *served == model).map(|(_, count, _)| count).sum()
    }

    /// What it serves of a model.
    pub fn capacity(&self, model: usize) -> f64 {
        self.serves
            .iter()
            .filter(|(served, ..)| *served == model)
            .map(|(.., capacity)| capacity)
            .sum()
    }

    /// All its instances.
    pub fn size(&self) -> u64 {
        self.serves.iter().map(|(_, count, _)| count).sum()
    }
}
