//! A plan for one GPU, and what is seen of it.

use berth_core::inventory::{DeviceId, InstanceId};
use berth_core::plan::Plan;
use berth_core::spec::GatewaySpec;
use berth_core::units::Bytes;
use berth_core::watch::{DeviceLook, Holder, Look};
use serde_json::json;

/// A GPU of 20,000 MiB with an instance of 12,000 MiB on it.
pub(crate) fn plan() -> Plan {
    let mib = |mib: u64| mib << 20;
    let weights =
        json!({ "name": "weights", "bytes": mib(12_000), "kind": "exact", "formula": "" });
    let footprint = [weights];
    let share = json!({ "device": "gpu:0", "footprint": footprint, "resident_ready": mib(12_000) });
    let instance = json!({
        "id": "a-0", "model": "a", "engine": "vllm", "binary": "vllm", "args": [], "port": 1, "node": "n",
        "folder": "/", "shares": [share],
    });
    let device = json!({
        "node": "n", "device": "gpu:0", "total": mib(20_000), "budget": mib(19_000), "planned": mib(12_000),
    });
    Plan {
        instances: vec![serde_json::from_value(instance).unwrap()],
        devices: vec![serde_json::from_value(device).unwrap()],
        ..Plan::nothing(GatewaySpec::default(), None)
    }
}

fn holder(pid: u32, own: bool, mib: u64) -> Holder {
    let instance = own.then(|| InstanceId("a-0".to_owned()));
    Holder { pid, name: format!("p{pid}"), instance, bytes: Bytes::mib(mib) }
}

/// What is seen at a second: MiB of the instance, and of others by their processes.
pub(crate) fn look(at_s: u64, own: u64, others: &[(u32, u64)]) -> Look {
    let strangers = others.iter().map(|(pid, mib)| holder(*pid, false, *mib));
    let holders: Vec<Holder> = [holder(1, true, own)].into_iter().chain(strangers).collect();
    let device = DeviceLook {
        node: "n".to_owned(),
        device: DeviceId("gpu:0".to_owned()),
        name: "A10".to_owned(),
        total: Bytes::mib(20_000),
        used: Some(holders.iter().map(|one| one.bytes).sum()),
        holders: Some(holders),
    };
    Look { at_ms: at_s * 1000, devices: vec![device], ..Look::default() }
}
