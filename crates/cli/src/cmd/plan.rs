//! `berth plan`: which model goes where, and why.

use std::path::Path;
use std::process::ExitCode;

use berth_control::Journal;
use berth_core::memory::vllm::Engine;
use berth_core::perf::Constants;
use berth_core::placement::Planned;
use berth_core::report::PlanVerdict;
use berth_core::spec::Spec;
use berth_core::strategy::evaluate::{Candidate, evaluate};
use berth_core::strategy::{
    Cluster, Comparison, Language, StrategyVerdict, Today, compare, document,
};
use serde_json::json;

use super::calibrate;
use crate::args::ComparingArgs;
use crate::failure::{DOES_NOT_FIT, Failure};
use crate::output::{self, comparison};
use crate::prepare;

pub(crate) fn run(state: &Path, args: &ComparingArgs) -> Result<ExitCode, Failure> {
    let spec = prepare::spec(&args.plan.file)?;
    if args.compare || !spec.cluster.nodes.is_empty() {
        return on_a_cluster(state, spec, args);
    }
    let dir = prepare::state_dir(state)?;
    let planned = prepare::plan(&args.plan, None, &Journal::open(&dir.journal())?)?;
    show(&planned, args.plan.json)?;
    Ok(exit_code(&planned))
}

/// Plans for machines without looking at them.
fn on_a_cluster(state: &Path, spec: Spec, args: &ComparingArgs) -> Result<ExitCode, Failure> {
    if spec.cluster.nodes.is_empty() {
        return Err(Failure::bad_spec(anyhow::anyhow!("there are no machines to compare strategies on"))
            .hint("add some, as in\n    [[cluster.nodes]]\n    names = \"node-[0-15]\"\n    gpu = \"A10\"\n    gpus = 4"));
    }
    let calibration = calibrate::with_builtin(state)?;
    let found = prepare::all_models(&spec, prepare::base(&args.plan.file))?;
    let engine = Engine { calibration: &calibration, ..Engine::of_version(&spec.vllm_version) };
    let constants = &Constants::UNCALIBRATED;
    let cluster = Cluster { nodes: &[], found: &found, engine, constants };
    if args.compare {
        return compared(&spec, &cluster, args);
    }
    let today = compare::today(&spec, &cluster).map_err(Failure::bad_spec)?;
    let today = today.as_ref().map(Today::new).unwrap_or_default();
    let report = match args.plan.strategy.as_deref() {
        None => {
            let (name, spec) = ("as written", &spec);
            let candidate =
                Candidate { name, title: None, is_found: false, written: None, toml: None, spec };
            evaluate(&cluster, &candidate, &today)
        }
        Some(name) => {
            let strategies = compare::all(&spec, &cluster);
            let one = prepare::strategy_of(&strategies, name)?;
            compare::evaluate_one(one, &cluster, &today)
        }
    };
    let report = report.map_err(Failure::bad_spec)?;
    match args.plan.json {
        true => output::json(&report)?,
        false => output::data(&comparison::one(&report, Language::English)),
    }
    Ok(code(report.verdict != StrategyVerdict::Impossible))
}

fn compared(spec: &Spec, cluster: &Cluster<'_>, args: &ComparingArgs) -> Result<ExitCode, Failure> {
    let language = if args.lang == "es" { Language::Spanish } else { Language::English };
    let compared = compare::compare(spec, cluster).map_err(Failure::bad_spec)?;
    if let Some(file) = &args.report {
        write(file, &compared, language)?;
    }
    match args.plan.json {
        true => output::json(&compared)?,
        false => output::data(&comparison::all(&compared, language)),
    }
    Ok(code(compared.recommended.is_some()))
}

/// Writes the comparison as a document; the file's ending says which.
fn write(file: &Path, compared: &Comparison, language: Language) -> Result<(), Failure> {
    let text = match file.extension().and_then(|ending| ending.to_str()) {
        Some("md") => document::markdown(compared, language),
        Some("html") => document::html(compared, language),
        _ => {
            let error = anyhow::anyhow!("{} is neither .md nor .html", file.display());
            return Err(Failure::bad_spec(error).hint("name a file such as report.html"));
        }
    };
    std::fs::write(file, text).map_err(|error| {
        let what = format!("the report {} can't be written", file.display());
        Failure::new(anyhow::Error::new(error).context(what)).hint("name another one with --report")
    })?;
    output::talk(&format!("written: {}", file.display()));
    Ok(())
}

fn code(fits: bool) -> ExitCode {
    if fits { ExitCode::SUCCESS } else { ExitCode::from(DOES_NOT_FIT) }
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
    code(planned.report.verdict == PlanVerdict::Fits)
}
