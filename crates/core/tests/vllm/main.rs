//! vLLM's memory model: against what was measured, and against what must always hold.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod data;
mod fuzz;
mod parallel;
mod properties;
mod rows;
mod sharing;
mod versions;
