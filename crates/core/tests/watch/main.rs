//! Memory as it is watched: single looks, and hours of them.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod alarms;
#[path = "../common/chance.rs"]
mod chance;
mod hours;
mod looks;
mod owners;
