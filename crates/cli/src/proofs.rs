//! Reports of load tests, as they are kept in the state folder.

use std::path::PathBuf;

use berth_cluster::local::StateDir;
use serde_json::Value;

use crate::failure::Failure;

/// Reports that are listed, the newest.
const MOST: usize = 100;

/// Where they are.
pub(crate) fn folder(dir: &StateDir) -> PathBuf {
    dir.root().join("proofs")
}

/// What there are, the newest first.
pub(crate) fn list(dir: &StateDir) -> Result<Vec<Value>, Failure> {
    let Ok(files) = std::fs::read_dir(folder(dir)) else { return Ok(Vec::new()) };
    let names = files.flatten().map(|file| file.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> =
        names.filter_map(|name| name.strip_suffix(".json").map(str::to_owned)).collect();
    names.sort_unstable();
    let read = |name: &String| {
        let text = std::fs::read_to_string(folder(dir).join(format!("{name}.json"))).ok()?;
        serde_json::from_str(&text).ok()
    };
    Ok(names.iter().rev().take(MOST).filter_map(read).collect())
}

/// A report as a page; none where there is no such.
pub(crate) fn page(dir: &StateDir, name: &str) -> Option<String> {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
    if !name.chars().all(is_plain) {
        return None;
    }
    std::fs::read_to_string(folder(dir).join(format!("{name}.html"))).ok()
}
