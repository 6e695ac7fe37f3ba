//! A Ray cluster, over the HTTP of its dashboard: nothing of Ray's is linked or run here.
//!
//! - [`client`]: one request, with its token, time limit and retries
//! - [`token`]: the token that it may want
//! - [`nodes`]: what machines and GPUs there are
//! - [`config`]: what is wrong with a Serve config that Ray would take without a word
//! - [`doctor`]: what is wrong with a cluster before anything is tried
//! - [`serve`]: the applications that Serve runs, and changing them
//! - [`package`]: the Python module that starts engines, as Ray takes it
//!
//! Written against Ray 2.60.0.

pub mod client;
pub mod config;
pub mod doctor;
pub mod nodes;
pub mod package;
pub mod serve;
pub mod token;

pub use client::{Ray, RayError};
