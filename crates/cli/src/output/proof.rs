//! A load test as people read it.

use berth_load::report::Report;
use berth_load::summary::{ModelSummary, PhaseSummary};
use berth_load::verdict::{Judgement, Weight};

use super::table;

/// Of what is as it should be so much is shown.
const MOST_NOTES: usize = 8;

/// What a load test came to: the verdict with its reasons, and what was measured.
pub(crate) fn proof(report: &Report) -> String {
    let name = match report.verdict.result {
        Judgement::Pass => "PASS",
        Judgement::Fail => "FAIL",
        Judgement::Inconclusive => "INCONCLUSIVE",
    };
    let mut lines = vec![format!("{name} (plan {})", report.plan_digest), String::new()];
    if report.emulated {
        lines.push("everything is emulated: no figure is a measurement".to_owned());
    }
    let sign = |weight: Weight| match weight {
        Weight::Fails => "✗",
        Weight::LeavesOpen => "?",
        Weight::Note => "·",
    };
    let (notes, reasons): (Vec<_>, Vec<_>) =
        report.verdict.reasons.iter().partition(|reason| reason.weight == Weight::Note);
    let shown = reasons.into_iter().chain(notes.iter().take(MOST_NOTES).copied());
    lines.extend(shown.map(|reason| format!("{} {}", sign(reason.weight), reason.text)));
    if let Some(more) = notes.len().checked_sub(MOST_NOTES).filter(|more| *more > 0) {
        lines.push(format!("  {more} more such lines are in the report"));
    }
    lines.push(String::new());
    lines.push(table(&rows(&report.summary.phases)));
    lines.join("\n")
}

/// What was measured, a line for each phase and model.
fn rows(phases: &[PhaseSummary]) -> Vec<Vec<String>> {
    let head = [
        "phase", "model", "asked", "answered", "refused", "ttft p50", "p99", "itl p50", "tokens/s",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for phase in phases {
        for ModelSummary { model, measures } in &phase.models {
            let ms = |value: Option<f64>| value.map_or("-".to_owned(), |ms| format!("{ms:.0} ms"));
            let ttft = measures.latencies.ttft_ms.as_ref();
            rows.push(vec![
                phase.name.clone(),
                model.clone(),
                measures.requests.to_string(),
                measures.ok.to_string(),
                measures.refused.to_string(),
                ms(ttft.map(|spread| spread.p50)),
                ms(ttft.map(|spread| spread.p99)),
                ms(measures.latencies.itl_ms.as_ref().map(|spread| spread.p50)),
                format!("{:.1}", measures.throughput.output_tokens_per_s),
            ]);
        }
    }
    rows
}
