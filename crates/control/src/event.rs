//! What happens to instances, for people who watch and for the history.

use berth_core::inventory::InstanceId;
use berth_engines::Diagnosis;
use serde::Serialize;

/// Something that happened to an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// The instance.
    pub instance: InstanceId,
    /// What happened.
    pub kind: EventKind,
}

/// What happened to an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// It was found running and taken over.
    Adopted,
    /// Its engine was started.
    Started,
    /// Its engine is ready.
    Ready {
        /// Milliseconds since its start.
        after_ms: u64,
    },
    /// Its engine failed.
    Failed {
        /// Why.
        diagnosis: Diagnosis,
        /// When it will be started again; never, where there is no time.
        retry_in_ms: Option<u64>,
    },
    /// It was ready and is not; its cluster brings it up again.
    Recovering,
    /// It was put to sleep.
    Slept {
        /// Who is short of memory.
        why: String,
    },
    /// It is awake again.
    Woke {
        /// Milliseconds since it was told to.
        after_ms: u64,
    },
    /// It goes back to its earlier configuration.
    RolledBack,
    /// It was asked to end.
    Stopping,
    /// Its processes have ended.
    Stopped,
}
