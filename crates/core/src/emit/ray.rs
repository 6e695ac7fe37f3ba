//! Instances as applications of Ray Serve, one each: pinned to its node and its GPUs.
//!
//! Written against Ray 2.60.0. Ray picks GPUs itself and only counts them: which ones an engine sees is said
//! in its environment, and what Ray counts adds up to all of each GPU that the plan uses, so that nothing
//! else is put onto it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{environment, index, quoted};
use crate::digest::Digest;
use crate::inventory::{DeviceId, InstanceId, Inventory, Node};
use crate::plan::{Plan, PlannedInstance};

/// Ray's label that every node has.
const NODE_ID: &str = "ray.io/node-id";
/// The label that names nodes where the spec names none.
pub const NAME_LABEL: &str = "machine";
/// Ray counts GPUs in parts of this.
const PARTS: f64 = 10_000.0;
/// An engine that isn't ready after this long is given up.
const START_LIMIT_S: u64 = 900;

/// What an application needs beside the plan.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The nodes.
    pub inventory: &'a Inventory,
    /// The label whose value is a node's name.
    pub name_label: Option<&'a str>,
    /// Whose applications these are.
    pub owner: &'a str,
    /// Where Ray finds the module.
    pub module: &'a str,
    /// The module's version.
    pub module_version: &'a str,
}

/// The name of an instance's application.
pub fn name(id: &InstanceId) -> String {
    format!("berth-{id}")
}

/// Whose application a config is, which instance it runs, and how that was planned; none for somebody
/// else's.
pub fn identity(config: &Value) -> Option<(&str, InstanceId, Digest)> {
    let args = &config["args"];
    let text = |name: &str| args[name].as_str();
    let id = InstanceId(text("instance")?.to_owned());
    Some((text("owner")?, id, Digest::from_hex(text("config")?)))
}

/// The application of an instance; none where its node is not there. `counted` are the parts of its GPUs
/// that Ray counts, in the order of its shares.
pub fn application(
    plan: &Plan,
    instance: &PlannedInstance,
    counted: &[f64],
    context: &Context<'_>,
) -> Option<Value> {
    let node = context.inventory.nodes.iter().find(|node| node.name == instance.node)?;
    let gpus: Vec<Value> = instance
        .shares
        .iter()
        .map(|share| {
            let (id, bytes) = (&share.device, share.resident_ready);
            json!({ "id": id, "index": index(node, id), "bytes": bytes.0 })
        })
        .collect();
    let mut command = vec![instance.binary.clone()];
    command.extend(instance.args.iter().cloned());
    let mut actor = json!({ "num_cpus": 0, "label_selector": selector(node, context) });
    let mut deployment = json!({
        "name": "Engine",
        "num_replicas": 1,
        "max_ongoing_requests": 100_000,
        "health_check_period_s": 5,
        "health_check_timeout_s": 30,
        "graceful_shutdown_timeout_s": 40,
    });
    match counted {
        [one] => actor["num_gpus"] = json!(one),
        all if all.iter().all(|part| *part == 1.0) => actor["num_gpus"] = json!(all.len()),
        parts => {
            let bundle = |part: &f64| match *part > 0.0 {
                true => json!({ "GPU": part }),
                false => json!({ "CPU": 0.001 }),
            };
            let bundles: Vec<Value> = parts.iter().map(bundle).collect();
            deployment["placement_group_bundles"] = json!(bundles);
            deployment["placement_group_strategy"] = json!("STRICT_PACK");
            deployment["placement_group_bundle_label_selector"] = json!([selector(node, context)]);
        }
    }
    deployment["ray_actor_options"] = actor;
    if instance.sleep.is_some() {
        deployment["user_config"] = json!({ "sleep_level": 0 });
    }
    Some(json!({
        "name": name(&instance.id),
        "route_prefix": format!("/{}", instance.id),
        "import_path": "berth_serve:build",
        "runtime_env": { "working_dir": context.module },
        "args": {
            "module_version": context.module_version,
            "owner": context.owner,
            "instance": instance.id,
            "config": instance.config(),
            "node": instance.node,
            "host": instance.host,
            "port": instance.port,
            "command": command,
            "health": instance.engine.health_path(),
            "library": instance.library,
            "sleeps": instance.sleep.is_some(),
            "folder": instance.folder,
            "environment": environment(instance, node),
            "gpus": gpus,
            "after": before(plan, instance),
            "start_limit_s": START_LIMIT_S,
        },
        "deployments": [deployment],
    }))
}

/// By the label that names nodes where there is one: Ray's own id changes when a node comes back.
fn selector(node: &Node, context: &Context<'_>) -> Value {
    let label = context.name_label.filter(|label| node.labels.contains_key(*label));
    match (label, &node.id) {
        (Some(label), _) => json!({ label: node.labels[label] }),
        (None, Some(id)) => json!({ NODE_ID: id }),
        // A node that is only written down will have its name as a label.
        (None, None) => json!({ context.name_label.unwrap_or(NAME_LABEL): node.name }),
    }
}

/// Instances that start before it on any of its GPUs.
pub(super) fn before<'a>(plan: &'a Plan, instance: &PlannedInstance) -> Vec<&'a InstanceId> {
    let earlier = plan.instances.iter().take_while(|one| one.id != instance.id);
    let shares = |one: &&PlannedInstance| {
        one.node == instance.node && one.shares.iter().any(|share| instance.uses(&share.device))
    };
    earlier.filter(shares).map(|one| &one.id).collect()
}

/// The parts of its GPUs that Ray counts for each instance of a plan: all of a GPU that it has to itself, of
/// a shared one as much as it takes of it. Instances of `kept` keep the parts that they were put with, so
/// that they needn't restart; the others divide what is left.
pub fn counted(
    plan: &Plan,
    kept: &BTreeMap<InstanceId, Vec<f64>>,
) -> BTreeMap<InstanceId, Vec<f64>> {
    type Gpu<'a> = (&'a str, &'a DeviceId);
    let mut left: BTreeMap<Gpu<'_>, f64> = BTreeMap::new();
    let mut bytes: BTreeMap<Gpu<'_>, u64> = BTreeMap::new();
    for instance in &plan.instances {
        for (at, share) in instance.shares.iter().enumerate() {
            let gpu = (instance.node.as_str(), &share.device);
            let left = left.entry(gpu).or_insert(1.0);
            match kept.get(&instance.id).and_then(|parts| parts.get(at)) {
                Some(part) => *left -= part,
                None => *bytes.entry(gpu).or_default() += share.footprint.total().0,
            }
        }
    }
    let part = |instance: &PlannedInstance, at: usize| {
        let share = &instance.shares[at];
        let gpu = (instance.node.as_str(), &share.device);
        let of = share.footprint.total().0 as f64 / bytes[&gpu].max(1) as f64;
        ((left[&gpu].max(0.0) * of + 1e-9) * PARTS).floor() / PARTS
    };
    let parts = |instance: &PlannedInstance| match kept.get(&instance.id) {
        Some(parts) => parts.clone(),
        None => (0..instance.shares.len()).map(|at| part(instance, at)).collect(),
    };
    plan.instances.iter().map(|one| (one.id.clone(), parts(one))).collect()
}

/// The parts that an application was put with, for so many GPUs.
pub fn parts_of(config: &Value, gpus: usize) -> Vec<f64> {
    let deployment = &config["deployments"][0];
    if let Some(bundles) = deployment["placement_group_bundles"].as_array() {
        return bundles.iter().map(|bundle| bundle["GPU"].as_f64().unwrap_or(0.0)).collect();
    }
    let all = deployment["ray_actor_options"]["num_gpus"].as_f64().unwrap_or(0.0);
    vec![all / gpus.max(1) as f64; gpus]
}

/// An application with its engine told to sleep at a level, or to be awake at level 0; as it is where it was put by a
/// module that can't tell it.
pub fn with_sleep(mut config: Value, level: u8) -> Value {
    if let Some(told) = config.pointer_mut("/deployments/0/user_config/sleep_level") {
        *told = json!(level);
    }
    config
}

/// Whether an application's engine can be told to sleep.
pub fn can_sleep(config: &Value) -> bool {
    !config["deployments"][0]["user_config"]["sleep_level"].is_null()
}

/// Whether two applications start the same thing in the same place. The order of starts, the bytes that are
/// waited for and the module that does it may differ: nothing needs to restart for that.
pub fn starts_alike(one: &Value, other: &Value) -> bool {
    let selector =
        |config: &Value| config["deployments"][0]["ray_actor_options"]["label_selector"].clone();
    identity(one) == identity(other) && selector(one) == selector(other)
}

/// A whole Serve config that puts a plan in place by hand.
pub fn config(plan: &Plan, context: &Context<'_>) -> Value {
    let counted = counted(plan, &BTreeMap::new());
    let applications = plan.instances.iter();
    let applications: Vec<Value> =
        applications.filter_map(|one| application(plan, one, &counted[&one.id], context)).collect();
    json!({ "proxy_location": "HeadOnly", "applications": applications })
}

/// The lines that start a Ray cluster of an inventory's nodes, with labels: the first is the head.
pub fn starts(inventory: &Inventory, name_label: &str) -> Vec<String> {
    let line = |(at, node): (usize, &Node)| {
        let mut labels: Vec<String> =
            node.labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
        if !node.labels.contains_key(name_label) {
            labels.insert(0, format!("{name_label}={}", node.name));
        }
        let gpus = node.devices.iter().filter(|device| device.is_gpu()).count();
        let join = if at == 0 { "--head" } else { "--address=HEAD:6379" };
        let labels = quoted(&labels.join(","));
        format!("{}: ray start {join} --num-gpus={gpus} --labels {labels}", node.name)
    };
    inventory.nodes.iter().enumerate().map(line).collect()
}
