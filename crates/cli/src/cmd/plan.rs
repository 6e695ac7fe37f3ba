//! `berth plan`: which model goes where, and why.

use std::path::Path;
use std::process::ExitCode;

use berth_control::Journal;
use berth_core::placement::Planned;
use berth_core::report::PlanVerdict;
use serde_json::json;

use crate::args::PlanArgs;
use crate::failure::{DOES_NOT_FIT, Failure};
use crate::{output, prepare};

pub(crate) fn run(state: &Path, args: &PlanArgs) -> Result<ExitCode, Failure> {
    let dir = prepare::state_dir(state)?;
    let planned = prepare::plan(&args.file, None, &Journal::open(&dir.journal())?)?;
    show(&planned, args.json)?;
    Ok(exit_code(&planned))
}

/// Prints the plan.
pub(crate) fn show(planned: &Planned, as_json: bool) -> Result<(), Failure> {
    if as_json {
        let digest = planned.plan.digest();
        let verdict = planned.report.verdict;
        return output::json(&json!({
            "plan_digest": digest, "verdict": verdict, "report": planned.report, "plan": planned.plan,
        }));
    }
    output::data(&output::plan(&planned.report));
    Ok(())
}

pub(crate) fn exit_code(planned: &Planned) -> ExitCode {
    match planned.report.verdict {
        PlanVerdict::Fits => ExitCode::SUCCESS,
        PlanVerdict::Impossible => ExitCode::from(DOES_NOT_FIT),
    }
}
