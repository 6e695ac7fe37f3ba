//! What machines and GPUs a Ray cluster has.
//!
//! Labels and names are read from the state API (`/api/v0/nodes`), which has them as they are; what GPUs
//! hold from the dashboard's reporter (`/nodes?view=summary`), which rewrites labels.

use std::collections::BTreeMap;

use berth_core::gpu::GpuKind;
use berth_core::inventory::{Cpu, Device, DeviceId, DeviceKind, DeviceProcess, Inventory, Node};
use berth_core::spec::nodes::natural;
use berth_core::units::Bytes;
use serde_json::Value;

use super::client::{Ray, RayError, strange};

const NODES: &str = "/api/v0/nodes?detail=true&limit=10000";
const SUMMARY: &str = "/nodes?view=summary";
/// Ray's own name for the kind of a node's GPUs.
const ACCELERATOR: &str = "ray.io/accelerator-type";

/// A report that is older than the newest by more than this says nothing of now: they come every few seconds.
const LATE_S: f64 = 60.0;

/// More GPUs than this no machine has.
const MOST_GPUS: f64 = 64.0;

/// How nodes are named and what is said of them where Ray can't tell.
#[derive(Clone, Copy, Debug, Default)]
pub struct Naming<'a> {
    /// The label whose value is a node's name.
    pub label: Option<&'a str>,
    /// Nodes as somebody wrote them down: for kinds of GPU that Ray doesn't know.
    pub written: &'a [Node],
}

/// Looks at the cluster.
///
/// # Errors
/// Where its nodes can't be read. What their GPUs hold may be missing: that is in the notes.
pub fn observe(ray: &Ray, naming: Naming<'_>) -> Result<Inventory, RayError> {
    let nodes = ray.get(NODES)?;
    let summary = ray.get(SUMMARY);
    let (summary, note) = match summary {
        Ok(summary) => (summary, None),
        Err(error) => (Value::Null, Some(format!("what GPUs hold is not known: {error}"))),
    };
    let mut inventory = inventory(&nodes, &summary, naming)?;
    inventory.notes.extend(note);
    Ok(inventory)
}

/// What both answers come to; dead nodes are left out.
///
/// # Errors
/// Where the first is none of Ray's.
pub fn inventory(
    nodes: &Value,
    summary: &Value,
    naming: Naming<'_>,
) -> Result<Inventory, RayError> {
    let result = &nodes["data"]["result"];
    let listed = result["result"].as_array().ok_or_else(|| strange(NODES, "there is no list"))?;
    let alive: Vec<&Value> = listed.iter().filter(|node| node["state"] == "ALIVE").collect();
    let reported: BTreeMap<&str, &Value> = summary["data"]["summary"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|node| Some((node["raylet"]["nodeId"].as_str()?, node)))
        .collect();
    let newest = reported.values().filter_map(|report| report["now"].as_f64()).fold(0.0, f64::max);
    let mut inventory = Inventory::default();
    let total = result["total"].as_u64().unwrap_or(0);
    if total > listed.len() as u64 {
        let listed = listed.len();
        inventory.notes.push(format!("Ray lists {listed} of its {total} nodes"));
    }
    let warning = result["partial_failure_warning"].as_str().filter(|text| !text.is_empty());
    inventory.notes.extend(warning.map(|text| format!("Ray says of its nodes: {text}")));
    for node in alive {
        let id = node["node_id"].as_str().unwrap_or_default();
        let found = Node {
            name: name(node, naming).to_owned(),
            id: Some(id.to_owned()),
            address: node["node_ip"].as_str().map(str::to_owned),
            labels: labels(node),
            ..Node::default()
        };
        let written = naming.written.iter().find(|one| {
            one.name == found.name || one.address.is_some() && one.address == found.address
        });
        let mut report = reported.get(id).copied().unwrap_or(&Value::Null);
        let late_s = report["now"].as_f64().map_or(0.0, |now| newest - now);
        if late_s > LATE_S {
            let name = &found.name;
            inventory.notes.push(format!(
                "what Ray's reporter says of {name} is {late_s:.0} s old, and counts as not known"
            ));
            report = &Value::Null;
        }
        let devices = devices(node, report, &found, written, &mut inventory.notes);
        inventory.nodes.push(Node { devices, ..found });
    }
    inventory.nodes.sort_by(|a, b| natural(&a.name).cmp(&natural(&b.name)));
    Ok(inventory)
}

fn labels(node: &Value) -> BTreeMap<String, String> {
    let labels = node["labels"].as_object().into_iter().flatten();
    labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// A node's name: a label's value, else its address. Neither depends on what the reporter has answered.
fn name<'a>(node: &'a Value, naming: Naming<'_>) -> &'a str {
    let label = naming.label.and_then(|label| node["labels"][label].as_str());
    label.or(node["node_ip"].as_str()).or(node["node_id"].as_str()).unwrap_or_default()
}

/// A node's GPUs: as the reporter sees them, or as many as Ray counts, of the kind that somebody says.
fn devices(
    node: &Value,
    report: &Value,
    found: &Node,
    written: Option<&Node>,
    notes: &mut Vec<String>,
) -> Vec<Device> {
    let host = written.into_iter().flat_map(|node| &node.devices).filter(|one| !one.is_gpu());
    let host: Vec<Device> = host.cloned().collect();
    let seen: Vec<Device> =
        report["gpus"].as_array().into_iter().flatten().filter_map(seen).collect();
    let counted =
        node["resources_total"]["GPU"].as_f64().unwrap_or(0.0).clamp(0.0, MOST_GPUS) as u32;
    if !seen.is_empty() {
        if seen.len() as u32 != counted {
            let seen = seen.len();
            notes.push(format!("{} has {seen} GPUs, and Ray counts {counted}", found.name));
        }
        return host.into_iter().chain(seen).collect();
    }
    if counted == 0 {
        return host;
    }
    let said = found.labels.get(ACCELERATOR).map(String::as_str);
    let resources = node["resources_total"].as_object().into_iter().flatten();
    let mut accelerators = resources.filter_map(|(key, _)| key.strip_prefix("accelerator_type:"));
    let kind = said.or_else(|| accelerators.next()).and_then(GpuKind::find);
    let written = written.into_iter().flat_map(|node| &node.devices).filter(|one| one.is_gpu());
    let written: Vec<Device> = written.take(counted as usize).cloned().collect();
    let devices = match kind {
        Some(kind) => (0..counted).map(|index| of_kind(kind, index)).collect(),
        None => written,
    };
    let name = &found.name;
    match devices.is_empty() {
        true => notes.push(format!(
            "of {name}'s {counted} GPUs neither kind nor memory is known, so nothing is put on them: add \
             {name} to [[cluster.nodes]] with gpu = \"...\""
        )),
        false => notes.push(format!("what {name}'s GPUs hold is not known: Ray's reporter sees none")),
    }
    host.into_iter().chain(devices).collect()
}

fn of_kind(kind: &GpuKind, index: u32) -> Device {
    let (id, name) = (DeviceId(format!("gpu:{index}")), kind.name.clone());
    let kind_of = DeviceKind::Gpu { index, name };
    let (total, used_by_others) = (kind.cuda_total(), Bytes::ZERO);
    let (is_seen, processes, cpu) = (false, None, Cpu::default());
    Device { id, kind: kind_of, total, used_by_others, is_seen, processes, cpu }
}

/// A GPU as the reporter has it: memory in MiB, as NVML counts.
fn seen(gpu: &Value) -> Option<Device> {
    // The dashboard writes names its own way.
    let of = |snake: &str, camel: &str| {
        let value = &gpu[camel];
        if value.is_null() { gpu[snake].clone() } else { value.clone() }
    };
    let index = u32::try_from(gpu["index"].as_u64()?).ok()?;
    let name = gpu["name"].as_str()?.to_owned();
    let mib = |value: Value| value.as_f64().map(|mib| Bytes((mib * 1_048_576.0) as u64));
    let total = mib(of("memory_total", "memoryTotal"))?;
    let used = mib(of("memory_used", "memoryUsed"));
    Some(Device {
        // By its number: ids would be others while the reporter hasn't answered yet.
        id: DeviceId(format!("gpu:{index}")),
        kind: DeviceKind::Gpu { index, name },
        total,
        used_by_others: used.unwrap_or_default(),
        is_seen: used.is_some(),
        processes: of("processes_pids", "processesPids").as_array().map(|all| processes(all)),
        cpu: Cpu::default(),
    })
}

/// Those of which the reporter knows what they hold, in whole MiB: of others it says 0.
fn processes(all: &[Value]) -> Vec<DeviceProcess> {
    let process = |one: &Value| {
        let mib = one["gpuMemoryUsage"].as_u64().or(one["gpu_memory_usage"].as_u64());
        let pid = u32::try_from(one["pid"].as_u64()?).ok()?;
        Some(DeviceProcess { pid, bytes: Bytes::mib(mib.filter(|mib| *mib > 0)?) })
    };
    all.iter().filter_map(process).collect()
}
