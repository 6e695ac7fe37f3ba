//! berth with the real llama-server and two real models, as a person would use it.
//!
//! `cargo xtask fetch` brings what these need. They run one after the other (`.config/nextest.toml`;
//! with plain cargo by a lock), since engines want the processor for themselves.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod adjust;
mod crash;
mod dashboard;
mod failures;
mod gateway;
mod harness;
mod memory;
mod proof;
mod ray;
mod serving;
