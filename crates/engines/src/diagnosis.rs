//! A failed engine in words: what happened, and what to do next.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitKind {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Nobody saw it: berth was not its parent.
    Unseen,
}

impl fmt::Display for ExitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(9) => f.write_str("killed (SIGKILL)"),
            Self::Signal(4) => f.write_str("illegal instruction (SIGILL)"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unseen => f.write_str("ended while berth was away"),
        }
    }
}

impl From<std::process::ExitStatus> for ExitKind {
    fn from(status: std::process::ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Unseen,
        }
    }
}

/// Why an engine failed, as far as it can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Somebody else listens on its port.
    PortTaken,
    /// The model's file is damaged or not a model.
    FileCorrupt,
    /// The model's file isn't there or may not be read.
    FileMissing,
    /// The engine doesn't know the model's architecture.
    UnsupportedModel,
    /// The engine refused its command line.
    BadFlag,
    /// There was not enough memory.
    OutOfMemory,
    /// The program is built for another processor.
    WrongProcessor,
    /// The program can't be started at all.
    CannotStart,
    /// It was killed from outside.
    Killed,
    /// It didn't become ready in time.
    NotReadyInTime,
    /// It was ready, and then no longer answered its health endpoint.
    Unresponsive,
    /// Nothing in its log says why.
    Unknown,
}

impl Cause {
    /// Whether another try with the same plan must end the same way.
    pub fn is_permanent(self) -> bool {
        !matches!(self, Self::Killed | Self::Unknown | Self::NotReadyInTime | Self::Unresponsive)
    }
}

/// A failure in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// Its cause.
    pub cause: Cause,
    /// What happened.
    pub message: String,
    /// What to do next.
    pub hint: String,
    /// The line of the engine's log that says so.
    pub evidence: Option<String>,
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.evidence {
            Some(evidence) => write!(f, " ({evidence})"),
            None => Ok(()),
        }
    }
}
