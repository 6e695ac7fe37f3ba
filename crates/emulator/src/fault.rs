//! What can go wrong on command: `POST /emulator/fault` with `{"fault": "hang"}` on an engine's address.

/// A fault of an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// None.
    #[default]
    None,
    /// Every request is refused with 503.
    Refuse,
    /// No request is answered.
    Hang,
    /// The process ends.
    Crash,
    /// The process ends in the middle of the next stream.
    CrashInStream,
    /// Tokens take ten times as long.
    Slow,
    /// It takes 64 MiB more of its GPUs with every request.
    Leak,
    /// It dies of memory at the next request.
    OutOfMemory,
}

impl Fault {
    /// The fault of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "none" => Self::None,
            "refuse" => Self::Refuse,
            "hang" => Self::Hang,
            "crash" => Self::Crash,
            "crash_in_stream" => Self::CrashInStream,
            "slow" => Self::Slow,
            "leak" => Self::Leak,
            "out_of_memory" => Self::OutOfMemory,
            _ => return None,
        })
    }
}
