//! The gateway over real sockets, in front of engines that do what a test says.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod faults;
mod harness;
mod passing;
mod routing;
#[cfg(feature = "otel")]
mod spans;
