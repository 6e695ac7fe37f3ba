//! Locks that die with their holder (`flock`): the kernel lets go when the last process that has
//! the file open ends, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;

/// Takes the lock at `path`, or says `None` where somebody else has it.
///
/// # Errors
/// Where the file can't be opened or locked at all.
pub fn try_lock(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whether somebody holds the lock at `path`.
///
/// # Errors
/// Where the file can't be opened or locked at all.
pub fn is_held(path: &Path) -> io::Result<bool> {
    Ok(path.exists() && try_lock(path)?.is_none())
}
