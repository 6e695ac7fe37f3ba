//! `berth schema`: the JSON schema of the spec.

use std::process::ExitCode;

use crate::failure::Failure;
use crate::output;

pub(crate) fn run() -> Result<ExitCode, Failure> {
    output::json(&berth_core::spec::json_schema())?;
    Ok(ExitCode::SUCCESS)
}
