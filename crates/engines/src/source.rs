//! A model's file, found and its header read.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use berth_core::model::facts::{FactsError, ModelFacts};
use berth_core::model::gguf::{self, Gguf, GgufError};
use berth_core::placement::LocatedModel;
use berth_core::spec::Source;

mod config;
mod hub;

pub use config::{ConfigSourceError, LocatedTransformer, transformer};
pub use hub::{Hub, HubError};

/// The first read of a header; it grows fourfold while the header goes on. Most headers with their
/// vocabulary have some MiB.
const FIRST_READ: u64 = 1 << 20;
/// Headers beyond this are not believed: the largest vocabularies make some 20 MiB.
const MAX_HEADER: u64 = 256 << 20;

/// Why there is no model to plan with.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file or folder can't be read.
    #[error("{path} can't be read")]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A folder without exactly one model.
    #[error("{path} has {} .gguf files, not one{}", found.len(), listed(found))]
    NotOneFile {
        /// The folder.
        path: PathBuf,
        /// The .gguf files in it.
        found: Vec<String>,
    },
    /// The file's header is not one that can be planned with.
    #[error("{path}")]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: GgufError,
    },
    /// The header lacks what the memory model needs.
    #[error("{path}")]
    Facts {
        /// The file.
        path: PathBuf,
        /// What it lacks.
        source: FactsError,
    },
    /// The hub didn't give the file.
    #[error(transparent)]
    Hub(#[from] HubError),
}

fn listed(found: &[String]) -> String {
    if found.is_empty() { String::new() } else { format!(": name one of {}", found.join(", ")) }
}

/// Finds the model that a spec names and reads its header. Relative paths start at `base`;
/// `progress` is told of a download's bytes so far and in all.
///
/// # Errors
/// Where there is no such model, or where its header can't be planned with.
pub fn locate(
    source: &Source,
    base: &Path,
    hub: &Hub,
    progress: &mut dyn FnMut(u64, Option<u64>),
) -> Result<LocatedModel, SourceError> {
    let path = match source {
        Source::Path(path) => find_file(&base.join(path))?,
        Source::Hub { repo, file } => hub.fetch(repo, file, progress)?,
    };
    let facts = read_facts(&path)?;
    let path = std::path::absolute(&path).unwrap_or(path);
    Ok(LocatedModel::gguf(path.to_string_lossy().into_owned(), facts))
}

/// Reads what the memory model needs from a GGUF file.
///
/// # Errors
/// Where the file can't be read, or where its header can't be planned with.
pub fn read_facts(path: &Path) -> Result<ModelFacts, SourceError> {
    let header = read_header(path)?;
    ModelFacts::from_gguf(header)
        .map_err(|source| SourceError::Facts { path: path.to_path_buf(), source })
}

fn find_file(path: &Path) -> Result<PathBuf, SourceError> {
    let io = |source| SourceError::Io { path: path.to_path_buf(), source };
    if !path.metadata().map_err(io)?.is_dir() {
        return Ok(path.to_path_buf());
    }
    let mut found = Vec::new();
    for entry in path.read_dir().map_err(io)? {
        let name = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".gguf") {
            found.push(name);
        }
    }
    found.sort();
    match found.as_slice() {
        [one] => Ok(path.join(one)),
        _ => Err(SourceError::NotOneFile { path: path.to_path_buf(), found }),
    }
}

fn read_header(path: &Path) -> Result<Gguf, SourceError> {
    let io = |source| SourceError::Io { path: path.to_path_buf(), source };
    let header = |source| SourceError::Header { path: path.to_path_buf(), source };
    let mut file = File::open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    let mut prefix = Vec::new();
    let mut wanted = FIRST_READ;
    loop {
        let more = wanted - prefix.len() as u64;
        (&mut file).take(more).read_to_end(&mut prefix).map_err(io)?;
        match gguf::parse(&prefix, len) {
            Err(GgufError::NeedMore { .. }) if wanted >= MAX_HEADER => {
                return Err(header(GgufError::TooLong { limit: MAX_HEADER }));
            }
            Err(GgufError::NeedMore { .. }) if wanted >= len => {
                return Err(header(GgufError::Truncated { len }));
            }
            Err(GgufError::NeedMore { .. }) => wanted *= 4,
            parsed => return parsed.map_err(header),
        }
    }
}
