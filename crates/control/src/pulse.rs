//! Engines that were ready are asked now and then whether they still are, beside the loop: one that
//! hangs must not hold up the others.

use std::collections::HashMap;

use berth_core::inventory::InstanceId;
use berth_engines::{Health, health};
use tokio::task::JoinHandle;

/// Between two questions to the same engine.
const INTERVAL_MS: u64 = 10 * 1000;
/// Answers that may be missing in a row.
const MISSES: u32 = 3;

/// The questions that are open.
#[derive(Debug, Default)]
pub(crate) struct Pulse(HashMap<InstanceId, Check>);

#[derive(Debug)]
struct Check {
    asked_at_ms: u64,
    misses: u32,
    asking: Option<JoinHandle<Health>>,
}

impl Pulse {
    /// Asks those whose time has come, hears those who have answered, and names those of `ready`
    /// (instances and their ports) that missed too many answers in a row.
    pub(crate) async fn beat(
        &mut self,
        ready: &[(InstanceId, u16)],
        now_ms: u64,
    ) -> Vec<InstanceId> {
        self.0.retain(|id, _| ready.iter().any(|(ready, _)| ready == id));
        let mut lost = Vec::new();
        for (id, port) in ready {
            let check = self.0.entry(id.clone()).or_insert(Check {
                asked_at_ms: now_ms,
                misses: 0,
                asking: None,
            });
            if let Some(asking) = check.asking.take_if(|asking| asking.is_finished()) {
                let answered = matches!(asking.await, Ok(Health::Ready));
                check.misses = if answered { 0 } else { check.misses + 1 };
            }
            if check.asking.is_none() && now_ms.saturating_sub(check.asked_at_ms) >= INTERVAL_MS {
                check.asked_at_ms = now_ms;
                check.asking = Some(tokio::spawn(health::ask(*port)));
            }
            if check.misses >= MISSES {
                lost.push(id.clone());
            }
        }
        lost
    }
}
