//! The controller's decisions over simulated time: changes of a plan carried out step by step, and adjustments.
//!
//! Every test lives through many seeds, and names the first one that goes wrong.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[path = "../common/chance.rs"]
mod chance;
mod days;
mod rolls;
mod sleeps;
mod wishes;
