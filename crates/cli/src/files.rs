//! Files that others write or read while berth runs.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::failure::Failure;
use crate::output;

/// Between two looks at a file that is followed.
pub(crate) const LOOK: Duration = Duration::from_millis(200);

/// Writes a file so that whoever reads it sees all of it or what was there before.
pub(crate) fn write_whole(file: &Path, text: &str) -> io::Result<()> {
    let new = file.with_extension("new");
    let mut written = fs::File::create(&new)?;
    written.write_all(text.as_bytes())?;
    fs::rename(new, file)
}

/// Takes up a file at once and whenever it changes. What can't be taken up is told, and changes nothing; `what` says
/// of what.
pub(crate) async fn follow(
    file: &Path,
    what: &str,
    take_up: impl Fn(&Path) -> Result<(), Failure>,
) {
    let mut seen = None;
    loop {
        let now = changed(file);
        if now != seen
            && let Err(failure) = take_up(file)
        {
            failure.report();
            output::talk(&format!("{what} stay as they were"));
        }
        seen = now;
        tokio::time::sleep(LOOK).await;
    }
}

/// When a file was changed last, and how long it is.
fn changed(file: &Path) -> Option<(SystemTime, u64)> {
    let about = fs::metadata(file).ok()?;
    Some((about.modified().ok()?, about.len()))
}

/// Lets this process have as many files open as it may: a connection is a file, and many systems begin with 1,024.
pub(crate) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "no more files may be open than at first");
    }
}
