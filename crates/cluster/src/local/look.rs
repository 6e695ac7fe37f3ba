//! Who holds this machine's memory, and that of its GPUs.

use std::collections::HashMap;

use berth_core::inventory::{DeviceKind, DeviceProcess, InstanceId, RunningInstance};
use berth_core::units::Bytes;
use berth_core::watch::look::MOST_NAMED;
use berth_core::watch::{DeviceLook, Holder, Look};

use super::process;
use crate::{nvml, procfs};

/// Smaller ones are nobody's concern.
const LEAST_NAMED: Bytes = Bytes(64 << 20);

/// Looks at this machine's devices. Instances are those of a state folder, or of any where none is given.
pub fn look(state_id: Option<&str>, now_ms: u64) -> Look {
    let instances = match state_id {
        Some(id) => process::running(id),
        None => process::running_of_any(),
    };
    let owners: HashMap<u32, &InstanceId> = instances
        .iter()
        .flat_map(|instance| instance.pids.iter().map(move |pid| (*pid, &instance.id)))
        .collect();
    let gpus = nvml::gpus();
    let mut notes = gpus.notes;
    let node = procfs::host_name();
    let mut devices = Vec::new();
    match procfs::host(Bytes::ZERO) {
        Ok(device) => devices.push(DeviceLook {
            node: node.clone(),
            device: device.id,
            name: "host memory".to_owned(),
            total: device.total,
            used: Some(device.used_by_others),
            holders: Some(of_host(&instances, &owners)),
        }),
        Err(error) => notes.push(format!("the host's memory can't be read: {error}")),
    }
    for gpu in gpus.devices {
        let DeviceKind::Gpu { name, .. } = gpu.kind else { continue };
        let holder = |DeviceProcess { pid, bytes }| Holder {
            pid,
            // The process may be of another namespace, or have ended.
            name: procfs::name_and_private(pid).map_or_else(|| "?".to_owned(), |(name, _)| name),
            instance: owners.get(&pid).map(|id| (*id).clone()),
            bytes,
        };
        devices.push(DeviceLook {
            node: node.clone(),
            device: gpu.id,
            name,
            total: gpu.total,
            used: Some(gpu.used_by_others),
            holders: gpu.processes.map(|all| all.into_iter().map(holder).collect()),
        });
    }
    Look { at_ms: now_ms, devices, engines: Vec::new(), oom_kills: procfs::oom_kills(), notes }
}

/// Instances with what the operating system counts as theirs, and the largest of all other processes.
fn of_host(instances: &[RunningInstance], owners: &HashMap<u32, &InstanceId>) -> Vec<Holder> {
    let own = instances.iter().map(|instance| Holder {
        pid: instance.pid,
        name: procfs::name_and_private(instance.pid).map(|(name, _)| name).unwrap_or_default(),
        instance: Some(instance.id.clone()),
        bytes: instance.memory.anonymous,
    });
    let others = procfs::all_pids().into_iter().filter(|pid| !owners.contains_key(pid));
    let mut others: Vec<Holder> = others
        .filter_map(|pid| {
            let (name, bytes) = procfs::name_and_private(pid)?;
            (bytes >= LEAST_NAMED).then_some(Holder { pid, name, instance: None, bytes })
        })
        .collect();
    others.sort_by_key(|holder| std::cmp::Reverse(holder.bytes));
    others.truncate(MOST_NAMED);
    own.chain(others).collect()
}
