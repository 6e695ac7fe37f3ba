//! Looks at memory beside the loop, journals what was seen and what is wrong, and says what should change.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use berth_cluster::local::{self, StateDir};
use berth_core::adjust::law::FREEZE_MS;
use berth_core::adjust::{Freeze, Law, Mode, Wish};
use berth_core::inventory::InstanceId;
use berth_core::plan::{Plan, PlannedInstance};
use berth_core::reconcile::{Phase, with_rollbacks};
use berth_core::spec::RaySpec;
use berth_core::watch::forensic::{self, Report};
use berth_core::watch::{Alarm, Changes, EngineLook, Look, Watch};
use berth_engines::{Cause, metrics};

use crate::clock::now_ms;
use crate::journal::{InstanceEntry, Journal, JournalError};
use crate::ray::Processes;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Between two looks at a Ray cluster, whose dashboard has its nodes' reports from every few seconds.
const LOOK_AT_RAY: Duration = Duration::from_secs(5);
/// Between two samples in the ledger over time.
const SAMPLE_MS: u64 = 10_000;
/// Alarms are noted with each sample: older ones are nobody's any more.
pub const STALE_MS: u64 = 3 * SAMPLE_MS;

/// What is told.
#[derive(Clone, Debug)]
pub enum Told {
    /// Alarms have come or gone.
    Changes(Changes),
    /// An engine has died of memory.
    Death(Box<Report>),
    /// A deployment should have more memory or less, as things were at a look.
    Wish(Wish, Box<Look>),
}

/// Looks for as long as it is let, tells what changes, and shows each look with the plan as it runs and what is wrong.
///
/// # Errors
/// Where the journal can't be used.
pub async fn watch(
    dir: &StateDir,
    tell: impl Fn(Told),
    show: impl Fn(&Plan, &Look, &[Alarm]),
) -> Result<(), JournalError> {
    let mut journal = Journal::open(&dir.journal())?;
    let state_id = journal.state_id()?;
    let (mut watch, mut sampled_ms, mut seq, mut plan) = (Watch::default(), 0, None, None);
    let (mut law, mut processes) = (Law::default(), Processes::default());
    loop {
        let now = journal.current_seq()?;
        if now != seq {
            plan = journal.current()?.map(|journalled| journalled.plan);
            seq = now;
            // What was seen under another plan says nothing of this one.
            law = Law::default();
        }
        let mut pause = LOOK;
        if let Some(target) = &plan {
            if target.ray.is_some() {
                pause = LOOK_AT_RAY;
            }
            let plan = &as_it_runs(target, &journal)?;
            let look = look(&state_id, plan, &mut processes).await;
            let is_time = look.at_ms.saturating_sub(sampled_ms) >= SAMPLE_MS;
            if is_time {
                sampled_ms = look.at_ms;
                journal.sample(&look, plan)?;
            }
            let changes = watch.step(plan, look.clone());
            if let Some(look) = watch.last() {
                show(plan, look, watch.alarms());
            }
            let mut frozen = journal.frozen()?;
            let mut wish = None;
            for report in deaths(&journal, plan, &watch)? {
                if journal.keep_death(&report)? {
                    freeze(&journal, &mut frozen, plan, &report.instance, look.at_ms)?;
                    let less = law.died(plan, &report.instance, look.at_ms);
                    wish = wish.or(less);
                    tell(Told::Death(Box::new(report)));
                }
            }
            if !plan.adjustments.is_empty() {
                let is_adjusted = |one: &&PlannedInstance| {
                    plan.adjustments.iter().any(|it| it.deployment == one.deployment)
                };
                for PlannedInstance { id, .. } in journal.rollbacks()?.values().filter(is_adjusted)
                {
                    freeze(&journal, &mut frozen, plan, id, look.at_ms)?;
                }
            }
            let other = law.step(plan, &look, watch.alarms(), &frozen);
            let wish = wish.or(other);
            if let Some(wish) = wish.filter(|_| plan.adjust.mode > Mode::Off) {
                tell(Told::Wish(wish, Box::new(look)));
            }
            if changes != Changes::default() {
                tell(Told::Changes(changes.clone()));
            }
            if is_time || changes != Changes::default() {
                journal.set_alarms(watch.alarms(), now_ms())?;
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// The plan with instances that have not changed yet, or went back, as they run: what they hold is to be measured by
/// that.
pub fn as_it_runs(plan: &Plan, journal: &Journal) -> Result<Plan, JournalError> {
    let (records, proven) = (journal.instances()?, journal.proven()?);
    let runs_as_it_was = |earlier: &PlannedInstance| {
        let record = records.get(&earlier.id).map(|entry| &entry.record);
        let planned = plan.instance(&earlier.id);
        planned.is_some_and(|planned| planned != earlier)
            && record.is_some_and(|record| record.config == earlier.config())
    };
    let earlier = proven.into_iter().filter(|(_, one)| runs_as_it_was(one)).collect();
    Ok(with_rollbacks(plan, &earlier))
}

/// An instance's deployment gets no more memory for a day from now; a freeze that is on goes on as it was.
fn freeze(
    journal: &Journal,
    frozen: &mut Vec<Freeze>,
    plan: &Plan,
    id: &InstanceId,
    now_ms: u64,
) -> Result<(), JournalError> {
    let Some(deployment) = plan.instance(id).map(|one| one.deployment.clone()) else {
        return Ok(());
    };
    frozen.retain(|one| one.until_ms > now_ms);
    if frozen.iter().any(|one| one.deployment == deployment) {
        return Ok(());
    }
    frozen.push(Freeze { deployment, until_ms: now_ms + FREEZE_MS });
    journal.set_frozen(frozen)
}

/// Reports on engines that have died of memory within what is remembered.
fn deaths(journal: &Journal, plan: &Plan, watch: &Watch) -> Result<Vec<Report>, JournalError> {
    let Some(now_ms) = watch.last().map(|look| look.at_ms) else { return Ok(Vec::new()) };
    let mut reports = Vec::new();
    for (id, InstanceEntry { record, diagnosis, .. }) in journal.instances()? {
        let has_failed = matches!(record.phase, Phase::Backoff { .. } | Phase::Failed);
        let is_recent = record.since_ms + forensic::BEFORE_MS >= now_ms;
        let (Some(diagnosis), Some(dead)) = (diagnosis, plan.instance(&id)) else { continue };
        let is_of_memory = match diagnosis.cause {
            Cause::OutOfMemory => true,
            // The kernel kills without a word in the engine's log.
            Cause::Killed | Cause::Unknown => watch.kernel_has_killed(record.since_ms),
            _ => false,
        };
        if has_failed && is_recent && is_of_memory {
            let said = diagnosis.to_string();
            reports.push(forensic::report(plan, dead, &watch.looks(), record.since_ms, said));
        }
    }
    Ok(reports)
}

/// One look at the devices and the engines of a plan. What is known of processes is kept from look to look.
pub async fn look(state_id: &str, plan: &Plan, processes: &mut Processes) -> Look {
    let (id, planned, mut known) = (state_id.to_owned(), plan.clone(), std::mem::take(processes));
    let looking = tokio::task::spawn_blocking(move || {
        let (look, running) = match &planned.ray {
            Some(ray) => at_ray(ray, &id, &mut known),
            None => here(&id),
        };
        (look.doubted(&planned, &running), running, known)
    });
    let (mut look, running);
    (look, running, *processes) = looking.await.unwrap_or_default();
    look.engines = engines(plan, &running).await;
    look
}

/// What this machine says, and which instances run here.
fn here(state_id: &str) -> (Look, BTreeSet<InstanceId>) {
    let look = local::look(Some(state_id), now_ms());
    let held = look.devices.iter().flat_map(|device| device.holders.iter().flatten());
    let running = held.filter_map(|one| one.instance.clone()).collect();
    (look, running)
}

/// What Ray says that its machines' devices hold, and which instances run there.
fn at_ray(ray: &RaySpec, state_id: &str, known: &mut Processes) -> (Look, BTreeSet<InstanceId>) {
    match crate::ray::observe_processes(ray, state_id, known) {
        Ok(inventory) => {
            let running = inventory.instances.iter().map(|one| one.id.clone()).collect();
            (Look::of_inventory(&inventory, now_ms()), running)
        }
        Err(error) => {
            let notes = vec![format!("the cluster can't be seen: {error}")];
            (Look { at_ms: now_ms(), notes, ..Look::default() }, BTreeSet::new())
        }
    }
}

/// What the engines that run say, all asked at once.
pub async fn engines(plan: &Plan, running: &BTreeSet<InstanceId>) -> Vec<EngineLook> {
    let runs = |one: &&PlannedInstance| running.contains(&one.id);
    let asking = plan.instances.iter().filter(runs).filter_map(|one| {
        let address = SocketAddr::new(one.host.parse().ok()?, one.port);
        let (id, engine) = (one.id.clone(), one.engine);
        Some(tokio::spawn(async move {
            // One that hangs must not hold up the others.
            let asking = metrics::ask(&id, engine, address);
            tokio::time::timeout(LOOK, asking).await.ok().flatten()
        }))
    });
    let mut engines = Vec::new();
    for asked in asking.collect::<Vec<_>>() {
        engines.extend(asked.await.ok().flatten());
    }
    engines
}
