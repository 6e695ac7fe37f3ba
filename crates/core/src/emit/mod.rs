//! A plan in other programs' words: what a person would otherwise write by hand.
//!
//! - [`ray`]: each instance as an application of Ray Serve's: what the controller puts, too
//! - [`ray_serve_llm`]: deployments as Ray's own `ray.serve.llm` has them
//! - [`kuberay`]: a RayService for Kubernetes
//! - [`commands`]: a shell's lines, in the order of starts
//! - [`systemd`]: a unit for each instance

use std::collections::BTreeMap;

use serde_json::json;

use crate::inventory::{DeviceId, DeviceKind, Node};
use crate::plan::PlannedInstance;

pub mod commands;
pub mod kuberay;
pub mod ray;
pub mod ray_serve_llm;
pub mod systemd;

/// The environment of an engine: the GPUs that it sees, in the plan's order, in NVML's count and not in CUDA's; and
/// what it is told that way.
fn environment(instance: &PlannedInstance, node: &Node) -> BTreeMap<String, String> {
    let name = |id: &DeviceId| match id.0.starts_with("GPU-") {
        true => id.0.clone(),
        false => index(node, id).map_or_else(String::new, |index| index.to_string()),
    };
    let visible: Vec<String> = instance.shares.iter().map(|share| name(&share.device)).collect();
    let mut environment = instance.environment.clone();
    environment.insert("CUDA_DEVICE_ORDER".to_owned(), "PCI_BUS_ID".to_owned());
    environment.insert("CUDA_VISIBLE_DEVICES".to_owned(), visible.join(","));
    environment
}

/// What a person tells an Ollama server once it runs: to pull its model, and to load it for good.
fn loading(instance: &PlannedInstance) -> Vec<String> {
    let Some(library) = &instance.library else { return Vec::new() };
    let address = format!("http://{}:{}", instance.host, instance.port);
    let post = |path: &str, body: serde_json::Value| {
        format!("curl -fsS {address}{path} -d {}", quoted(&body.to_string()))
    };
    vec![
        post("/api/pull", json!({ "model": library.name })),
        post("/api/generate", json!({ "model": library.name, "keep_alive": -1 })),
    ]
}

/// NVML's index of a GPU.
fn index(node: &Node, id: &DeviceId) -> Option<u32> {
    let device = node.devices.iter().find(|device| device.id == *id)?;
    match &device.kind {
        DeviceKind::Gpu { index, .. } => Some(*index),
        DeviceKind::Host => None,
    }
}

/// A word as a POSIX shell reads it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}
