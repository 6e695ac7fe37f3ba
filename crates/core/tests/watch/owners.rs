//! Who holds a GPU, from what a driver says of processes and supervisors of engines.

use berth_core::Digest;
use berth_core::inventory::{
    Cpu, Device, DeviceId, DeviceKind, DeviceProcess, InstanceId, Inventory, Node, ProcessMemory,
    RunningInstance,
};
use berth_core::plan::Plan;
use berth_core::units::Bytes;
use berth_core::watch::Look;

use crate::looks::plan;

/// Processes of the GPU with their MiB, where they are seen.
type Seen<'a> = Option<&'a [(u32, u64)]>;
/// What runs, where, and its processes.
type Running<'a> = &'a [(&'a str, &'a str, &'a [u32])];
/// What is used, who is seen to hold how much, what runs; what berth's instances hold and what others do.
type Row<'a> = (u64, Seen<'a>, Running<'a>, Option<(u64, u64)>);

fn inventory(used: u64, seen: Seen<'_>, instances: Running<'_>) -> Inventory {
    let process = |(pid, mib): &(u32, u64)| DeviceProcess { pid: *pid, bytes: Bytes::mib(*mib) };
    let device = Device {
        id: DeviceId("gpu:0".to_owned()),
        kind: DeviceKind::Gpu { index: 0, name: "A10".to_owned() },
        total: Bytes::mib(20_000),
        used_by_others: Bytes::mib(used),
        is_seen: true,
        processes: seen.map(|all| all.iter().map(process).collect()),
        cpu: Cpu::default(),
    };
    let running = |(id, node, pids): &(&str, &str, &[u32])| RunningInstance {
        id: InstanceId((*id).to_owned()),
        config: Digest::from_hex("as planned"),
        node: (*node).to_owned(),
        pid: 1,
        pids: pids.to_vec(),
        group: 0,
        started_ticks: 0,
        memory: ProcessMemory::default(),
        doing: None,
    };
    Inventory {
        nodes: vec![Node { name: "n".to_owned(), devices: vec![device], ..Node::default() }],
        instances: instances.iter().map(running).collect(),
        notes: Vec::new(),
    }
}

fn look(inventory: &Inventory, plan: &Plan) -> Look {
    let running = inventory.instances.iter().map(|one| one.id.clone()).collect();
    Look::of_inventory(inventory, 0).doubted(plan, &running)
}

#[test]
fn holders_are_seen_or_unknown_and_never_wrong() {
    let mine: Running<'_> = &[("a-0", "n", &[7, 8])];
    let rows: [Row<'_>; 14] = [
        (12_400, Some(&[(8, 12_000)]), mine, Some((12_000, 400))),
        (12_400, Some(&[(7, 500), (8, 11_500)]), mine, Some((12_000, 400))),
        (15_400, Some(&[(8, 12_000), (99, 3_000)]), mine, Some((12_000, 3_400))),
        // A stranger in another container isn't seen, and takes what he takes.
        (15_400, Some(&[(8, 12_000)]), mine, Some((12_000, 3_400))),
        (12_400, None, mine, None),
        // A container hides the engine's processes, or gives them other numbers.
        (12_400, Some(&[]), mine, None),
        (12_400, Some(&[(4_008, 12_000)]), mine, None),
        // Its processes aren't listed yet.
        (12_400, Some(&[(8, 12_000)]), &[("a-0", "n", &[])], None),
        // The same number on another machine is another process.
        (12_400, Some(&[(8, 12_000)]), &[("a-0", "m", &[8])], None),
        // What is used may be a small engine's whose processes aren't listed yet, and isn't a large one's.
        (1_900, Some(&[]), mine, Some((0, 1_900))),
        (2_200, Some(&[]), mine, None),
        // It has begun and holds nothing yet.
        (400, Some(&[]), mine, Some((0, 400))),
        // Nothing of ours runs there.
        (3_400, Some(&[(99, 3_000)]), &[], Some((0, 3_400))),
        // One that the plan no longer has is none of others', while it ends.
        (12_400, Some(&[(9, 12_000)]), &[("old-0", "n", &[9])], Some((12_000, 400))),
    ];
    for (used, seen, instances, want) in rows {
        let look = look(&inventory(used, seen, instances), &plan());
        let device = &look.devices[0];
        let want = want.map(|(own, others)| (Bytes::mib(own), Bytes::mib(others)));
        assert_eq!(device.own().zip(device.foreign()), want, "{used} {seen:?} {instances:?}");
        assert_eq!(device.used, Some(Bytes::mib(used)));
    }
}

/// The driver's own half a GiB is no engine's; one that is planned to hold a GiB may hold the rest.
#[test]
fn a_small_engine_is_not_taken_for_somebody_else() {
    let mut plan = plan();
    plan.instances[0].shares[0].footprint.terms[0].bytes = Bytes::gib(1);
    for (used, is_seen) in [(400, true), (900, false), (1_500, false)] {
        let inventory = inventory(used, Some(&[]), &[("a-0", "n", &[8])]);
        let look = look(&inventory, &plan);
        assert_eq!(look.devices[0].holders.is_some(), is_seen, "{used}");
    }
}

#[test]
fn what_nobody_looked_at_is_unknown() {
    // Somebody has written down that others use 600 MiB: that is no look.
    for (used, is_seen) in [(0, false), (600, false), (600, true), (0, true)] {
        let mut inventory = inventory(used, None, &[]);
        inventory.nodes[0].devices[0].is_seen = is_seen;
        let look = look(&inventory, &plan());
        assert_eq!(look.devices[0].used.is_some(), is_seen, "{used}");
    }
}
