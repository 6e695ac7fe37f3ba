//! A RayService for KubeRay: the cluster that a plan asks for, and the Serve config to run on it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::inventory::{Inventory, Node};
use crate::plan::Plan;

/// The manifest (`ray.io/v1`). `serve_config` is the text of a Serve config, `image` an image with Ray, the
/// module and the engines.
pub fn manifest(plan: &Plan, inventory: &Inventory, serve_config: &str, image: &str) -> Value {
    let used: BTreeMap<&str, &Node> = inventory
        .nodes
        .iter()
        .filter(|node| plan.instances.iter().any(|one| one.node == node.name))
        .map(|node| (node.name.as_str(), node))
        .collect();
    let workers: Vec<Value> = used.values().map(|node| worker(node, image)).collect();
    json!({
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": { "name": "berth", "annotations": { "berth/plan": plan.digest() } },
        "spec": {
            "serveConfigV2": serve_config,
            "rayClusterConfig": {
                "rayVersion": "2.60.0",
                "headGroupSpec": {
                    "rayStartParams": { "num-gpus": "0", "dashboard-host": "0.0.0.0" },
                    "template": { "spec": { "containers": [{
                        "name": "ray-head",
                        "image": image,
                        "resources": { "requests": { "cpu": "2", "memory": "8Gi" }, "limits": { "memory": "8Gi" } },
                    }] } },
                },
                "workerGroupSpecs": workers,
            },
        },
    })
}

/// One group a node: instances are pinned to nodes, so each needs its own label.
fn worker(node: &Node, image: &str) -> Value {
    let gpus = node.devices.iter().filter(|device| device.is_gpu()).count();
    let mut labels: Vec<String> =
        node.labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
    if !node.labels.contains_key(super::ray::NAME_LABEL) {
        labels.push(format!("{}={}", super::ray::NAME_LABEL, node.name));
    }
    json!({
        "groupName": node.name.to_lowercase().replace(['_', '.', ':'], "-"),
        "replicas": 1,
        "minReplicas": 1,
        "maxReplicas": 1,
        "rayStartParams": { "labels": labels.join(",") },
        "template": { "spec": { "containers": [{
            "name": "ray-worker",
            "image": image,
            "resources": { "limits": { "nvidia.com/gpu": gpus.to_string() } },
        }] } },
    })
}
