//! Which instance a request goes to, and when.
//!
//! - [`table`]: what the gateway is told: instances, aliases, rules
//! - [`routes`]: what the table comes to while requests run; swapped as a whole
//! - `rules`: which rule a request meets
//! - `balance`: which instance; `affinity`: where a prompt's beginning was seen
//! - `admit`: requests that wait for room
//! - `retry`: how often a request may be sent once more
//! - `health`: whether engines are well

pub(crate) mod admit;
pub(crate) mod affinity;
pub(crate) mod balance;
pub(crate) mod health;
pub(crate) mod retry;
pub mod routes;
pub(crate) mod rules;
pub mod table;
