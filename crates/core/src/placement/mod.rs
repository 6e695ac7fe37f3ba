//! Which instance goes where.
//!
//! - `plan`: from spec, inventory and model facts to a [`Plan`](crate::Plan) and a report
//! - `greedy`: largest first, best fit, what runs stays
//! - `launch`: the words that an engine is started with
//! - `relax`: what would have to change for a model to fit
//! - [`mod@check`]: the independent checker, which shares no code with the above

pub mod check;
mod greedy;
mod launch;
mod plan;
mod relax;

pub use check::{Violation, check};
pub use plan::{Found, LocatedModel, PlanError, Planned, plan};
