//! llama.cpp's server: what its log says, and why it fails. Texts are those of b10434.

mod diagnose;
mod log;

pub use diagnose::diagnose;
pub use log::reported;
