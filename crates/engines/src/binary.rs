//! Engines' programs, found.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Why a program can't be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BinaryError {
    /// A name that is not in `PATH`.
    #[error("`{name}` is not in PATH")]
    NotInPath {
        /// The name.
        name: String,
    },
    /// A path at which there is no program.
    #[error("`{path}` is not a program")]
    NotAProgram {
        /// The path.
        path: PathBuf,
    },
}

/// Finds the program that a spec names: a name without a slash through `PATH`, anything else as a
/// path from `base`.
///
/// # Errors
/// Where there is no such program.
pub fn find(name: &str, base: &Path) -> Result<PathBuf, BinaryError> {
    if name.contains('/') {
        let path = base.join(name);
        let path = std::path::absolute(&path).unwrap_or(path);
        return if is_program(&path) { Ok(path) } else { Err(BinaryError::NotAProgram { path }) };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|candidate| is_program(candidate))
        .ok_or_else(|| BinaryError::NotInPath { name: name.to_owned() })
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
