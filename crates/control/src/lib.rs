//! The loop that makes a plan so and keeps it so.
//!
//! - [`event`]: what happens to instances
//! - [`journal`]: plans, records and events in SQLite, written before anything is done
//! - [`controller`]: whoever has a state folder: on this machine (`local`) or on a Ray cluster ([`ray`])
//! - `book`: the plan in force and what is known of its instances, in memory and in the journal
//! - [`externals`]: servers that somebody else runs
//! - `lease`: one berth at a time on a cluster
//! - [`watch`]: looks at memory beside the loop; alarms, and the ledger over time
//! - [`status`]: what is planned, reported and observed, for people and programs
//!
//! Start with [`Controller::turn`]. Only one process acts on a state folder at a time; the others
//! journal what they want and watch.

mod book;
pub mod clock;
pub mod controller;
pub mod crash;
pub mod event;
pub mod externals;
pub mod journal;
mod lease;
mod local;
mod log_file;
mod probes;
mod pulse;
pub mod ray;
pub mod status;
pub mod stops;
pub mod watch;

pub use controller::{Controller, ControllerError};
pub use event::{Event, EventKind};
pub use externals::{ExternalStatus, Externals};
pub use journal::{Journal, JournalError};
pub use status::{DeviceStatus, InstanceState, InstanceStatus, Status};
pub use stops::Patience;
