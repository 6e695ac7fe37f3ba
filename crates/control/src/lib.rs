//! The loop that makes a plan so and keeps it so.
//!
//! - [`event`]: what happens to instances
//! - [`journal`]: plans, records and events in SQLite, written before anything is done
//! - [`controller`]: one turn of the loop: observe, decide (in `berth-core`), act
//! - [`status`]: what is planned, reported and observed, for people and programs
//!
//! Start with [`Controller::turn`]. Only one process acts on a state folder at a time; the others
//! journal what they want and watch.

pub mod clock;
pub mod controller;
pub mod crash;
pub mod event;
pub mod journal;
mod log_file;
mod pulse;
pub mod status;
pub mod stops;

pub use controller::{Controller, ControllerError};
pub use event::{Event, EventKind};
pub use journal::{Journal, JournalError};
pub use status::{DeviceStatus, InstanceState, InstanceStatus, Status};
pub use stops::Patience;
