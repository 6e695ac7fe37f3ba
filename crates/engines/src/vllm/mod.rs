//! vLLM: what its log says, and why it failed.

mod diagnose;
pub mod log;

pub use diagnose::diagnose;
