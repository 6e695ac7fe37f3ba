//! The core of berth: values and functions, no I/O, no clock, no async.
//!
//! ```text
//! Spec ──────┐
//!            ├─ plan() ─> Plan + PlanReport ─ next_actions() ─> [Action] ─ (apply) ─> Inventory ...
//! Inventory ─┘
//! ```
//!
//! Start with [`plan`](plan::Plan), the value that everything else makes or carries out.
//!
//! - [`spec`]: what the user asked for
//! - [`inventory`]: what is there
//! - [`model`]: what a model file says about itself
//! - [`memory`]: how much an instance takes
//! - [`strategy`]: named ways to run what is wanted, side by side
//! - [`placement`]: which instance goes where, and the independent checker
//! - [`plan`], [`report`]: the answer and the reasons for it
//! - [`reconcile`]: from plan and inventory to the next actions
//! - [`adjust`]: when an engine gets more memory or less
//! - [`scale`]: how many instances run, by what is asked of them
//! - [`ledger`]: planned, reported and observed bytes side by side
//! - [`watch`]: what memory is doing over time, and what to be warned of
//! - [`gpu`], [`perf`]: kinds of GPU; how fast an instance is
//! - [`units`], [`digest`]: bytes as a type, names for values

pub mod adjust;
pub mod digest;
pub mod emit;
pub mod gpu;
pub mod inventory;
pub mod ledger;
pub mod memory;
pub mod model;
pub mod perf;
pub mod placement;
pub mod plan;
pub mod reconcile;
pub mod report;
pub mod scale;
pub mod spec;
pub mod strategy;
pub mod units;
pub mod watch;

pub use digest::Digest;
pub use inventory::Inventory;
pub use plan::Plan;
pub use spec::Spec;
pub use units::Bytes;
