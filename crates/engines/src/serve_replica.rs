//! What Ray Serve says of a replica whose engine ended: its module puts the end and the log's last lines into
//! the message.

use berth_core::spec::EngineKind;
use serde::Deserialize;

use crate::diagnosis::{Cause, Diagnosis, ExitKind};
use crate::{llama_server, vllm};

/// What the module puts before what it says.
const MARK: &str = "BERTH-ENDED ";

#[derive(Deserialize)]
struct Ended {
    why: String,
    /// Why the supervisor gave it up; it ended by itself where there is none.
    #[serde(default)]
    kind: Option<Kind>,
    code: Option<i32>,
    log: Vec<String>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// It took too long.
    NotReady,
    /// Its GPUs' memory was held by others.
    NoMemory,
    /// It could not be started at all.
    CannotStart,
    /// Its library has no such model, or not as it is planned.
    NoModel,
    /// The model could not be pulled or loaded this time.
    NotLoaded,
}

/// Why an instance is not up, from Serve's message.
pub fn diagnose(engine: EngineKind, message: &str) -> Diagnosis {
    let Some(ended) = ended(message) else {
        return Diagnosis {
            cause: Cause::Unknown,
            message: "Ray Serve could not bring it up".to_owned(),
            hint: "`ray status` and the dashboard's log of the application say more".to_owned(),
            evidence: message
                .lines()
                .rev()
                .map(str::trim)
                .find(|line| !line.is_empty())
                .map(str::to_owned),
        };
    };
    let exit = match ended.code {
        Some(code) if code < 0 => ExitKind::Signal(-code),
        Some(code) => ExitKind::Code(code),
        None => ExitKind::Unseen,
    };
    let log = ended.log.join("\n");
    let Some(kind) = ended.kind else {
        let found = match engine {
            EngineKind::Vllm => vllm::diagnose(exit, &log),
            EngineKind::LlamaServer | EngineKind::Ollama => llama_server::diagnose(exit, &log),
        };
        return with_own_hint(found);
    };
    let (cause, hint) = match kind {
        Kind::NotReady => (Cause::NotReadyInTime, "its log is among Ray's, in logs/berth"),
        // Whoever holds it may let it go.
        Kind::NoMemory => (Cause::NotReadyInTime, "`berth doctor` shows who else holds GPUs"),
        Kind::NoModel => {
            (Cause::FileMissing, "source is the model's name as `ollama pull` takes it; correct it")
        }
        Kind::NotLoaded => {
            (Cause::NotReadyInTime, "it is tried again; its log is among Ray's, in logs/berth")
        }
        Kind::CannotStart => {
            (Cause::CannotStart, "check the engine's binary in [engines], as its machine has it")
        }
    };
    let evidence = ended.log.iter().rev().find(|line| !line.trim().is_empty()).cloned();
    Diagnosis { cause, message: ended.why, hint: hint.to_owned(), evidence }
}

/// On another machine a port is not chosen by what is free there.
fn with_own_hint(diagnosis: Diagnosis) -> Diagnosis {
    if diagnosis.cause != Cause::PortTaken {
        return diagnosis;
    }
    let hint = "set first_port in [cluster] to a range that is free on its machine".to_owned();
    Diagnosis { hint, ..diagnosis }
}

/// The last end that a message tells of.
fn ended(message: &str) -> Option<Ended> {
    let (_, rest) = message.rsplit_once(MARK)?;
    let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<Ended>();
    stream.next()?.ok()
}
