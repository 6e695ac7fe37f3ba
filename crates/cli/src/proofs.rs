//! Reports of load tests, as they are kept in the state folder.

use std::path::PathBuf;

use berth_cluster::local::StateDir;
use berth_load::html::html;
use berth_load::report::Report;
use berth_load::summary::ModelSummary;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::files::write_whole;

/// Reports that are listed, the newest.
const MOST: usize = 100;

fn folder(dir: &StateDir) -> PathBuf {
    dir.root().join("proofs")
}

/// Keeps a report, as JSON and as a page; says where the page is.
pub(crate) fn keep(dir: &StateDir, report: &Report) -> Result<PathBuf, Failure> {
    let text = serde_json::to_string_pretty(report).map_err(Failure::new)?;
    let [json, page] =
        ["json", "html"].map(|kind| folder(dir).join(format!("{}.{kind}", report.name)));
    let written = std::fs::create_dir_all(folder(dir))
        .and_then(|()| write_whole(&page, &html(report)))
        .and_then(|()| write_whole(&json, &text));
    written.map_err(|error| {
        let text = format!("the report {} can't be written", page.display());
        Failure::new(anyhow::Error::new(error).context(text)).hint("make room in the state folder")
    })?;
    Ok(page)
}

/// What there are, the newest first, in short.
pub(crate) fn list(dir: &StateDir) -> Result<Vec<Value>, Failure> {
    let Ok(files) = std::fs::read_dir(folder(dir)) else { return Ok(Vec::new()) };
    let names = files.flatten().map(|file| file.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".json")).collect();
    // They begin with the time.
    names.sort_unstable();
    let read = |name: &String| {
        let text = std::fs::read_to_string(folder(dir).join(name)).ok()?;
        serde_json::from_str(&text).ok().map(|report| brief(&report))
    };
    Ok(names.iter().rev().take(MOST).filter_map(read).collect())
}

fn brief(report: &Report) -> Value {
    let model = |one: &ModelSummary| {
        let ttft = one.measures.latencies.ttft_ms.as_ref();
        json!({
            "model": one.model,
            "ttft_p50_ms": ttft.map(|spread| spread.p50),
            "ttft_p99_ms": ttft.map(|spread| spread.p99),
            "tokens_per_second": one.measures.throughput.output_tokens_per_s,
            "errors": one.measures.requests - one.measures.ok - one.measures.refused,
        })
    };
    // Latency and speed are of the load that goes on for long.
    let steady = report.summary.phases.iter().find(|phase| !phase.is_overload);
    let models = steady.map_or(&report.summary.models, |phase| &phase.models);
    json!({
        "name": report.name,
        "at_ms": report.at_ms,
        "digest": report.plan_digest,
        "verdict": report.verdict.result,
        "models": models.iter().map(model).collect::<Vec<_>>(),
        "reasons": report.verdict.reasons.iter().map(|reason| &reason.text).collect::<Vec<_>>(),
    })
}

/// A report as a page; none where there is no such.
pub(crate) fn page(dir: &StateDir, name: &str) -> Option<String> {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
    if !name.chars().all(is_plain) {
        return None;
    }
    std::fs::read_to_string(folder(dir).join(format!("{name}.html"))).ok()
}
