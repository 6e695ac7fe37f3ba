//! Instances on the GPUs of many nodes.
//!
//! - [`prepared`]: a deployment with what its memory depends on, and its start beside others
//! - [`layout`]: which instance goes to which GPUs of which node, each start tried on the model
//! - `rules`: how many of which model each failure domain has
//! - [`pace`]: how fast they are there

pub mod layout;
pub mod pace;
pub mod prepared;
mod rules;

pub use layout::{Layout, Missing, NodeLayout, Seat, lay_out};
pub use prepared::{Prepared, Started, prepare};
pub(crate) use rules::Rules;
