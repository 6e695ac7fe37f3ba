//! Looks at this machine's memory beside the loop, and journals what was seen and what is wrong.

use std::net::SocketAddr;
use std::time::Duration;

use berth_cluster::local::{self, StateDir};
use berth_core::plan::Plan;
use berth_core::watch::{Changes, EngineLook, Look, Watch};
use berth_engines::metrics;

use crate::clock::now_ms;
use crate::journal::{Journal, JournalError};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Between two samples in the ledger over time.
const SAMPLE_MS: u64 = 10_000;

/// Looks for as long as it is let, and tells what changes.
///
/// # Errors
/// Where the journal can't be used.
pub async fn watch(dir: &StateDir, tell: impl Fn(&Changes)) -> Result<(), JournalError> {
    let mut journal = Journal::open(&dir.journal())?;
    let state_id = journal.state_id()?;
    let (mut watch, mut sampled_ms, mut seq, mut plan) = (Watch::default(), 0, None, None);
    loop {
        let now = journal.current_seq()?;
        if now != seq {
            plan = journal.current()?.map(|journalled| journalled.plan);
            seq = now;
        }
        // What is on a cluster's machines is seen there.
        if let Some(plan) = plan.as_ref().filter(|plan| plan.ray.is_none()) {
            let look = look(&state_id, plan).await;
            let is_time = look.at_ms.saturating_sub(sampled_ms) >= SAMPLE_MS;
            if is_time {
                sampled_ms = look.at_ms;
                journal.sample(&look, plan)?;
            }
            let changes = watch.step(plan, look);
            if changes != Changes::default() {
                tell(&changes);
            }
            if is_time || changes != Changes::default() {
                journal.set_alarms(watch.alarms(), now_ms())?;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// One look at this machine's devices and at the engines of a plan.
pub async fn look(state_id: &str, plan: &Plan) -> Look {
    let id = state_id.to_owned();
    let looking = tokio::task::spawn_blocking(move || local::look(Some(&id), now_ms()));
    let mut look = looking.await.unwrap_or_default();
    look.engines = engines(plan, &look).await;
    look
}

/// What the engines that run say; each in its own time, none longer than health checks take.
async fn engines(plan: &Plan, look: &Look) -> Vec<EngineLook> {
    let runs = |id| look.devices.iter().any(|one| one.held_by(id).is_some_and(|held| held.0 > 0));
    let asking = plan.instances.iter().filter(|one| runs(&one.id)).filter_map(|one| {
        let address = SocketAddr::new(one.host.parse().ok()?, one.port);
        let (id, engine) = (one.id.clone(), one.engine);
        Some(tokio::spawn(async move { metrics::ask(&id, engine, address).await }))
    });
    let mut engines = Vec::new();
    for asked in asking.collect::<Vec<_>>() {
        engines.extend(asked.await.ok().flatten());
    }
    engines
}
