//! Locks that die with their holder (`flock`): the kernel lets go when the last process that has
//! the file open ends, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::time::Duration;

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

/// Takes the lock at `path` although somebody may be looking at it for a moment, as
/// [`is_held`] does.
///
/// # Errors
/// Where the file can't be opened or locked at all.
pub fn try_lock_patiently(path: &Path) -> io::Result<Option<File>> {
    for _ in 0..LOOKS {
        if let Some(lock) = try_lock(path)? {
            return Ok(Some(lock));
        }
        std::thread::sleep(LOOK);
    }
    try_lock(path)
}

/// Looking takes microseconds; this is patience for many who look.
const LOOKS: u32 = 10;
const LOOK: Duration = Duration::from_millis(10);

/// Whether somebody holds the lock at `path`.
///
/// # Errors
/// Where the file can't be opened or locked at all.
pub fn is_held(path: &Path) -> io::Result<bool> {
    Ok(path.exists() && try_lock(path)?.is_none())
}
