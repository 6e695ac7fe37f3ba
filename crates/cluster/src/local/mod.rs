//! Engines as processes of this machine.
//!
//! Nothing here relies on memory of its own: what runs is found in the process table, by a marker
//! that every engine carries in its environment, so berth may die at any moment and find its
//! instances again.
//!
//! - [`state_dir`]: the folder with locks and logs
//! - [`lock`]: locks that die with their holder; an engine holds its own as its standard input
//! - [`process`]: starting, finding and stopping engines
//! - [`observe`](observe()): the inventory of this machine
//! - [`look`](look()): who holds its memory

pub mod lock;
mod look;
mod observe;
pub mod process;
pub mod state_dir;

pub use look::look;
pub use observe::{ObserveError, observe, owns_port};
pub use process::{SpawnError, running, spawn};
pub use state_dir::StateDir;

/// The name of this node in inventories.
pub fn node_name() -> String {
    crate::procfs::host_name()
}
