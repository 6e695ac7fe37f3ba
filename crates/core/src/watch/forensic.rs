//! Why an engine died of memory: who held what before, and which line of the plan broke.

use serde::{Deserialize, Serialize};

use super::alarm::tolerance;
use super::look::{DeviceLook, Holder, Look};
use crate::inventory::{DeviceId, InstanceId};
use crate::plan::{Plan, PlannedInstance};
use crate::units::Bytes;

/// What came before is looked at for so long.
pub const BEFORE_MS: u64 = 60_000;

/// What is kept of a death.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Who died.
    pub instance: InstanceId,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// What its log or its end said.
    pub said: String,
    /// Which line of the plan broke.
    pub broke: Broke,
    /// The same in words, with bytes.
    pub finding: String,
    /// What to change.
    pub proposal: String,
    /// Its devices as they were when least was free of them.
    pub devices: Vec<Tightest>,
}

/// Which line of the plan broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Broke {
    /// It held more than planned.
    OverPlan,
    /// Another instance held more than planned.
    Neighbour,
    /// Others held what was planned for.
    Foreign,
    /// The device was full, and all that was seen was as planned.
    Full,
    /// The device had room: something limited the process itself.
    Limit,
    /// Nothing was seen of its devices.
    Unseen,
}

/// A device when least was free of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tightest {
    /// When.
    pub at_ms: u64,
    /// What was seen.
    pub look: DeviceLook,
    /// What the plan puts on it.
    pub planned: Bytes,
    /// What the plan gives the instance there.
    pub planned_for_it: Bytes,
    /// The most that it was seen to hold there.
    pub most_held: Bytes,
}

/// What is to be said of a death, by the looks before it.
pub fn report(
    plan: &Plan,
    dead: &PlannedInstance,
    past: &[&Look],
    at_ms: u64,
    said: String,
) -> Report {
    let before: Vec<&Look> = past
        .iter()
        .copied()
        .filter(|look| look.at_ms <= at_ms && look.at_ms + BEFORE_MS >= at_ms)
        .collect();
    let shares = dead.shares.iter().map(|share| &share.device);
    let devices: Vec<Tightest> =
        shares.filter_map(|device| tightest(plan, dead, device, &before)).collect();
    let found = devices.iter().map(|one| cause(plan, dead, one)).min_by_key(|(broke, ..)| *broke);
    let (broke, finding, proposal) = found.unwrap_or_else(|| {
        (
            Broke::Unseen,
            "nobody looked at its devices in the minute before".to_owned(),
            "let `berth serve` or `berth up` run, which look, and see whether it happens again"
                .to_owned(),
        )
    });
    Report { instance: dead.id.clone(), at_ms, said, broke, finding, proposal, devices }
}

fn tightest(
    plan: &Plan,
    dead: &PlannedInstance,
    device: &DeviceId,
    before: &[&Look],
) -> Option<Tightest> {
    let seen = || {
        let here =
            before.iter().filter_map(|look| Some((look.at_ms, look.device(&dead.node, device)?)));
        here.filter(|(_, one)| one.free().is_some())
    };
    let (at_ms, look) = seen().min_by_key(|(_, one)| one.free())?;
    Some(Tightest {
        at_ms,
        look: look.clone(),
        planned: plan.bytes_on(&dead.node, device),
        planned_for_it: dead.bytes_on(&dead.node, device),
        most_held: seen().filter_map(|(_, one)| one.held_by(&dead.id)).max().unwrap_or_default(),
    })
}

/// What broke on a device; the first that holds.
fn cause(plan: &Plan, dead: &PlannedInstance, at: &Tightest) -> (Broke, String, String) {
    let place = format!("{} {}", dead.node, at.look.device);
    let over = at.most_held - at.planned_for_it;
    if over > tolerance(at.planned_for_it) {
        return (
            Broke::OverPlan,
            format!("it held {} on {place}, {over} more than its plan", at.most_held),
            format!(
                "plan with {over} more: raise `headroom` in [cluster] by that, or let `berth calibrate` learn from its log"
            ),
        );
    }
    let neighbours = plan.instances.iter().filter(|one| one.id != dead.id && one.node == dead.node);
    let outgrown = neighbours.filter_map(|one| {
        let planned = one.bytes_on(&one.node, &at.look.device);
        let over = at.look.held_by(&one.id)? - planned;
        (over > tolerance(planned)).then_some((one, over))
    });
    if let Some((one, over)) = outgrown.max_by_key(|(_, over)| *over) {
        return (
            Broke::Neighbour,
            format!("{} held {over} more than its plan on {place}", one.id),
            format!(
                "give {} more room or less to do: its cache, its sequences, or another device",
                one.id
            ),
        );
    }
    let foreign = at.look.foreign().unwrap_or_default();
    let taken = foreign + at.planned - at.look.total;
    if taken > Bytes::ZERO {
        let most = at.look.holders.iter().flatten().filter(|one| one.instance.is_none());
        let who = most.max_by_key(|one| one.bytes).map_or_else(
            String::new,
            |Holder { name, pid, bytes, .. }| {
                format!(", most of it {name} (process {pid}) with {bytes}")
            },
        );
        return (
            Broke::Foreign,
            format!("others held {foreign} on {place}{who}: {taken} of what was planned for"),
            "end what took it, or plan again: `berth plan` counts with what others hold".to_owned(),
        );
    }
    let free = at.look.free().unwrap_or_default();
    let wanted = at.planned_for_it - at.look.held_by(&dead.id).unwrap_or_default();
    if free > wanted {
        return (
            Broke::Limit,
            format!("{free} were free on {place}, and by its plan it wanted at most {wanted} more"),
            format!(
                "look for a limit on the process itself (ulimit, a container), which needs {}; or for what took it between two looks",
                at.planned_for_it
            ),
        );
    }
    (
        Broke::Full,
        format!("{free} were free on {place}, and by its plan it wanted {wanted} more"),
        "something that was not seen held the rest: look with `berth top` while it starts again"
            .to_owned(),
    )
}
