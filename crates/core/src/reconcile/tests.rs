//! The next actions, as data: what is planned, what runs, what is recorded, and what follows.

use super::*;
use crate::inventory::ProcessMemory;
use crate::plan::{DeviceShare, PlannedDevice};
use crate::spec::EngineKind;
use crate::units::Bytes;

const NOW: u64 = 1_000_000;

/// An instance on a device; `version` changes its configuration.
fn planned(id: &str, device: &str, version: &str) -> PlannedInstance {
    let mut footprint = crate::memory::Footprint::default();
    footprint.exact("weights", Bytes(10), String::new());
    PlannedInstance {
        id: InstanceId(id.into()),
        deployment: "".into(),
        model: id.into(),
        engine: EngineKind::LlamaServer,
        engine_version: None,
        binary: "llama-server".into(),
        args: vec![version.into()],
        environment: BTreeMap::new(),
        library: None,
        host: "127.0.0.1".into(),
        port: 1,
        node: "n".into(),
        folder: "/".into(),
        shares: vec![DeviceShare {
            device: DeviceId(device.into()),
            footprint,
            resident_ready: Bytes(10),
        }],
        cache_tokens: None,
        weight: 1,
        sleep: None,
    }
}

fn plan(instances: &[PlannedInstance]) -> Plan {
    let device = |name: &str| PlannedDevice {
        node: "n".into(),
        device: DeviceId(name.into()),
        total: Bytes(100),
        budget: Bytes(20),
        planned: Bytes(0),
    };
    Plan {
        strategy: None,
        instances: instances.to_vec(),
        devices: vec![device("g0"), device("g1")],
        ..Plan::nothing(crate::spec::GatewaySpec::default(), None)
    }
}

fn running(planned: &PlannedInstance) -> RunningInstance {
    RunningInstance {
        id: planned.id.clone(),
        config: planned.config(),
        node: planned.node.clone(),
        pid: 7,
        pids: vec![7],
        group: 7,
        started_ticks: 1,
        memory: ProcessMemory::default(),
        doing: None,
    }
}

fn record(planned: &PlannedInstance, phase: Phase) -> (InstanceId, Record) {
    let record = Record { phase, ..Record::starting(planned.config(), None, NOW) };
    (planned.id.clone(), record)
}

fn shown(actions: &[Action]) -> String {
    let one = |action: &Action| match action {
        Action::Stop(running) => format!("stop {}", running.id),
        Action::Start(id) => format!("start {id}"),
    };
    actions.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[test]
fn what_follows() {
    let (a, b, c) = (planned("a", "g0", "1"), planned("b", "g0", "1"), planned("c", "g1", "1"));
    let a2 = planned("a", "g0", "2");
    let later = Phase::Backoff { until_ms: NOW + 1 };
    let due = Phase::Backoff { until_ms: NOW };
    let all = [a.clone(), b.clone(), c.clone()];
    for (why, plan_of, runs, records, expected) in [
        ("nothing to do", vec![], vec![], vec![], ""),
        ("one start a device", all.to_vec(), vec![], vec![], "start a, start c"),
        (
            "b waits for a",
            all.to_vec(),
            vec![&a, &c],
            vec![record(&a, Phase::Starting), record(&c, Phase::Ready)],
            "",
        ),
        (
            "a is ready: b's turn",
            all.to_vec(),
            vec![&a, &c],
            vec![record(&a, Phase::Ready), record(&c, Phase::Ready)],
            "start b",
        ),
        (
            "all is well",
            all.to_vec(),
            vec![&a, &b, &c],
            vec![record(&a, Phase::Ready), record(&b, Phase::Ready), record(&c, Phase::Ready)],
            "",
        ),
        (
            "not in the plan",
            vec![c.clone()],
            vec![&a, &c],
            vec![record(&c, Phase::Ready)],
            "stop a",
        ),
        (
            "another configuration stops first",
            vec![a2.clone()],
            vec![&a],
            vec![record(&a, Phase::Ready)],
            "stop a",
        ),
        ("and then starts", vec![a2.clone()], vec![], vec![record(&a, Phase::Ready)], "start a"),
        ("a stop holds up all starts", vec![b.clone()], vec![&a], vec![], "stop a"),
        ("backoff is waited for", vec![a.clone()], vec![], vec![record(&a, later)], ""),
        ("and ends", vec![a.clone()], vec![], vec![record(&a, due)], "start a"),
        (
            "failed is left alone, others go on",
            vec![a.clone(), b.clone()],
            vec![],
            vec![record(&a, Phase::Failed)],
            "start b",
        ),
        (
            "what failed and still runs is stopped",
            vec![a.clone()],
            vec![&a],
            vec![record(&a, Phase::Failed)],
            "stop a",
        ),
        (
            "an end is noted before a new start",
            vec![a.clone()],
            vec![],
            vec![record(&a, Phase::Ready)],
            "",
        ),
    ] {
        let running: Vec<_> = runs.into_iter().map(running).collect();
        let records = records.into_iter().collect();
        assert_eq!(
            shown(&next_actions(&plan(&plan_of), &running, &records, NOW)),
            expected,
            "{why}"
        );
    }
}

#[test]
fn failures_back_off_and_end() {
    let a = planned("a", "g0", "1");
    let mut record = Record::starting(a.config(), None, NOW);
    let mut waits = Vec::new();
    let mut now = NOW;
    while let Phase::Backoff { until_ms } = {
        record = record.failed(false, now);
        record.phase
    } {
        waits.push(until_ms - now);
        now = until_ms;
        record = Record::starting(a.config(), Some(&record), now);
    }
    assert_eq!(waits, [1000, 2000, 4000, 8000, 16000]);
    assert_eq!(record.phase, Phase::Failed);

    let permanent = Record::starting(a.config(), None, NOW).failed(true, NOW);
    assert_eq!(permanent.phase, Phase::Failed, "what must come again is final at once");
    let shaky = Record::starting(a.config(), None, NOW).failed(false, NOW).ready(NOW);
    assert_eq!(shaky.failed(false, NOW + STABLE_AFTER_MS).failures, 2);
    assert_eq!(shaky.failed(false, NOW + STABLE_AFTER_MS + 1).failures, 1, "it was ready for long");
    let slow = Record::starting(a.config(), None, NOW).failed(false, NOW + 2 * STABLE_AFTER_MS);
    let slow = slow.failed(false, NOW + 4 * STABLE_AFTER_MS);
    assert_eq!(slow.failures, 2, "failures far apart add up where it was never ready");
}

#[test]
fn settled_means_ready_or_failed_and_nothing_else_running() {
    let (a, b) = (planned("a", "g0", "1"), planned("b", "g1", "1"));
    let plan_of = plan(&[a.clone(), b.clone()]);
    let done: BTreeMap<_, _> = [record(&a, Phase::Ready), record(&b, Phase::Failed)].into();
    assert!(is_settled(&plan_of, &[running(&a)], &done));
    assert!(!is_settled(&plan_of, &[], &done), "a is recorded as ready and does not run");
    let extra = planned("x", "g0", "1");
    assert!(!is_settled(&plan_of, &[running(&a), running(&extra)], &done), "x still runs");
    let waiting: BTreeMap<_, _> = [record(&a, Phase::Ready), record(&b, Phase::Starting)].into();
    assert!(!is_settled(&plan_of, &[running(&a), running(&b)], &waiting));
}

#[test]
fn rollbacks_replace_and_must_fit() {
    let (new, old) = (planned("a", "g0", "2"), planned("a", "g0", "1"));
    let plan_of = plan(&[new, planned("b", "g0", "1")]);
    let effective = with_rollbacks(&plan_of, &BTreeMap::from([(old.id.clone(), old.clone())]));
    assert_eq!(effective.instances[0], old);
    assert!(keeps_budgets(&effective));
    let mut large = old;
    large.shares[0].footprint.exact("kv_cache", Bytes(1), String::new());
    let rollbacks = BTreeMap::from([(large.id.clone(), large)]);
    assert!(!keeps_budgets(&with_rollbacks(&plan_of, &rollbacks)));
}
