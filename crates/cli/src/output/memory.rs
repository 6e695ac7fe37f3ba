//! Memory as bars, at eighty columns: what `berth top` shows.

use berth_control::journal::Advice;
use berth_core::plan::{Plan, PlannedInstance};
use berth_core::units::Bytes;
use berth_core::watch::forensic::Report;
use berth_core::watch::{Alarm, Changes, DeviceLook, EngineLook, Look};
use serde::Serialize;

/// Cells of a bar.
const CELLS: usize = 34;
/// Foreign processes that are named for each device.
const MOST_NAMED: usize = 3;

/// What `berth top --json` says.
#[derive(Debug, Serialize)]
pub(crate) struct Seen<'a> {
    pub(crate) at_ms: u64,
    pub(crate) devices: Vec<Device<'a>>,
    pub(crate) engines: &'a [EngineLook],
    pub(crate) alarms: &'a [Alarm],
    pub(crate) notes: &'a [String],
}

/// A device: what is planned beside what is there.
#[derive(Debug, Serialize)]
pub(crate) struct Device<'a> {
    #[serde(flatten)]
    pub(crate) look: &'a DeviceLook,
    /// What the plan in force puts on it.
    pub(crate) planned: Bytes,
    /// What berth's instances hold.
    pub(crate) own: Option<Bytes>,
    /// What others hold.
    pub(crate) foreign: Option<Bytes>,
    /// What is left once all holds that is planned; below zero where it isn't.
    pub(crate) headroom: Option<i64>,
}

impl<'a> Seen<'a> {
    pub(crate) fn new(plan: Option<&Plan>, look: &'a Look, alarms: &'a [Alarm]) -> Self {
        let device = |look: &'a DeviceLook| {
            let planned =
                plan.map(|plan| plan.bytes_on(&look.node, &look.device)).unwrap_or_default();
            let signed = |bytes: Bytes| i64::try_from(bytes.0).unwrap_or(i64::MAX);
            let (own, foreign) = (look.own(), look.foreign());
            // One that outgrows its plan takes what is planned for another that has not started.
            let of_instances = plan.into_iter().flat_map(|plan| &plan.instances);
            let most = own.map(|_| {
                let of = |one: &PlannedInstance| {
                    one.bytes_on(&look.node, &look.device)
                        .max(look.held_by(&one.id).unwrap_or_default())
                };
                of_instances.map(of).sum::<Bytes>()
            });
            let headroom = most
                .zip(foreign)
                .map(|(most, foreign)| signed(look.total) - signed(most) - signed(foreign));
            Device { look, planned, own, foreign, headroom }
        };
        let devices = look.devices.iter().map(device).collect();
        Self { at_ms: look.at_ms, devices, engines: &look.engines, alarms, notes: &look.notes }
    }
}

/// The whole view.
pub(crate) fn view(seen: &Seen<'_>) -> String {
    let legend = format!("{OWN} held  {PLANNED} planned  {FOREIGN} others  {FREE} free");
    let mut lines = vec![legend];
    for device in &seen.devices {
        lines.extend(of_device(device));
    }
    for engine in seen.engines {
        lines.push(of_engine(engine));
    }
    if seen.devices.is_empty() {
        lines.push("no device can be seen here".to_owned());
    }
    lines.extend(seen.alarms.iter().flat_map(alarm));
    lines.extend(seen.notes.iter().map(|note| format!("note: {note}")));
    lines.join("\n")
}

const OWN: char = '█';
const PLANNED: char = '▒';
const FOREIGN: char = '#';
const FREE: char = '·';

fn of_device(device: &Device<'_>) -> Vec<String> {
    let look = device.look;
    let id = look.device.to_string();
    // A GPU's UUID says less than its beginning and its name.
    let short = id.strip_prefix("GPU-").map_or(id.as_str(), |uuid| uuid.get(..8).unwrap_or(uuid));
    let bytes =
        |bytes: Option<Bytes>| bytes.map_or_else(|| "unknown".to_owned(), |b| b.to_string());
    let left = device.headroom.map_or_else(
        || "unknown".to_owned(),
        |left| match left < 0 {
            true => format!("{} too little", Bytes(left.unsigned_abs())),
            false => format!("{} left", Bytes(left.unsigned_abs())),
        },
    );
    let (own, foreign) = (bytes(device.own), bytes(device.foreign));
    let mut lines = vec![
        format!("{} {short} ({}), {}: {left}", look.node, look.name, look.total),
        format!("  {}  held {own} of {}, others {foreign}", bar(device), device.planned),
    ];
    let holders = || look.holders.iter().flatten();
    for holder in holders().filter(|one| one.instance.is_some()) {
        let id = holder.instance.as_ref().map(ToString::to_string).unwrap_or_default();
        lines.push(format!("    {id:<24} {:>10}  pid {}", holder.bytes.to_string(), holder.pid));
    }
    for holder in holders().filter(|one| one.instance.is_none()).take(MOST_NAMED) {
        let (name, held) = (format!("({})", holder.name), holder.bytes.to_string());
        lines.push(format!("    {name:<24} {held:>10}  pid {}", holder.pid));
    }
    lines
}

/// What is held, planned, foreign and free, in cells of the whole.
fn bar(device: &Device<'_>) -> String {
    let Some((own, foreign)) = device.own.zip(device.foreign) else { return "?".repeat(CELLS) };
    let total = device.look.total.0.max(1) as f64;
    let cells = |bytes: Bytes| (bytes.0 as f64 / total * CELLS as f64).round() as usize;
    let parts = [(own, OWN), (device.planned - own, PLANNED), (foreign, FOREIGN)];
    let bar = parts.into_iter().flat_map(|(bytes, cell)| std::iter::repeat_n(cell, cells(bytes)));
    bar.chain(std::iter::repeat(FREE)).take(CELLS).collect()
}

fn of_engine(engine: &EngineLook) -> String {
    let number = |n: Option<u64>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
    let cache = match engine.kv_cache_usage {
        Some(usage) => format!(", cache {:.0} % full", usage * 100.0),
        None => String::new(),
    };
    let (running, waiting) = (number(engine.running), number(engine.waiting));
    format!("{:<28} {running} running, {waiting} waiting{cache}", engine.instance.to_string())
}

/// An alarm and what to do about it.
fn alarm(alarm: &Alarm) -> [String; 2] {
    [format!("alarm: {}: {}", alarm.subject, alarm.message), format!("  hint: {}", alarm.advice)]
}

/// Alarms for `berth status`.
pub(crate) fn alarms(alarms: &[Alarm]) -> Vec<String> {
    alarms.iter().flat_map(alarm).collect()
}

/// Why an engine died of memory.
pub(crate) fn death(report: &Report) -> [String; 2] {
    let Report { instance, said, finding, proposal, .. } = report;
    [format!("{instance} died of memory: {finding} ({said})"), format!("  hint: {proposal}")]
}

/// What has changed, as lines of talk.
pub(crate) fn changes(changes: &Changes) -> String {
    let raised = changes.raised.iter().flat_map(alarm);
    let over =
        changes.over.iter().map(|one| format!("over: {}: {}", one.subject, one.kind.as_str()));
    raised.chain(over).collect::<Vec<_>>().join("\n")
}

/// What berth advises, and how to have it.
pub(crate) fn advice(advice: &Advice) -> String {
    let mut lines: Vec<String> = reasons(advice).map(|line| format!("advice: {line}")).collect();
    lines.push(
        "  hint: `berth apply --advised` does it, one instance of a model at a time".to_owned(),
    );
    lines.join("\n")
}

/// What berth changes by itself.
pub(crate) fn applied(advice: &Advice) -> String {
    let lines: Vec<String> = reasons(advice).map(|line| format!("adjusting: {line}")).collect();
    lines.join("\n")
}

fn reasons(advice: &Advice) -> impl Iterator<Item = String> {
    advice.changes.iter().map(|one| format!("{one}: {}", one.why))
}
