//! What can go wrong on command: `POST /emulator/fault` with `{"fault": "hang"}` on an engine's address.

use hyper::Method;
use serde_json::Value;

use crate::engine::Engine;
use crate::http::{Answer, Asked};

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

/// What an engine with a fault does to a request; none where it answers. Faults are set here, too.
pub(crate) async fn meet(engine: &Engine, asked: &Asked) -> Option<Answer> {
    if asked.path == "/emulator/fault" {
        return Some(set_fault(engine, &asked.json()));
    }
    let fault = engine.state().fault;
    match fault {
        Fault::Hang => std::future::pending().await,
        Fault::Crash => {
            engine.end(
                "it was told to crash",
                -11,
                "Fatal Python error: Segmentation fault (emulated)",
            );
            return Some(Answer::Nothing);
        }
        Fault::OutOfMemory if asked.method == Method::POST => {
            let line = "torch.OutOfMemoryError: CUDA out of memory. (emulated)";
            engine.end("it ran out of memory", 1, line);
            return Some(Answer::Nothing);
        }
        Fault::Refuse => return Some(Answer::text(503, "")),
        _ => {}
    }
    None
}

fn set_fault(engine: &Engine, body: &Value) -> Answer {
    match body["fault"].as_str().and_then(Fault::from_name) {
        Some(fault) => {
            engine.state().fault = fault;
            Answer::text(200, "")
        }
        None => Answer::text(
            400,
            "fault: none, refuse, hang, crash, crash_in_stream, slow, leak or out_of_memory\n",
        ),
    }
}
