//! A plan in other programs' words: what a person would otherwise write by hand.
//!
//! - [`ray`]: each instance as an application of Ray Serve's: what the controller puts, too
//! - [`ray_serve_llm`]: deployments as Ray's own `ray.serve.llm` has them
//! - [`kuberay`]: a RayService for Kubernetes
//! - [`commands`]: a shell's lines, in the order of starts
//! - [`systemd`]: a unit for each instance

use std::collections::BTreeMap;

use crate::inventory::{DeviceId, DeviceKind, Node};
use crate::plan::PlannedInstance;

pub mod commands;
pub mod kuberay;
pub mod ray;
pub mod ray_serve_llm;
pub mod systemd;

/// The GPUs that an engine sees, in the plan's order; in NVML's count, not in CUDA's.
fn environment(instance: &PlannedInstance, node: &Node) -> BTreeMap<&'static str, String> {
    let name = |id: &DeviceId| match id.0.starts_with("GPU-") {
        true => id.0.clone(),
        false => index(node, id).map_or_else(String::new, |index| index.to_string()),
    };
    let visible: Vec<String> = instance.shares.iter().map(|share| name(&share.device)).collect();
    BTreeMap::from([
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID".to_owned()),
        ("CUDA_VISIBLE_DEVICES", visible.join(",")),
    ])
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
