//! Deployments as `ray.serve.llm` of Ray 2.60 has them: vLLM inside of Ray's replicas, with their HTTP in
//! front.
//!
//! Ray counts whole GPUs there or the same part of each, and chooses which. So only models that have their GPUs
//! to themselves can be written so.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::plan::{Plan, PlannedInstance};
use crate::spec::{Deployment, EngineKind, FlagValue};

/// What can't be written so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotLlm {
    /// Its engine isn't vLLM.
    #[error("{0} is not vLLM's: ray.serve.llm runs nothing else")]
    Engine(String),
    /// It shares GPUs.
    #[error("{0} shares GPUs with {1}, and ray.serve.llm can't say which GPUs those are")]
    Shares(String, String),
}

/// The Serve config.
///
/// # Errors
/// Where a deployment can't be written so.
pub fn config(plan: &Plan, deployments: &[Deployment]) -> Result<Value, NotLlm> {
    let mut groups: BTreeMap<&str, Vec<&PlannedInstance>> = BTreeMap::new();
    for instance in &plan.instances {
        if instance.engine != EngineKind::Vllm {
            return Err(NotLlm::Engine(instance.id.to_string()));
        }
        let shares = |other: &&PlannedInstance| {
            other.id != instance.id
                && other.node == instance.node
                && other.shares.iter().any(|share| instance.uses(&share.device))
        };
        if let Some(other) = plan.instances.iter().find(shares) {
            return Err(NotLlm::Shares(instance.id.to_string(), other.id.to_string()));
        }
        groups.entry(&instance.deployment).or_default().push(instance);
    }
    let groups = groups.iter().filter_map(|(name, instances)| {
        let deployment = deployments.iter().find(|one| one.name == *name)?;
        Some(llm(deployment, instances))
    });
    let configs: Vec<Value> = groups.collect();
    Ok(json!({
        "applications": [{
            "name": "llm",
            "route_prefix": "/",
            "import_path": "ray.serve.llm:build_openai_app",
            "args": { "llm_configs": configs },
        }],
    }))
}

fn llm(deployment: &Deployment, instances: &[&PlannedInstance]) -> Value {
    let value = |value: &FlagValue| serde_json::to_value(value).unwrap_or_default();
    let flags: Map<String, Value> =
        deployment.flags.iter().map(|(name, flag)| (name.replace('-', "_"), value(flag))).collect();
    json!({
        "model_loading_config": {
            "model_id": deployment.model,
            "model_source": deployment.source.to_string(),
        },
        "engine_kwargs": flags,
        "deployment_config": {
            "num_replicas": instances.len(),
            // Ray's own default never holds a request back.
            "max_ongoing_requests": 256,
        },
        "placement_group_config": {
            "bundle_per_worker": { "GPU": 1, "CPU": 1 },
            "strategy": "STRICT_PACK",
        },
    })
}
