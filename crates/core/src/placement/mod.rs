//! Which instance goes where.
//!
//! - `plan`: from spec, inventory and model facts to a [`Plan`](crate::Plan) and a report
//! - `cluster`: the same on the GPUs of many nodes
//! - `greedy`: largest first, best fit, what runs stays
//! - [`facts`]: the models, found and read
//! - [`gpus`]: instances on the GPUs of many nodes
//! - [`program`]: placement as an integer program
//! - `launch`: the words that an engine is started with
//! - `relax`: what would have to change for a model to fit
//! - [`mod@check`]: the independent checker, which shares no code with the above

pub mod check;
mod cluster;
pub mod facts;
pub mod gpus;
mod greedy;
mod launch;
mod plan;
pub mod program;
mod relax;

pub use check::{Violation, check};
pub use cluster::plan_cluster;
pub use facts::{Facts, Found, LocatedModel};
pub use plan::{PlanError, Planned, plan};
