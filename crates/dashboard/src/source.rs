//! What the page shows, and what it may have done: JSON that whoever serves the page makes.

use std::sync::Arc;

use tokio::sync::watch;

/// Something that the page asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// The plan in force: `{"plan_digest", "plan"}`.
    Plan,
    /// All strategies side by side.
    Strategies,
    /// What devices held over time.
    Ledger,
    /// The plans, what the spec would change, what is advised.
    Changes,
    /// The reports of proofs.
    Proofs,
    /// A report as a page of its own.
    Proof(String),
}

/// Something that a person has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Brings the spec into force, with a strategy where one is named.
    Apply {
        /// Its name.
        strategy: Option<String>,
        /// The digest of the spec's text, as it was shown.
        spec: Option<String>,
    },
    /// Takes what is advised, or wants to hear no more of it.
    Advice {
        /// The digest of the advised plan, as it was shown.
        digest: Option<String>,
        /// Which of the two.
        approve: bool,
    },
    /// Brings an earlier plan into force again.
    RollBack {
        /// Its number.
        seq: i64,
    },
}

/// Why something can't be had or done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status of the answer: 404 where there is nothing, 409 where it doesn't fit any more, 422 where what is asked
    /// is wrong.
    pub status: u16,
    /// Why.
    pub error: String,
    /// What to do.
    pub hint: Option<String>,
}

/// Whoever knows the cluster. Both may take long, and are called beside the server.
pub trait Source: Send + Sync + 'static {
    /// What is asked for, as JSON; a report as HTML.
    ///
    /// # Errors
    /// Where there is none.
    fn read(&self, what: &Read) -> Result<String, Refusal>;

    /// Does it, or has it done.
    ///
    /// # Errors
    /// Where it can't be.
    fn act(&self, act: &Act) -> Result<(), Refusal>;
}

/// What changes: the last look and the last status, as JSON; empty before the first. Whoever makes them may leave it
/// while nobody listens.
#[derive(Clone, Debug)]
pub struct Live {
    /// As `berth top --json` says it.
    pub seen: watch::Receiver<Arc<str>>,
    /// As `berth status --json` says it.
    pub status: watch::Receiver<Arc<str>>,
}
