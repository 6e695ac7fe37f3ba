//! `berth down`: stops what berth started, and nothing else.

use std::path::Path;
use std::process::ExitCode;

use berth_control::Journal;
use berth_control::clock::now_ms;

use super::apply;
use crate::args::StatusArgs;
use crate::failure::Failure;
use crate::{output, prepare};

pub(crate) fn run(state: &Path, args: &StatusArgs) -> Result<ExitCode, Failure> {
    let dir = prepare::state_dir(state)?;
    let mut journal = Journal::open(&dir.journal())?;
    if let Some(nothing) = prepare::nothing(&journal)? {
        journal.commit(&nothing, None, now_ms())?;
    }
    let status = apply::carry_out(&dir, &journal)?;
    if args.json {
        output::json(&status)?;
    } else {
        output::talk("everything that berth started has stopped");
    }
    Ok(ExitCode::SUCCESS)
}
