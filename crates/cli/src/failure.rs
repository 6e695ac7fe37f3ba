//! How a command fails: what happened, why, what to do next, and the exit code.

use std::process::ExitCode;

use berth_cluster::ray::RayError;
use berth_control::{ControllerError, JournalError};
use berth_core::spec::SpecError;
use berth_engines::binary::BinaryError;
use berth_engines::source::{ConfigSourceError, SourceError};

/// Something failed.
const FAILED: u8 = 1;
/// The usage or the spec is wrong.
const BAD_SPEC: u8 = 2;
/// It does not fit.
pub(crate) const DOES_NOT_FIT: u8 = 3;

/// A failure on its way to the person.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    errors: Vec<(anyhow::Error, Option<String>)>,
}

impl Failure {
    pub(crate) fn new(error: impl Into<anyhow::Error>) -> Self {
        Self { code: FAILED, errors: vec![(error.into(), None)] }
    }

    pub(crate) fn bad_spec(error: impl Into<anyhow::Error>) -> Self {
        Self { code: BAD_SPEC, errors: vec![(error.into(), None)] }
    }

    pub(crate) fn does_not_fit(error: impl Into<anyhow::Error>) -> Self {
        Self { code: DOES_NOT_FIT, errors: vec![(error.into(), None)] }
    }

    /// What to do next.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Some((_, last)) = self.errors.last_mut() {
            *last = Some(hint.into());
        }
        self
    }

    /// Prints `error:`, its causes and `hint:` to stderr.
    pub(crate) fn report(self) -> ExitCode {
        for (text, hint) in self.told() {
            crate::output::talk(&format!("error: {text}"));
            if let Some(hint) = hint {
                crate::output::talk(&format!("hint: {hint}"));
            }
        }
        ExitCode::from(self.code)
    }

    /// What is wrong and what to do, one after the other.
    pub(crate) fn told(&self) -> impl Iterator<Item = (String, Option<&str>)> {
        self.errors.iter().map(|(error, hint)| {
            // The outer message first, then each cause that says something new.
            let mut text = error.to_string();
            for cause in error.chain().skip(1).map(ToString::to_string) {
                if !text.contains(&cause) {
                    text = format!("{text}: {cause}");
                }
            }
            (text, hint.as_deref())
        })
    }

    /// Whether it is a spec that is wrong.
    pub(crate) fn is_of_the_spec(&self) -> bool {
        self.code == BAD_SPEC
    }
}

impl From<SpecError> for Failure {
    fn from(error: SpecError) -> Self {
        let errors = error.problems.into_iter().map(|problem| {
            let hint = problem.hint.clone();
            (anyhow::anyhow!("{problem}"), hint)
        });
        Self { code: BAD_SPEC, errors: errors.collect() }
    }
}

impl From<BinaryError> for Failure {
    fn from(error: BinaryError) -> Self {
        let hint = "set the path of llama-server in the spec:\n    [engines.llama_server]\n    \
                    binary = \"/path/to/llama-server\"";
        Self::bad_spec(error).hint(hint)
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        let hint = match &error {
            SourceError::Io { .. } | SourceError::NotOneFile { .. } => {
                "source in the spec is a .gguf file, a folder with one, or hub:OWNER/NAME/FILE.gguf; \
                 relative paths start at the spec's folder"
            }
            SourceError::Header { .. } => "check the file: fetch it again and compare its checksum",
            SourceError::Facts { .. } => "use a model of a known architecture",
            SourceError::Hub(_) => {
                "check the name and the network (HF_ENDPOINT and HF_TOKEN are honoured), or fetch the \
                 file yourself and name its path as source"
            }
        };
        Self::bad_spec(error).hint(hint)
    }
}

impl From<ConfigSourceError> for Failure {
    fn from(error: ConfigSourceError) -> Self {
        let hint = match &error {
            ConfigSourceError::Io { .. } | ConfigSourceError::Json { .. } => {
                "name a folder with the model's config.json"
            }
            ConfigSourceError::Config { .. } => {
                "berth can't say what it takes; run it as `external`, or use a model of a known family"
            }
            ConfigSourceError::Header { .. } => "fetch the file again and compare its checksum",
            ConfigSourceError::Hub(_) => {
                "check the name and the network (HF_ENDPOINT and HF_TOKEN are honoured), or name a local \
                 folder that has the model's config.json"
            }
            ConfigSourceError::Unknown { .. } => {
                "name a folder with a config.json, a repository as OWNER/NAME, or a model that berth \
                 knows, as in medgemma-27b or llama-3.1-8b"
            }
        };
        Self::bad_spec(error).hint(hint)
    }
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Stale => Self::new(error).hint("run the command again"),
            JournalError::Later { .. } => Self::new(error).hint("use that version, or another --state"),
            JournalError::Sqlite { .. } | JournalError::Entry { .. } => Self::new(error).hint(
                "if the file is damaged, stop the engines and move it away; --state names another folder",
            ),
        }
    }
}

impl From<RayError> for Failure {
    fn from(error: RayError) -> Self {
        let hint = error.hint();
        Self::new(error).hint(hint)
    }
}

impl From<ControllerError> for Failure {
    fn from(error: ControllerError) -> Self {
        match error {
            ControllerError::Journal(error) => error.into(),
            ControllerError::Lock(_) => Self::new(error),
            ControllerError::Ray(error) => error.into(),
            ControllerError::Leased { .. } => Self::new(error).hint(
                "stop that one first (`berth down` with its --state); a berth that was killed loses the \
                 cluster by itself once its lease ends",
            ),
        }
    }
}
