//! Where a model's weights are, and which devices are meant.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::error::Problems;
use super::raw::EngineKind;

/// Where a model's weights are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A file or folder, as the spec writes it.
    Path(String),
    /// A file of a model hub's repository.
    Hub {
        /// `OWNER/NAME`.
        repo: String,
        /// The file in it.
        file: String,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(path),
            Self::Hub { repo, file } => write!(f, "hub:{repo}/{file}"),
        }
    }
}

/// A device as a person names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceSelector {
    /// The host's memory.
    Host,
    /// A GPU by the index that NVML gives it.
    GpuIndex(u32),
    /// A GPU by its UUID.
    GpuUuid(String),
}

impl fmt::Display for DeviceSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::GpuIndex(index) => write!(f, "gpu:{index}"),
            Self::GpuUuid(uuid) => f.write_str(uuid),
        }
    }
}

/// Reads a source; only llama-server's can be a file of a hub.
pub(super) fn source(
    raw: &Spanned<String>,
    engine: EngineKind,
    problems: &mut Problems<'_>,
) -> Source {
    let text = raw.get_ref();
    if text.is_empty() {
        problems.add(raw.span(), "source is empty: name a .gguf file or a folder");
    }
    if engine != EngineKind::LlamaServer {
        return Source::Path(text.clone());
    }
    let Some(hub) = text.strip_prefix("hub:") else {
        return Source::Path(text.clone());
    };
    let mut parts = hub.splitn(3, '/').map(str::to_owned);
    match (parts.next(), parts.next(), parts.next()) {
        (Some(owner), Some(name), Some(file))
            if is_plain_name(&owner) && is_plain_name(&name) && is_plain_file(&file) =>
        {
            Source::Hub { repo: format!("{owner}/{name}"), file }
        }
        _ => {
            problems.add_with_hint(
                raw.span(),
                format!("`{text}` does not name a file on a hub"),
                "write hub:OWNER/NAME/FILE.gguf",
            );
            Source::Path(text.clone())
        }
    }
}

/// Names become parts of paths in the cache: nothing may lead out of it.
fn is_plain_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && !name.starts_with('.') && name.chars().all(good)
}

fn is_plain_file(file: &str) -> bool {
    file.ends_with(".gguf") && file.split('/').all(is_plain_name)
}

/// Reads a device's name.
pub(super) fn selector(
    raw: &Spanned<String>,
    problems: &mut Problems<'_>,
) -> Option<DeviceSelector> {
    let text = raw.get_ref();
    let index = text.strip_prefix("gpu:").map(str::parse);
    match index {
        Some(Ok(index)) => Some(DeviceSelector::GpuIndex(index)),
        None if text == "host" => Some(DeviceSelector::Host),
        None if text.starts_with("GPU-") => Some(DeviceSelector::GpuUuid(text.clone())),
        _ => {
            problems.add_with_hint(
                raw.span(),
                format!("`{text}` does not name a device"),
                "write \"host\", \"gpu:0\" or a GPU's UUID (\"GPU-...\")",
            );
            None
        }
    }
}
