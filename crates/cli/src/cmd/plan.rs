//! `berth plan`: which model goes where, and why.

use std::path::Path;
use std::process::ExitCode;

use berth_control::Journal;
use berth_core::placement::Planned;
use berth_core::report::PlanVerdict;
use berth_core::spec::{Backend, Spec, Strategy};
use berth_core::strategy::conflict::{self, Conflict};
use berth_core::strategy::what_if::WhatIf;
use berth_core::strategy::{Comparison, Language, StrategyVerdict, Today, compare, document};
use serde_json::json;

use super::emit;
use crate::args::ComparingArgs;
use crate::failure::{DOES_NOT_FIT, Failure};
use crate::output::{self, comparison};
use crate::prepare::{self, Planning};

pub(crate) fn run(state: &Path, args: &ComparingArgs) -> Result<ExitCode, Failure> {
    let spec = prepare::spec(&args.plan.file)?;
    if let Some(how) = args.emit {
        return emit::run(state, spec, how, args);
    }
    let is_looked_at = spec.cluster.nodes.is_empty() || spec.cluster.backend == Backend::Ray;
    if args.compare || !is_looked_at {
        return on_a_cluster(state, spec, args);
    }
    if !args.what_if.is_empty() {
        let error = anyhow::anyhow!("--what-if is for machines that are planned for");
        return Err(Failure::bad_spec(error).hint("add some as [[cluster.nodes]]"));
    }
    let dir = prepare::state_dir(state)?;
    let planned = prepare::plan(state, &args.plan, None, &Journal::open(&dir.journal())?)?;
    show(&planned, args.plan.json)?;
    Ok(exit_code(&planned))
}

/// Plans for machines without looking at them.
fn on_a_cluster(state: &Path, spec: Spec, args: &ComparingArgs) -> Result<ExitCode, Failure> {
    let mut planning = Planning::new(state, &args.plan.file, spec)?;
    if args.compare {
        return compared(&planning, args);
    }
    let strategy = match args.plan.strategy.as_deref() {
        Some(name) => planning.strategy(name)?,
        None => compare::as_written(&planning.spec),
    };
    planning.assume(&strategy.spec);
    let cluster = planning.cluster();
    let today = compare::today(&planning.spec, &cluster).map_err(Failure::bad_spec)?;
    let today = today.as_ref().map(Today::new).unwrap_or_default();
    let evaluate = |strategy: &Strategy| {
        compare::evaluate_one(strategy, &cluster, &today).map_err(Failure::bad_spec)
    };
    let report = evaluate(&strategy)?;
    let conflict = conflict::conflict(&strategy.spec, &cluster);
    let conflict = conflict.map_err(Failure::bad_spec)?;
    let changed = changed(&strategy, &args.what_if)?.map(|one| evaluate(&one)).transpose()?;
    if args.plan.json {
        let what_if = changed.as_ref();
        output::json(&json!({ "plan": report, "conflict": conflict, "what_if": what_if }))?;
    } else {
        let language = language(args);
        match &changed {
            None => output::data(&comparison::one(&report, language)),
            Some(changed) => {
                let changes: Vec<String> = args.what_if.iter().map(ToString::to_string).collect();
                let text = comparison::what_if(&report, changed, &changes.join(", "), language);
                output::data(&text);
            }
        }
        if conflict != Conflict::default() {
            output::data(&comparison::conflict(&conflict, language));
        }
    }
    let last = changed.as_ref().unwrap_or(&report);
    Ok(code(last.verdict != StrategyVerdict::Impossible))
}

/// The strategy with all changes that are asked about; none where there are none.
fn changed(strategy: &Strategy, changes: &[WhatIf]) -> Result<Option<Strategy>, Failure> {
    if changes.is_empty() {
        return Ok(None);
    }
    let mut changed = strategy.clone();
    for change in changes {
        changed.spec = change.apply(&changed.spec).map_err(|error| {
            Failure::bad_spec(error).hint("write add=4, lose=NODE, gpu=KIND or demand=2")
        })?;
    }
    Ok(Some(changed))
}

fn language(args: &ComparingArgs) -> Language {
    if args.lang == "es" { Language::Spanish } else { Language::English }
}

fn compared(planning: &Planning, args: &ComparingArgs) -> Result<ExitCode, Failure> {
    let language = language(args);
    let started = std::time::Instant::now();
    let now = || started.elapsed().as_secs_f64() * 1e3;
    let compared =
        compare::compare(&planning.spec, &planning.cluster(), &now).map_err(Failure::bad_spec)?;
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
