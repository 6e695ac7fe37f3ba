//! A report as a page that needs nothing else: no script, nothing fetched, light or dark as the reader
//! has it. Whatever comes from outside is escaped.

use std::fmt::{self, Display, Write as _};

use crate::report::{PhaseNote, Report};
use crate::summary::{Measures, ModelSummary, Spread, Summary};
use crate::verdict::{DeviceSeen, InstanceSeen, Judgement, MemorySeen, Reason, Verdict, Weight};

const STYLE: &str = include_str!("html/style.css");

/// The page.
pub fn html(report: &Report) -> String {
    let parts = [
        verdict(&report.verdict),
        about(report),
        latencies(&report.summary),
        rates(&report.summary),
        devices(&report.memory),
        instances(&report.memory),
        phases(report),
        generator(report),
    ];
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}: {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{}</main>\n</body>\n</html>\n",
        word(report.verdict.result),
        Escaped(&report.name),
        parts.concat(),
    )
}

/// Text that is shown as it is.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|one| match one {
            '&' => out.write_str("&amp;"),
            '<' => out.write_str("&lt;"),
            '>' => out.write_str("&gt;"),
            '"' => out.write_str("&quot;"),
            '\'' => out.write_str("&#39;"),
            // No page may hold these, and a terminal would obey them.
            one if one.is_control() && one != '\n' => out.write_char('\u{fffd}'),
            one => out.write_char(one),
        })
    }
}

fn word(result: Judgement) -> &'static str {
    match result {
        Judgement::Pass => "PASS",
        Judgement::Fail => "FAIL",
        Judgement::Inconclusive => "INCONCLUSIVE",
    }
}

/// A sign besides the word and the colour.
fn sign(weight: Weight) -> (&'static str, &'static str) {
    match weight {
        Weight::Fails => ("fail", "✗ wrong"),
        Weight::LeavesOpen => ("open", "? open"),
        Weight::Note => ("note", "· note"),
    }
}

fn verdict(verdict: &Verdict) -> String {
    let (class, sign) = match verdict.result {
        Judgement::Pass => ("pass", "✓"),
        Judgement::Fail => ("fail", "✗"),
        Judgement::Inconclusive => ("open", "?"),
    };
    let reasons: String = verdict.reasons.iter().map(reason).collect();
    let word = word(verdict.result);
    format!(
        "<h1 class=\"verdict {class}\">{sign} {word}</h1>\n<ul class=\"reasons\">\n{reasons}</ul>\n"
    )
}

fn reason(reason: &Reason) -> String {
    let (class, sign) = sign(reason.weight);
    let text = Escaped(&reason.text);
    format!("<li class=\"{class}\"><span class=\"sign\">{sign}</span> {text}</li>\n")
}

fn about(report: &Report) -> String {
    let at = i64::try_from(report.at_ms).ok();
    let at = at.and_then(|at_ms| jiff::Timestamp::from_millisecond(at_ms).ok());
    let at = at.map(|at| format!("{at:.0}")).unwrap_or_default();
    let strategy = report.strategy.as_deref().unwrap_or("none");
    let emulated = match report.emulated {
        true => "<p class=\"open\">Engines or devices were emulated: speeds say nothing.</p>\n",
        false => "",
    };
    format!(
        "<p><strong>{}</strong>, plan <code>{}</code>, strategy {}, begun {at}</p>\n{emulated}",
        Escaped(&report.name),
        Escaped(&report.plan_digest),
        Escaped(strategy),
    )
}

/// A table; headers are our own, cells are markup.
fn table(title: &str, headers: &[&str], rows: &[Vec<String>]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut out = format!("<h2>{title}</h2>\n<div class=\"wide\"><table>\n<thead><tr>");
    for header in headers {
        let _ = write!(out, "<th scope=\"col\">{header}</th>");
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        let cells: String = row.iter().map(|cell| format!("<td>{cell}</td>")).collect();
        let _ = writeln!(out, "<tr>{cells}</tr>");
    }
    out.push_str("</tbody></table></div>\n");
    out
}

/// Of the load that goes on for long, where there is one: what queues under overload is no latency.
fn latencies(summary: &Summary) -> String {
    let steady = summary.phases.iter().find(|phase| !phase.is_overload);
    let models = steady.map_or(&summary.models, |phase| &phase.models);
    let of = |title, spread: fn(&Measures) -> Option<Spread>| bars(title, models, spread);
    [
        of("To the first token, ms", |measures| measures.latencies.ttft_ms),
        of("Between tokens, ms", |measures| measures.latencies.itl_ms),
        of("To the end, ms", |measures| measures.latencies.e2e_ms),
    ]
    .concat()
}

/// One latency of each model, drawn to one scale.
fn bars(title: &str, models: &[ModelSummary], spread: fn(&Measures) -> Option<Spread>) -> String {
    let spreads: Vec<(&str, Spread)> = models
        .iter()
        .filter_map(|one| Some((one.model.as_str(), spread(&one.measures)?)))
        .collect();
    let most = spreads.iter().map(|(_, spread)| spread.max).fold(0.0, f64::max);
    let rows: Vec<Vec<String>> = spreads
        .iter()
        .map(|(model, spread)| {
            let values = [spread.p50, spread.p90, spread.p99, spread.max];
            let bars = values.map(|value| bar(&format!("{value:.1}"), value, most));
            std::iter::once(Escaped(model).to_string()).chain(bars).collect()
        })
        .collect();
    table(title, &["Model", "p50", "p90", "p99", "most"], &rows)
}

fn bar(text: &str, value: f64, most: f64) -> String {
    let percent = if most > 0.0 { (value / most * 100.0).clamp(0.0, 100.0) } else { 0.0 };
    format!("{text}<span class=\"bar\" style=\"width:{percent:.1}%\"></span>")
}

fn rates(summary: &Summary) -> String {
    let rows: Vec<Vec<String>> = summary
        .phases
        .iter()
        .flat_map(|phase| phase.models.iter().map(move |one| (phase.name.as_str(), one)))
        .map(|(phase, one)| rate(phase, one))
        .collect();
    let headers = [
        "Phase",
        "Model",
        "Requests",
        "Answered",
        "Refused",
        "Errors",
        "Tokens/s written",
        "Tokens/s in all",
        "Met targets",
    ];
    table("Requests", &headers, &rows)
}

fn rate(phase: &str, one: &ModelSummary) -> Vec<String> {
    let measures = &one.measures;
    let errors: u64 = measures.errors.iter().map(|error| error.count).sum();
    let goodput = measures.goodput.map(|share| format!("{:.1} %", share * 100.0));
    vec![
        Escaped(phase).to_string(),
        Escaped(&one.model).to_string(),
        measures.requests.to_string(),
        measures.ok.to_string(),
        measures.refused.to_string(),
        errors.to_string(),
        format!("{:.1}", measures.throughput.output_tokens_per_s),
        format!("{:.1}", measures.throughput.total_tokens_per_s),
        goodput.unwrap_or_else(|| "no targets".to_owned()),
    ]
}

fn devices(memory: &MemorySeen) -> String {
    let headers = ["Node", "Device", "In all, MiB", "Planned", "Least free", "Least headroom"];
    let rows: Vec<_> = memory.devices.iter().map(device).collect();
    table("Devices", &headers, &rows)
}

fn device(seen: &DeviceSeen) -> Vec<String> {
    let headroom = seen.least_headroom_bytes.map(|bytes| format!("{:.0}", bytes as f64 / MIB));
    vec![
        Escaped(&seen.node).to_string(),
        Escaped(&seen.device).to_string(),
        mib(Some(seen.total_bytes)),
        bar(&mib(Some(seen.planned_bytes)), seen.planned_bytes as f64, seen.total_bytes as f64),
        mib(seen.least_free_bytes),
        headroom.unwrap_or_else(|| UNSEEN.to_owned()),
    ]
}

fn instances(memory: &MemorySeen) -> String {
    let headers = [
        "Instance",
        "Model",
        "Planned, MiB",
        "Held at most",
        "Restarts",
        "Put off",
        "Dropped its model",
        "Died of memory",
    ];
    let rows: Vec<_> = memory.instances.iter().map(instance).collect();
    table("Instances", &headers, &rows)
}

fn instance(seen: &InstanceSeen) -> Vec<String> {
    vec![
        Escaped(&seen.id).to_string(),
        Escaped(&seen.model).to_string(),
        mib(Some(seen.planned_bytes)),
        mib(seen.most_held_bytes),
        seen.restarts.to_string(),
        times(seen.preemptions),
        times(seen.evictions),
        if seen.died_of_memory { "yes" } else { "no" }.to_owned(),
    ]
}

fn times(count: Option<u64>) -> String {
    count.map_or_else(|| UNSEEN.to_owned(), |count| count.to_string())
}

const MIB: f64 = (1 << 20) as f64;
const UNSEEN: &str = "not seen";

fn mib(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| UNSEEN.to_owned(), |bytes| format!("{:.0}", bytes as f64 / MIB))
}

fn phases(report: &Report) -> String {
    let rows: Vec<Vec<String>> = report.phases.iter().flat_map(phase).collect();
    let headers = ["Phase", "At most, s", "Overload", "Model", "Requests", "Each"];
    table("What was asked", &headers, &rows)
}

fn phase(note: &PhaseNote) -> Vec<Vec<String>> {
    let load = |load: &crate::report::LoadNote| {
        vec![
            Escaped(&note.name).to_string(),
            format!("{:.0} + {:.0}", note.limit_s, note.grace_s),
            if note.is_overload { "yes" } else { "no" }.to_owned(),
            Escaped(&load.model).to_string(),
            Escaped(&load.arrivals).to_string(),
            Escaped(&load.shape).to_string(),
        ]
    };
    note.loads.iter().map(load).collect()
}

fn generator(report: &Report) -> String {
    let generator = &report.generator;
    let row = |what: &str, spread: Option<Spread>| {
        let spread = spread?;
        let values = [spread.p50, spread.p99, spread.max].map(|value| format!("{value:.2}"));
        Some(std::iter::once(what.to_owned()).chain(values).collect())
    };
    let rows: Vec<Vec<String>> =
        [row("sending", generator.own.delay_ms), row("reading", generator.own.reading_delay_ms)]
            .into_iter()
            .flatten()
            .collect();
    let table = table("The load generator was late with, ms", &["", "p50", "p99", "most"], &rows);
    let (threads, most) = (generator.threads, generator.own.most_in_flight);
    format!("{table}<p>Threads: {threads}; most requests under way at once: {most}</p>\n")
}

#[cfg(test)]
mod tests;
