//! The parts of an engine's log that are read: its start says what memory it took, its end why it
//! ended.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// At most this much is read from either end.
const PART: u64 = 4 << 20;

/// The start of a log; empty where there is none.
pub(crate) fn head(path: &Path) -> String {
    read_from(path, |_| 0).unwrap_or_default()
}

/// The end of a log; empty where there is none.
pub(crate) fn tail(path: &Path) -> String {
    read_from(path, |len| len.saturating_sub(PART)).unwrap_or_default()
}

fn read_from(path: &Path, start: impl Fn(u64) -> u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(start(len)))?;
    let mut bytes = Vec::new();
    file.take(PART).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
