//! Load on OpenAI-compatible servers: requests sent when they are due whatever becomes of those before
//! (open loop), what was measured of each, and what that says of the servers.
//!
//! - [`arrivals`], [`trace`]: when requests are sent.
//! - [`prompts`], [`images`], [`dataset`]: what they ask.
//! - [`target`]: where they go. [`phase`]: which of them go together. [`mod@run`]: sends them.
//! - [`record`]: what was measured of one. [`summary`]: of many.
//! - [`verdict`]: whether that, and what was seen of memory, is as it should be: a pure function.
//! - [`report`], [`html`]: all of it as one value, and as a page.
//!
//! Nothing here knows of plans or GPUs: memory is a value that the caller fills in.

pub mod arrivals;
pub mod dataset;
pub mod html;
pub mod images;
pub mod phase;
pub mod prompts;
pub mod record;
pub mod report;
pub mod run;
pub mod summary;
pub mod target;
pub mod tokenizer;
pub mod trace;
pub mod verdict;

mod asks;
mod body;
mod connection;
mod exchange;
mod metronome;
mod sse;
mod wire;
mod words;
