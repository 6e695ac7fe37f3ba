//! A plan in other programs' words.
//!
//! - [`ray`]: each instance as an application of Ray Serve's; what the controller puts, and a config to put
//!   by hand

pub mod ray;
