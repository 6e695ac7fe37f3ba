//! The inventory of this machine.

use std::collections::HashSet;

use berth_core::inventory::{Inventory, Node};
use berth_core::units::Bytes;

use super::process;
use crate::{nvml, procfs};

/// Why this machine can't be observed.
#[derive(Debug, thiserror::Error)]
#[error("the operating system's figures can't be read from /proc")]
pub struct ObserveError(#[from] ::procfs::ProcError);

/// Looks at this machine: its memory, its GPUs, taken ports, and the instances of this state
/// folder that run.
///
/// # Errors
/// Where /proc can't be read; GPUs that can't be read are notes in the inventory.
pub fn observe(state_id: &str) -> Result<Inventory, ObserveError> {
    let instances = process::running(state_id);
    let own: Bytes = instances.iter().map(|instance| instance.memory.anonymous).sum();
    let gpus = nvml::gpus();
    let mut devices = vec![procfs::host(own)?];
    devices.extend(gpus.devices);
    let own_sockets: HashSet<u64> =
        instances.iter().flat_map(|i| &i.pids).flat_map(|pid| procfs::sockets(*pid)).collect();
    let ports_taken = procfs::listening_ports()?
        .into_iter()
        .filter(|(_, sockets)| !sockets.iter().all(|socket| own_sockets.contains(socket)))
        .map(|(port, _)| port)
        .collect();
    let node = Node { name: procfs::host_name(), devices, ports_taken, ..Node::default() };
    Ok(Inventory { nodes: vec![node], instances, notes: gpus.notes })
}

/// Whether one of these processes listens on `port`: an answer on a port is no proof that the right
/// process gave it.
pub fn owns_port(pids: &[u32], port: u16) -> bool {
    let listening = procfs::listening_ports().unwrap_or_default();
    let Some(sockets) = listening.get(&port) else { return false };
    pids.iter().any(|pid| procfs::sockets(*pid).iter().any(|socket| sockets.contains(socket)))
}
