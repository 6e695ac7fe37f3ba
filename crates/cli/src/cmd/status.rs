//! `berth status`: what runs, and its planned, reported and observed memory.

use std::path::Path;
use std::process::ExitCode;

use berth_cluster::local::StateDir;
use berth_control::ray::Processes;
use berth_control::{Journal, Status, status};

use crate::args::StatusArgs;
use crate::failure::Failure;
use crate::{output, prepare};

pub(crate) fn run(state: &Path, args: &StatusArgs) -> Result<ExitCode, Failure> {
    let dir = prepare::state_dir(state)?;
    let status = read(&dir, &Journal::open(&dir.journal())?)?;
    if args.json {
        output::json(&status)?;
    } else {
        output::data(&output::status(&status));
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn read(dir: &StateDir, journal: &Journal) -> Result<Status, Failure> {
    read_again(dir, journal, &mut Processes::default())
}

/// The same for who reads again and again: what is known of processes is kept.
pub(crate) fn read_again(
    dir: &StateDir,
    journal: &Journal,
    known: &mut Processes,
) -> Result<Status, Failure> {
    Ok(status::read(dir, journal, prepare::with_processes(journal, known)?)?)
}
