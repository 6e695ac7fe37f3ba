//! Looks at this machine's memory beside the loop, and journals what was seen and what is wrong.

use std::net::SocketAddr;
use std::time::Duration;

use berth_cluster::local::{self, StateDir};
use berth_core::plan::Plan;
use berth_core::reconcile::Phase;
use berth_core::watch::forensic::{self, Report};
use berth_core::watch::{Changes, EngineLook, Look, Watch};
use berth_engines::{Cause, metrics};

use crate::clock::now_ms;
use crate::journal::{InstanceEntry, Journal, JournalError};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
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
}

/// Looks for as long as it is let, and tells what changes.
///
/// # Errors
/// Where the journal can't be used.
pub async fn watch(dir: &StateDir, tell: impl Fn(Told)) -> Result<(), JournalError> {
    let mut journal = Journal::open(&dir.journal())?;
    let state_id = journal.state_id()?;
    let (mut watch, mut sampled_ms, mut seq, mut plan) = (Watch::default(), 0, None, None);
    let mut seen_seq = None;
    loop {
        let now = journal.current_seq()?;
        if now != seq {
            plan = journal.current()?.map(|journalled| journalled.plan);
            seq = now;
        }
        // What is on a cluster's machines is seen there.
        let here = plan.as_ref().filter(|plan| plan.ray.is_none());
        if here.is_none() && now != seen_seq {
            journal.set_alarms(&[], now_ms())?;
        }
        seen_seq = now;
        if let Some(plan) = here {
            let look = look(&state_id, plan).await;
            let is_time = look.at_ms.saturating_sub(sampled_ms) >= SAMPLE_MS;
            if is_time {
                sampled_ms = look.at_ms;
                journal.sample(&look, plan)?;
            }
            let changes = watch.step(plan, look);
            for report in deaths(&journal, plan, &watch)? {
                if journal.keep_death(&report)? {
                    tell(Told::Death(Box::new(report)));
                }
            }
            if changes != Changes::default() {
                tell(Told::Changes(changes.clone()));
            }
            if is_time || changes != Changes::default() {
                journal.set_alarms(watch.alarms(), now_ms())?;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
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

/// One look at this machine's devices and at the engines of a plan.
pub async fn look(state_id: &str, plan: &Plan) -> Look {
    let id = state_id.to_owned();
    let looking = tokio::task::spawn_blocking(move || local::look(Some(&id), now_ms()));
    let mut look = looking.await.unwrap_or_default();
    look.engines = engines(plan, &look).await;
    look
}

/// What the engines that run say, all asked at once.
async fn engines(plan: &Plan, look: &Look) -> Vec<EngineLook> {
    let runs = |id| look.devices.iter().any(|one| one.held_by(id).is_some_and(|held| held.0 > 0));
    let asking = plan.instances.iter().filter(|one| runs(&one.id)).filter_map(|one| {
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
