//! Putting what shall be there.

use std::collections::BTreeMap;

use berth_cluster::ray::package;
use berth_cluster::ray::serve::{self, AppStatus};
use berth_core::emit::ray as emit;
use berth_core::inventory::InstanceId;
use berth_core::plan::{Plan, PlannedInstance};
use serde_json::Value;

use super::decide::Decided;
use super::{RayController, blocking};
use crate::clock::now_ms;
use crate::controller::ControllerError;
use crate::{crash, lease};

/// Between a change that failed and the next.
const PUT_PAUSE_MS: u64 = 2 * 1000;

impl RayController {
    /// Puts what shall be there, if it isn't. Says whether anything was put.
    pub(super) async fn put(
        &mut self,
        plan: &Plan,
        decided: &Decided,
    ) -> Result<bool, ControllerError> {
        let wanted = self.wanted(plan, decided);
        let lease = lease::next(&self.serving, &self.state_id, !wanted.is_empty(), now_ms());
        let own: BTreeMap<&str, &Value> = self
            .serving
            .applications
            .values()
            .filter(|app| app.status != AppStatus::Deleting)
            .filter_map(|app| app.config.as_ref())
            .filter(|config| is_own(config, &self.state_id))
            .filter_map(|config| Some((config["name"].as_str()?, config)))
            .collect();
        let goal: BTreeMap<&str, &Value> = wanted
            .iter()
            .chain(&lease)
            .filter_map(|config| Some((config["name"].as_str()?, config)))
            .collect();
        if goal == own {
            return Ok(false);
        }
        if now_ms() < self.next_put_ms {
            return Ok(true);
        }
        let is_quiet = goal.len() == own.len()
            && goal
                .iter()
                .all(|(name, config)| *name == lease::NAME || own.get(name) == Some(config));
        crash::point();
        let (ray, state_id) = (self.ray.clone(), self.state_id.clone());
        let goal: Vec<Value> = goal.into_values().cloned().collect();
        let change = blocking(move || {
            package::ensure(&ray)?;
            // As late as can be: what others have put in between stays.
            let serving = serve::read(&ray)?;
            let desired = serve::desired(&serving, |config| is_own(config, &state_id), goal);
            serve::put(&ray, &desired)
        });
        match change.await {
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(%error, "the change is tried again");
                self.next_put_ms = now_ms() + PUT_PAUSE_MS;
                self.trouble = Some(error.to_string());
            }
        }
        crash::point();
        Ok(!is_quiet)
    }

    /// The configs of the instances that shall be there. What is there as it is planned keeps the config
    /// that it was put with as far as Ray's own counting goes: a change there would restart it.
    pub(super) fn wanted(&self, plan: &Plan, decided: &Decided) -> Vec<Value> {
        let Decided { stays, starts } = decided;
        let there = |id: &InstanceId| {
            let config = self.application(id)?.config.as_ref()?;
            is_own(config, &self.state_id).then_some(config)
        };
        let unchanged = |planned: &PlannedInstance| {
            let config = there(&planned.id)?;
            let (_, _, digest) = emit::identity(config)?;
            (digest == planned.config()).then_some(config)
        };
        let kept = plan.instances.iter().filter(|one| stays.contains(&one.id)).filter_map(|one| {
            let parts = emit::parts_of(unchanged(one)?, one.shares.len());
            Some((one.id.clone(), parts))
        });
        let counted = emit::counted(plan, &kept.collect());
        let context = emit::Context {
            inventory: &self.inventory,
            name_label: self.spec.name_label.as_deref(),
            owner: &self.state_id,
            module: &package::uri(),
            module_version: package::VERSION,
        };
        let config = |id: &InstanceId| {
            let planned = plan.instance(id);
            let same = planned.and_then(unchanged);
            let new = planned
                .and_then(|planned| emit::application(plan, planned, &counted[id], &context));
            match (same, new) {
                // The order of starts and the module may have changed; what runs needn't restart for that.
                (Some(same), Some(new)) if emit::starts_alike(same, &new) => Some(same.clone()),
                // Its node is away: Ray starts it again when that comes back.
                (Some(same), None) => Some(same.clone()),
                // It runs otherwise than it is planned, and is let end before it starts anew.
                (None, Some(_)) if there(id).is_some() && !starts.contains(id) => {
                    there(id).cloned()
                }
                (_, Some(new)) => Some(new),
                // What the plan doesn't have stays as it is until its requests have ended.
                (None, None) => there(id).cloned(),
            }
        };
        let told = |id| Some(self.with_sleep(plan, id, config(id)?));
        stays.iter().filter_map(told).collect()
    }
}

pub(super) fn is_own(config: &Value, state_id: &str) -> bool {
    let owner = emit::identity(config).map(|(owner, ..)| owner).or_else(|| lease::holder(config));
    owner == Some(state_id)
}
