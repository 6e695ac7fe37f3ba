//! What is wrong with memory, or about to be.

use serde::{Deserialize, Serialize};

use super::history::{Growth, History};
use super::look::{DeviceLook, EngineLook, Look};
use crate::inventory::DeviceId;
use crate::plan::{Plan, PlannedDevice};
use crate::units::Bytes;

/// Of a trend that takes longer nobody needs to be woken.
const SOON_MS: u64 = 10 * 60 * 1000;
/// Strangers that take less are no news, nor is a share of the device that is less.
const NEWS: Bytes = Bytes(256 << 20);
const NEWS_SHARE: f64 = 0.02;
/// A cache that is this full, while requests wait.
const FULL: f64 = 0.95;
/// How far a plan may be off: the driver's rounding, and what the memory model is held to.
const ROUNDING: Bytes = Bytes(4 << 20);
const MODEL_SHARE: f64 = 0.01;

/// What an instance may hold more than its plan before that counts as broken.
pub fn tolerance(planned: Bytes) -> Bytes {
    ROUNDING.max(Bytes((planned.0 as f64 * MODEL_SHARE) as u64))
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlarmKind {
    /// What is planned no longer fits beside what others hold.
    NoRoom,
    /// An instance holds more than the plan says it ever will.
    OverPlan,
    /// What is left beside the plan runs out soon.
    RunsOut,
    /// Others have taken memory.
    ForeignGrew,
    /// An engine's cache is full, and requests wait.
    CacheFull,
    /// An engine puts requests off for want of cache.
    Preempts,
    /// A device can't be seen.
    Unseen,
}

impl AlarmKind {
    /// Whether single requests make it come and go.
    pub(super) fn is_of_requests(self) -> bool {
        matches!(self, Self::CacheFull | Self::Preempts)
    }

    /// Its name, as in JSON and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoRoom => "no_room",
            Self::OverPlan => "over_plan",
            Self::RunsOut => "runs_out",
            Self::ForeignGrew => "foreign_grew",
            Self::CacheFull => "cache_full",
            Self::Preempts => "preempts",
            Self::Unseen => "unseen",
        }
    }
}

/// Something to be warned of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alarm {
    /// What is wrong.
    pub kind: AlarmKind,
    /// With what: a device of a node, or an instance.
    pub subject: String,
    /// In words, with bytes.
    pub message: String,
    /// What to do.
    pub advice: String,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
}

/// What is wrong now; `history` has `look` already, `earlier` is the look before, `before` what was wrong then.
pub fn alarms(
    plan: &Plan,
    look: &Look,
    history: &History,
    earlier: Option<&Look>,
    before: &[Alarm],
) -> Vec<Alarm> {
    let mut found = Vec::new();
    for planned in plan.devices.iter().filter(|one| one.planned > Bytes::ZERO) {
        match look.device(&planned.node, &planned.device) {
            Some(seen) if seen.used.is_some() => {
                of_device(plan, planned, seen, history, look.at_ms, &mut found);
            }
            _ => found.push((
                AlarmKind::Unseen,
                place(planned),
                "what it holds is not known".to_owned(),
                "look at the notes of `berth status`: a driver, an agent or a node is missing"
                    .to_owned(),
            )),
        }
    }
    for engine in &look.engines {
        let was = earlier
            .and_then(|look| look.engines.iter().find(|one| one.instance == engine.instance));
        of_engine(engine, was, &mut found);
    }
    let alarm = |(kind, subject, message, advice): Found| {
        let known = before.iter().find(|one| one.kind == kind && one.subject == subject);
        let since_ms = known.map_or(look.at_ms, |one| one.since_ms);
        Alarm { kind, subject, message, advice, since_ms }
    };
    found.into_iter().map(alarm).collect()
}

/// Kind, subject, message, advice.
type Found = (AlarmKind, String, String, String);

fn place(device: &PlannedDevice) -> String {
    format!("{} {}", device.node, device.device)
}

fn of_device(
    plan: &Plan,
    planned: &PlannedDevice,
    seen: &DeviceLook,
    history: &History,
    now_ms: u64,
    found: &mut Vec<Found>,
) {
    let subject = || place(planned);
    let grown = history.foreign_growth(seen, now_ms);
    let who = grown.as_ref().and_then(|(_, growth)| growth.as_ref()).map(named);
    let cause = who.as_ref().map_or_else(String::new, |who| format!("; {who}"));
    if let Some(foreign) = seen.foreign() {
        let room = seen.total - foreign;
        if planned.planned > room {
            found.push((
                AlarmKind::NoRoom,
                subject(),
                format!(
                    "{} are planned, and others leave {room}: {} too little{cause}",
                    planned.planned,
                    planned.planned - room
                ),
                "end what took it, or plan again with what is left: `berth plan`, then `berth apply`".to_owned(),
            ));
        }
        let news = NEWS.max(Bytes((seen.total.0 as f64 * NEWS_SHARE) as u64));
        // The host has others by its nature: there it is news once as much again would be too much.
        let left = room - planned.planned;
        let matters = |by: Bytes| planned.device != DeviceId::host() || by >= left;
        if let Some((by, _)) = grown.filter(|(by, _)| *by >= news && matters(*by)) {
            let who = who.unwrap_or_else(|| "by whom was not seen".to_owned());
            found.push((
                AlarmKind::ForeignGrew,
                subject(),
                format!("others hold {foreign}, {by} more than two minutes ago: {who}"),
                "end it, or give it room: set `headroom` or `host_budget` in the spec and apply"
                    .to_owned(),
            ));
        }
    }
    for instance in plan.instances.iter().filter(|one| one.node == planned.node) {
        let most = instance.bytes_on(&planned.node, &planned.device);
        let held = seen.held_by(&instance.id).unwrap_or_default();
        if most > Bytes::ZERO && held > most + tolerance(most) {
            found.push((
                AlarmKind::OverPlan,
                format!("{} on {}", instance.id, subject()),
                format!("it holds {held}, {} more than the {most} of its plan", held - most),
                "`berth status` shows its terms; tell berth with `berth calibrate`, or lower its cache".to_owned(),
            ));
        }
    }
    if let Some(ms) = history.ms_to_zero(seen, now_ms).filter(|ms| *ms <= SOON_MS) {
        let left = seen.left(planned.planned).unwrap_or_default();
        found.push((
            AlarmKind::RunsOut,
            subject(),
            format!(
                "{left} are left beside the plan, and nothing in {} if it goes on so{cause}",
                spoken(ms)
            ),
            "find out what grows before it is full: `berth top` shows who holds what".to_owned(),
        ));
    }
}

fn named(growth: &Growth) -> String {
    let Growth { holder, by } = growth;
    let name = match holder.name.as_str() {
        // Of another machine, or another namespace.
        "?" => format!("process {}", holder.pid),
        name => format!("{name} (process {})", holder.pid),
    };
    format!("{name} has taken {by} and holds {}", holder.bytes)
}

fn spoken(ms: u64) -> String {
    match ms / 1000 {
        seconds @ ..120 => format!("{seconds} s"),
        seconds => format!("{} min", seconds / 60),
    }
}

fn of_engine(engine: &EngineLook, was: Option<&EngineLook>, found: &mut Vec<Found>) {
    let subject = || engine.instance.to_string();
    let waiting = engine.waiting.unwrap_or(0);
    if let Some(usage) = engine.kv_cache_usage.filter(|usage| *usage >= FULL && waiting > 0) {
        found.push((
            AlarmKind::CacheFull,
            subject(),
            format!("its KV cache is {:.0} % full, and {waiting} requests wait", usage * 100.0),
            "more instances or a larger cache would take them; `berth plan --compare` says what fits".to_owned(),
        ));
    }
    let earlier = was.and_then(|was| was.preemptions);
    let more = earlier.zip(engine.preemptions).map_or(0, |(was, now)| now.saturating_sub(was));
    if more > 0 {
        found.push((
            AlarmKind::Preempts,
            subject(),
            format!("it put {more} requests off for want of cache"),
            "lower max_num_seqs, or give it a larger cache".to_owned(),
        ));
    }
}
