//! A Ray cluster, over the HTTP of its dashboard: nothing of Ray's is linked or run here.
//!
//! - [`client`]: one request, with its token, time limit and retries
//! - [`token`]: the token that it may want
//! - [`nodes`]: what machines and GPUs there are
//! - [`serve`]: the applications that Serve runs, and changing them
//! - [`package`]: the Python module that starts engines, as Ray takes it
//!
//! Written against Ray 2.60.0.

pub mod client;
pub mod nodes;
pub mod package;
pub mod serve;
pub mod token;

pub use client::{Ray, RayError};
