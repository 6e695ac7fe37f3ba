//! What people read: data on stdout, talk on stderr.

#![expect(clippy::print_stderr, reason = "the one place that prints")]

pub(crate) mod comparison;
pub(crate) mod memory;
mod proof;

use std::io::{IsTerminal as _, Write as _};

use berth_control::{Event, EventKind, InstanceStatus, Status};
use berth_core::Plan;
use berth_core::inventory::InstanceId;
use berth_core::ledger::{self, LedgerEntry};
use berth_core::memory::{Footprint, TermKind};
use berth_core::plan::{Change, PlannedDevice};
use berth_core::report::{ModelReport, PlanReport, PlanVerdict};
use berth_core::units::Bytes;
use serde::Serialize;

pub(crate) use proof::proof;

use crate::failure::Failure;

/// Sends the log to stderr; `RUST_LOG` chooses more finely.
pub(crate) fn start_log(verbose: bool) {
    // What is asked for in the spec is told: a line for each request.
    let level = if verbose { "debug" } else { "warn,berth::access=info" };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// A line of data.
pub(crate) fn data(line: &str) {
    // Whoever reads may have gone (`berth plan | head`): that is no failure.
    is_read(line);
}

/// A line of data; whether somebody still reads.
pub(crate) fn is_read(line: &str) -> bool {
    writeln!(std::io::stdout(), "{line}").is_ok()
}

/// A line of talk.
pub(crate) fn talk(line: &str) {
    end_progress();
    drop(writeln!(std::io::stderr(), "{line}"));
}

/// One JSON document.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    data(&serde_json::to_string_pretty(value).map_err(Failure::new)?);
    Ok(())
}

/// One line that is written over while something goes on; only at a terminal.
pub(crate) fn progress(line: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[2K{line}");
        drop(std::io::stderr().flush());
    }
}

/// Ends a line of progress.
pub(crate) fn end_progress() {
    progress("");
}

/// Rows in columns, the first row being the head. Columns of numbers are aligned right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let is_number = |column: usize| {
        let cells = rows.iter().skip(1).filter_map(|row| row.get(column));
        let mut filled = cells.filter(|cell| !cell.is_empty() && *cell != "-").peekable();
        filled.peek().is_some()
            && filled.all(|cell| cell.starts_with(|c: char| c.is_ascii_digit() || "+-".contains(c)))
    };
    let right: Vec<bool> = (0..columns).map(is_number).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(i, cell)| match right[i] {
            true => format!("{cell:>width$}", width = widths[i]),
            false => format!("{cell:<width$}", width = widths[i]),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// A footprint with a bar for each term.
pub(crate) fn footprint(footprint: &Footprint) -> String {
    let total = footprint.total();
    let mut rows = vec![row(["term", "bytes", "", "kind", "how"])];
    for term in &footprint.terms {
        let kind = match term.kind {
            TermKind::Exact => "exact",
            TermKind::Calibrated => "calibrated",
        };
        let bar = bar(term.bytes, total, 20);
        // A fitted term's source follows its formula; it has a line of its own elsewhere.
        let how = term.formula.split(';').next().unwrap_or_default();
        rows.push(row([&term.name, &term.bytes.to_string(), &bar, kind, how]));
    }
    rows.push(row(["total", &total.to_string(), "", "", "the most that it can come to hold"]));
    table(&rows)
}

/// How full something is.
pub(crate) fn gauge(part: Bytes, whole: Bytes) -> String {
    const WIDTH: usize = 24;
    let filled = u128::from(part.min(whole).0) * WIDTH as u128 / u128::from(whole.0.max(1));
    let filled = usize::try_from(filled).unwrap_or(WIDTH).min(WIDTH);
    format!("[{}{}]", "█".repeat(filled), "·".repeat(WIDTH - filled))
}

fn bar(part: Bytes, whole: Bytes, width: u64) -> String {
    let filled = (u128::from(part.0) * u128::from(width)).div_ceil(u128::from(whole.0.max(1)));
    "█".repeat(usize::try_from(filled).unwrap_or(0))
}

/// A plan's report: verdict first, then devices and models, then what to change.
pub(crate) fn plan(report: &PlanReport) -> String {
    let mut out = vec![match report.verdict {
        PlanVerdict::Fits => format!("fits (plan {})", report.plan_digest),
        PlanVerdict::Impossible => "does not fit".to_owned(),
    }];
    let mut rows = vec![row(["device", "has", "budget", "planned", "left", ""])];
    for (device, places) in alike(&report.devices) {
        rows.push(row([
            &places,
            &device.total.to_string(),
            &device.budget.to_string(),
            &device.planned.to_string(),
            &device.headroom().to_string(),
            &bar(device.planned, device.budget, 20),
        ]));
    }
    out.extend([String::new(), table(&rows)]);
    out.extend([String::new(), table(&model_rows(report))]);
    for model in report.models.iter().filter(|model| !model.is_complete()) {
        out.push(String::new());
        out.push(why_not(model));
    }
    for note in &report.notes {
        out.push(format!("note: {note}"));
    }
    out.join("\n")
}

/// Devices with their places; those of several nodes that are alike in a line.
fn alike(devices: &[PlannedDevice]) -> Vec<(&PlannedDevice, String)> {
    let mut groups: Vec<(&PlannedDevice, Vec<&str>)> = Vec::new();
    for device in devices {
        let same = |(other, _): &&mut (&PlannedDevice, Vec<&str>)| {
            let of = |one: &PlannedDevice| (one.device.clone(), one.total, one.budget, one.planned);
            of(other) == of(device)
        };
        match groups.iter_mut().find(same) {
            Some((_, nodes)) => nodes.push(&device.node),
            None => groups.push((device, vec![&device.node])),
        }
    }
    let has_one_node = devices.iter().all(|device| device.node == devices[0].node);
    let place = |(device, nodes): (&'_ PlannedDevice, Vec<&str>)| match nodes.as_slice() {
        _ if has_one_node => device.device.to_string(),
        names => format!("{} {}", span(names), device.device),
    };
    groups.into_iter().map(|(device, nodes)| (device, place((device, nodes)))).collect()
}

/// Names of alike nodes: the first, the last and how many.
pub(crate) fn span(names: &[&str]) -> String {
    match names {
        [first, .., last] => format!("{first} .. {last} ({})", names.len()),
        names => names.concat(),
    }
}

/// The first of a longer list.
fn some(all: &[String]) -> String {
    const MOST: usize = 4;
    match all.len() {
        ..=MOST => all.join(", "),
        count => format!("{} and {} more", all[..MOST].join(", "), count - MOST),
    }
}

fn model_rows(report: &PlanReport) -> Vec<Vec<String>> {
    let mut rows = vec![row(["model", "instances", "weights", "kv cache", "other", "each", "on"])];
    for model in &report.models {
        let weights = model.footprint.get("weights") + model.footprint.get("weights_repacked");
        let cache = model.footprint.get("kv_cache");
        let total = model.footprint.total();
        let devices: Vec<String> = model.placed.iter().map(ToString::to_string).collect();
        rows.push(row([
            &model.model,
            &format!("{}/{}", model.placed.len(), model.wanted),
            &weights.to_string(),
            &cache.to_string(),
            &(total - weights - cache).to_string(),
            &total.to_string(),
            if devices.is_empty() { "-" } else { "" },
        ]));
        if let (Some(last), false) =
            (rows.last_mut().and_then(|row| row.last_mut()), devices.is_empty())
        {
            *last = some(&devices);
        }
    }
    rows
}

fn why_not(model: &ModelReport) -> String {
    let mut lines = vec![format!("{} does not fit:", model.model)];
    lines.extend(model.reasons.iter().map(|reason| format!("  {reason}")));
    if !model.changes.is_empty() {
        lines.push("any one of these would do:".to_owned());
        lines.extend(model.changes.iter().map(|change| format!("  - {change}")));
    }
    lines.join("\n")
}

/// Of a longer ledger only the totals are shown.
const MOST_ENTRIES: usize = 60;

/// The ledger: planned, reported and observed side by side.
pub(crate) fn ledger(entries: &[LedgerEntry]) -> String {
    let is_shown =
        |entry: &&LedgerEntry| entries.len() <= MOST_ENTRIES || entry.term == ledger::LIMIT;
    let mut shown: Vec<&LedgerEntry> = entries.iter().filter(is_shown).collect();
    // Ranks of an instance take the same, as a rule.
    shown.dedup();
    let bytes = |bytes: Option<Bytes>| bytes.map_or_else(|| "-".to_owned(), |b| b.to_string());
    let mut rows = vec![row(["instance", "term", "planned", "reported", "observed", "error"])];
    for entry in shown {
        let error = entry.error.map_or_else(|| "-".to_owned(), |e| format!("{:+.1}%", e * 100.0));
        rows.push(row([
            &entry.instance.to_string(),
            &entry.term,
            &entry.planned.to_string(),
            &bytes(entry.reported),
            &bytes(entry.observed),
            &error,
        ]));
    }
    table(&rows)
}

fn devices(status: &Status) -> String {
    let bytes = |bytes: Option<Bytes>| bytes.map_or_else(|| "-".to_owned(), |b| b.to_string());
    let mut rows = vec![row(["device", "budget", "planned", "observed", "others"])];
    let all: Vec<PlannedDevice> = status.devices.iter().map(|one| one.planned.clone()).collect();
    for (planned, places) in alike(&all) {
        let Some(device) = status.devices.iter().find(|one| one.planned == *planned) else {
            continue;
        };
        rows.push(row([
            &places,
            &device.planned.budget.to_string(),
            &device.planned.planned.to_string(),
            &bytes(device.observed),
            &bytes(device.used_by_others),
        ]));
    }
    table(&rows)
}

/// Where an instance listens: on this machine the port says it.
fn address(instance: &InstanceStatus) -> String {
    match instance.host.as_str() {
        "127.0.0.1" | "" => instance.port.to_string(),
        host => format!("{} {host}:{}", instance.node, instance.port),
    }
}

/// What runs.
pub(crate) fn status(status: &Status) -> String {
    let Some(digest) = &status.plan_digest else {
        return "nothing is applied here yet".to_owned();
    };
    let watched = match (status.controller_running, status.gateway) {
        (true, Some(gateway)) => format!("watched over; gateway at http://{gateway}"),
        (true, None) => "a change is being made".to_owned(),
        (false, _) => "nobody watches over it: `berth serve` does".to_owned(),
    };
    let mut rows = vec![row(["instance", "model", "state", "at", "pid", "resident", "why"])];
    for instance in &status.instances {
        let why = instance.diagnosis.as_ref().map(ToString::to_string);
        let why = why.or_else(|| instance.doing.clone()).unwrap_or_default();
        let rolled_back = match (instance.rolled_back, instance.is_to_change) {
            (true, _) => " (rolled back)",
            (false, true) => " (as it was)",
            (false, false) if instance.is_on_trial => " (on trial)",
            (false, false) => "",
        };
        rows.push(row([
            &instance.id.to_string(),
            &instance.model,
            &format!("{}{rolled_back}", instance.state.as_str()),
            &address(instance),
            &instance.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            &instance.memory.map_or_else(|| "-".to_owned(), |memory| memory.resident.to_string()),
            &why,
        ]));
    }
    let strategy = status.strategy.as_ref().map_or(String::new(), |name| format!(" ({name})"));
    let head = format!("plan {digest}{strategy}, {watched}");
    let mut out = vec![head, String::new(), devices(status)];
    if status.instances.is_empty() {
        out.push("no instances".to_owned());
    } else {
        out.extend([String::new(), table(&rows), String::new(), ledger(&status.ledger)]);
    }
    out.extend(status.deaths.iter().flat_map(memory::death));
    out.extend(memory::alarms(&status.alarms));
    out.extend(status.advice.as_ref().map(memory::advice));
    out.extend(status.notes.iter().map(|note| format!("note: {note}")));
    out.join("\n")
}

/// What happened to an instance, as a line of talk.
pub(crate) fn event(event: &Event) -> String {
    let id = &event.instance;
    match &event.kind {
        EventKind::Adopted => format!("{id}: runs already, taken over"),
        EventKind::Started => format!("{id}: starting"),
        EventKind::Ready { after_ms } => {
            format!("{id}: ready after {:.1} s", *after_ms as f64 / 1e3)
        }
        EventKind::Failed { diagnosis, retry_in_ms } => {
            let next = match retry_in_ms {
                Some(ms) => format!("next try in {:.0} s", *ms as f64 / 1e3),
                None => "left alone".to_owned(),
            };
            format!("{id}: failed: {diagnosis}; {next}\nhint: {}", diagnosis.hint)
        }
        EventKind::Recovering => {
            format!("{id}: not ready any more; its cluster brings it up again")
        }
        EventKind::Slept { why } => format!("{id}: put to sleep: {why}"),
        EventKind::Woke { after_ms } => {
            format!("{id}: awake again after {:.1} s", *after_ms as f64 / 1e3)
        }
        EventKind::RolledBack => format!("{id}: going back to its earlier configuration"),
        EventKind::Stopping => format!("{id}: stopping"),
        EventKind::Stopped => format!("{id}: stopped"),
    }
}

/// What a plan changes, an instance a line; those that stay are counted.
pub(crate) fn changes(plan: &Plan, before: Option<&Plan>) -> String {
    let changes = plan.changes_from(before);
    let stay = changes.values().filter(|change| **change == Change::Stay).count();
    let place = |id: &InstanceId| {
        let of = |plan: &Plan| plan.instance(id).map(|one| one.node.clone());
        of(plan).or_else(|| before.and_then(of)).unwrap_or_default()
    };
    let is_scaled = |id: &InstanceId| {
        plan.instance(id).is_some_and(|one| plan.scaled.contains_key(&one.deployment))
    };
    let line = |(id, change): (&InstanceId, &Change)| match change {
        Change::Stay => None,
        Change::Start if is_scaled(id) => {
            Some(format!("+ {id} starts on {} when it is called for", place(id)))
        }
        Change::Start => Some(format!("+ {id} starts on {}", place(id))),
        Change::Restart => Some(format!("~ {id} restarts on {}", place(id))),
        Change::Stop => Some(format!("- {id} stops on {}", place(id))),
    };
    let mut lines: Vec<String> = changes.iter().filter_map(line).collect();
    match (lines.len(), stay) {
        (0, _) => lines.push("nothing changes".to_owned()),
        (_, 0) => {}
        (_, stay) => lines.push(format!("  {stay} stay as they are")),
    }
    lines.extend(
        plan.adjustments.iter().map(|one| format!("  adjusted, and not in the spec: {one}")),
    );
    lines.join("\n")
}
