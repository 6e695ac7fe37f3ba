//! Strategies: named ways to run what is wanted, set side by side.
//!
//! - [`best`]: the one that the integer program finds
//! - [`document`]: the comparison as Markdown and HTML
//! - [`evaluate`]: what becomes of one, on every GPU
//! - [`find`]: strategies that nobody wrote down, in the form in which users write theirs
//! - [`compare`](mod@compare): all of them, and the one that is recommended
//! - [`conflict`]: what can't hold together, and what would help
//! - [`explain`]: why something is where it is, and not elsewhere
//! - [`what_if`]: other machines, other demand
//! - [`report`]: the values that come out
//! - `written`: sums that were written down, beside what is really there
//! - [`words`]: the same in English and Spanish sentences

pub mod best;
pub mod compare;
pub mod conflict;
pub mod document;
pub mod evaluate;
pub mod explain;
pub mod find;
pub mod report;
pub mod what_if;
pub mod words;
mod written;

pub use compare::compare;
pub use evaluate::{Cluster, Today};
pub use report::{Comparison, StrategyReport, StrategyVerdict};
pub use words::Language;
