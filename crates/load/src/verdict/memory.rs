//! What was seen of memory while the load ran, and what that says.

use serde::{Deserialize, Serialize};

use super::{Limits, Reason, Weight, percent};

/// All that was seen; the caller fills it in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MemorySeen {
    /// Each device.
    pub devices: Vec<DeviceSeen>,
    /// Each instance.
    pub instances: Vec<InstanceSeen>,
    /// How often it was looked.
    pub looks: u32,
    /// What couldn't be seen, in words.
    pub missing: Vec<String>,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceSeen {
    /// The machine it is in.
    pub node: String,
    /// Which of that.
    pub device: String,
    /// What it has.
    pub total_bytes: u64,
    /// What is planned on it.
    pub planned_bytes: u64,
    /// What the plan leaves of what models may take.
    #[serde(default)]
    pub planned_left_bytes: u64,
    /// The least that was free.
    pub least_free_bytes: Option<u64>,
    /// The least that was left of what may be used; below zero that was overdrawn.
    pub least_headroom_bytes: Option<i64>,
}

/// An instance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InstanceSeen {
    /// Which.
    pub id: String,
    /// Of which model.
    pub model: String,
    /// What is planned for it.
    pub planned_bytes: u64,
    /// The most that it held.
    pub most_held_bytes: Option<u64>,
    /// How often it started anew.
    pub restarts: u32,
    /// How often it put a request off for want of cache, where it says.
    pub preemptions: Option<u64>,
    /// How often its model was gone from its devices (Ollama), where it says.
    #[serde(default)]
    pub evictions: Option<u64>,
    /// Whether it ended for want of memory.
    pub died_of_memory: bool,
}

/// What that says.
pub(super) fn reasons(memory: &MemorySeen, limits: &Limits) -> Vec<Reason> {
    // Where it isn't seen who holds what, what is free of all devices says as much of the plan.
    let is_free_seen = !memory.devices.is_empty()
        && memory.devices.iter().all(|device| device.least_free_bytes.is_some());
    let unknown = if is_free_seen { Weight::Note } else { Weight::LeavesOpen };
    let instances =
        memory.instances.iter().flat_map(|instance| of_instance(instance, limits, unknown));
    let devices = memory.devices.iter().flat_map(of_device);
    let is_held_seen = memory.instances.iter().all(|instance| instance.most_held_bytes.is_some());
    let together = memory.devices.iter().filter(|_| !is_held_seen);
    let together = together.filter_map(|device| of_all_together(device, limits));
    instances.chain(devices).chain(together).chain(unseen(memory)).collect()
}

fn of_instance(instance: &InstanceSeen, limits: &Limits, unknown: Weight) -> Vec<Reason> {
    let id = &instance.id;
    let died = instance
        .died_of_memory
        .then(|| Reason::new(Weight::Fails, format!("{id} died of memory (limit 0 times)")));
    let restarted = (instance.restarts > 0).then(|| {
        let text = format!("{id} restarted {} (limit 0)", times(u64::from(instance.restarts)));
        Reason::new(Weight::Fails, text)
    });
    let preempted = instance.preemptions.filter(|count| *count > 0).map(|count| {
        let text = format!("{id} put requests off {} for want of cache (no limit)", times(count));
        Reason::new(Weight::Note, text)
    });
    let evicted = instance.evictions.filter(|count| *count > 0).map(|count| {
        let text = format!("{id} dropped its model {} (limit 0)", times(count));
        Reason::new(Weight::Fails, text)
    });
    [died, restarted, evicted, Some(held(instance, limits, unknown)), preempted]
        .into_iter()
        .flatten()
        .collect()
}

fn held(instance: &InstanceSeen, limits: &Limits, unknown: Weight) -> Reason {
    let (id, planned) = (&instance.id, instance.planned_bytes);
    let Some(held) = instance.most_held_bytes else {
        return Reason::new(unknown, format!("what {id} alone held was not seen"));
    };
    let is_over = held as f64 > planned as f64 * (1.0 + limits.over_plan);
    let (more, side) = match held.checked_sub(planned) {
        Some(more) => (more, "more"),
        None => (planned - held, "less"),
    };
    let text = format!(
        "{id} held {}, {} {side} than its plan (limit {} %)",
        mebibytes(held),
        mebibytes(more),
        percent(limits.over_plan),
    );
    Reason::new(if is_over { Weight::Fails } else { Weight::Note }, text)
}

fn of_device(device: &DeviceSeen) -> Option<Reason> {
    let name = format!("{} on {}", device.device, device.node);
    match (device.least_headroom_bytes, device.least_free_bytes) {
        (Some(headroom), _) if headroom < 0 => {
            let over = mebibytes(headroom.unsigned_abs());
            let text = format!("{name} was overdrawn by {over} (limit 0 MiB)");
            Some(Reason::new(Weight::Fails, text))
        }
        (Some(headroom), _) => {
            let left = mebibytes(headroom.unsigned_abs());
            let text = format!("{name} had {left} of headroom left at least (limit 0 MiB)");
            Some(Reason::new(Weight::Note, text))
        }
        (None, Some(_)) => None,
        (None, None) => {
            Some(Reason::new(Weight::LeavesOpen, format!("what is free of {name} was not seen")))
        }
    }
}

/// Whether more is gone of a device than its plan takes, where nobody says who holds it: a neighbour may have taken it.
fn of_all_together(device: &DeviceSeen, limits: &Limits) -> Option<Reason> {
    let free = device.least_free_bytes?;
    let more = device.planned_left_bytes.checked_sub(free).filter(|more| *more > 0)?;
    let is_over = more as f64 > device.planned_bytes as f64 * limits.over_plan;
    let text = format!(
        "{} on {} had {} free at least, {} less than its plan leaves (limit {} % of the plan); who holds that was not seen",
        device.device,
        device.node,
        mebibytes(free),
        mebibytes(more),
        percent(limits.over_plan),
    );
    Some(Reason::new(if is_over { Weight::LeavesOpen } else { Weight::Note }, text))
}

fn unseen(memory: &MemorySeen) -> Vec<Reason> {
    let never = (memory.looks == 0)
        .then(|| Reason::new(Weight::LeavesOpen, "memory was looked at 0 times (limit 1)"));
    let missing = memory
        .missing
        .iter()
        .map(|missing| Reason::new(Weight::LeavesOpen, format!("not seen: {missing}")));
    never.into_iter().chain(missing).collect()
}

fn times(count: u64) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

/// As NVML and the engines' logs give it.
pub(crate) fn mebibytes(bytes: u64) -> String {
    const MIB: f64 = (1 << 20) as f64;
    match bytes {
        0 => "0 MiB".to_owned(),
        // An excess of a few bytes isn't none.
        1..0x10_0000 => format!("{bytes} bytes"),
        _ => format!("{:.0} MiB", bytes as f64 / MIB),
    }
}
