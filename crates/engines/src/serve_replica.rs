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
    code: Option<i32>,
    log: Vec<String>,
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
    if ended.code.is_some() {
        match engine {
            EngineKind::LlamaServer => return llama_server::diagnose(exit, &log),
            EngineKind::Vllm => return vllm::diagnose(exit, &log),
            EngineKind::Ollama => {}
        }
    }
    Diagnosis {
        cause: if ended.code.is_none() { Cause::CannotStart } else { Cause::Unknown },
        message: ended.why,
        hint: "its log is among Ray's, in logs/berth".to_owned(),
        evidence: ended.log.iter().rev().find(|line| !line.trim().is_empty()).cloned(),
    }
}

/// The last end that a message tells of.
fn ended(message: &str) -> Option<Ended> {
    let (_, rest) = message.rsplit_once(MARK)?;
    let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<Ended>();
    stream.next()?.ok()
}
