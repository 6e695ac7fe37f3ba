//! What is wished and what comes of it, as rows.

use berth_core::adjust::law::{FREEZE_MS, can_do_without};
use berth_core::adjust::{AdjustSpec, Adjustment, Direction, FlagChange, Freeze, Law, knob};
use berth_core::inventory::{DeviceId, InstanceId};
use berth_core::plan::{Plan, PlannedDevice};
use berth_core::spec::{FlagValue, GatewaySpec, Spec};
use berth_core::units::Bytes;
use berth_core::watch::{Alarm, AlarmKind, EngineLook, Look};

use crate::rolls::planned;

fn plan() -> Plan {
    let instances = vec![
        planned("a-0".to_owned(), "a", 0, &[(0, 50)]),
        planned("b-0".to_owned(), "b", 0, &[(0, 30)]),
    ];
    let devices = vec![PlannedDevice {
        node: "n".to_owned(),
        device: DeviceId("gpu:0".to_owned()),
        total: Bytes(100),
        budget: Bytes(100),
        planned: Bytes(80),
    }];
    Plan { instances, devices, ..Plan::nothing(GatewaySpec::default(), None) }
}

fn engine(id: &str, usage: Option<f64>, waiting: u64, preemptions: u64) -> EngineLook {
    EngineLook {
        instance: InstanceId(id.to_owned()),
        running: Some(1),
        waiting: Some(waiting),
        kv_cache_usage: usage,
        preemptions: Some(preemptions),
        held: None,
        is_asleep: None,
    }
}

/// Looks at `a` and `b` for so many minutes, and what is wished in them.
fn check(
    what: &str,
    minutes: u64,
    a: impl Fn(u64) -> EngineLook,
    b: impl Fn(u64) -> EngineLook,
    frozen: &[Freeze],
    expected: Option<(&str, Direction, &[&str])>,
) {
    let (plan, mut law, mut wishes) = (plan(), Law::default(), Vec::new());
    for at in 0..=minutes * 4 {
        let look = Look { at_ms: at * 15_000, engines: vec![a(at), b(at)], ..Look::default() };
        wishes.extend(law.step(&plan, &look, &[], frozen));
    }
    let first = wishes.first().map(|one| {
        let givers: Vec<&str> = one.givers.iter().map(String::as_str).collect();
        (one.deployment.clone(), one.direction, givers)
    });
    let expected = expected.map(|(name, way, givers)| (name.to_owned(), way, givers.to_vec()));
    assert_eq!(first, expected, "{what}: {wishes:?}");
}

#[test]
fn what_is_wished() {
    use Direction::More;
    let idle = |_| engine("b-0", Some(0.2), 0, 0);
    let full = |_| engine("a-0", Some(0.97), 3, 0);
    check("full and waited for", 10, full, idle, &[], Some(("a", More, &[])));
    check("not for long", 8, full, idle, &[], None);
    check(
        "half an hour, and a neighbour has to spare",
        40,
        |at| engine("a-0", Some(0.97), u64::from(at > 120) * 3, 0),
        idle,
        &[],
        Some(("a", More, &["b"])),
    );
    check("full, and nobody waits", 60, |_| engine("a-0", Some(1.0), 0, 0), idle, &[], None);
    check("waited for, and not full", 60, |_| engine("a-0", Some(0.8), 3, 0), idle, &[], None);
    check(
        "full now and then",
        60,
        |at| engine("a-0", Some(0.97), u64::from(at % 10 == 0), 0),
        idle,
        &[],
        None,
    );
    check(
        "put off again and again",
        10,
        |at| engine("a-0", Some(0.7), 0, at),
        idle,
        &[],
        Some(("a", More, &[])),
    );
    check("put off once", 60, |at| engine("a-0", Some(0.7), 0, u64::from(at > 5)), idle, &[], None);
    check(
        "no slot left, and how full isn't said",
        10,
        |_| engine("a-0", None, 1, 0),
        idle,
        &[],
        Some(("a", More, &[])),
    );
    let frozen = [Freeze { deployment: "a".to_owned(), until_ms: FREEZE_MS }];
    check("died of memory today", 60, full, idle, &frozen, None);
}

#[test]
fn others_that_take_room_make_the_largest_smaller() {
    let alarm = Alarm {
        kind: AlarmKind::NoRoom,
        subject: "n gpu:0".to_owned(),
        message: "80 B are planned, and others leave 60 B".to_owned(),
        advice: String::new(),
        since_ms: 0,
    };
    let mut law = Law::default();
    let wish = |law: &mut Law, at_ms| {
        law.step(&plan(), &Look { at_ms, ..Look::default() }, std::slice::from_ref(&alarm), &[])
    };
    assert_eq!(wish(&mut law, 30_000), None, "what comes and goes is let be");
    let found = wish(&mut law, 60_000).unwrap();
    assert_eq!((&*found.deployment, found.direction), ("a", Direction::Less));
    assert_eq!(wish(&mut law, 61_000), None, "once is enough");
    let dead = Law::default().died(&plan(), &InstanceId("b-0".to_owned()), 0).unwrap();
    assert_eq!((&*dead.deployment, dead.direction), ("b", Direction::Less));
}

#[test]
fn who_can_be_away() {
    let mut plan = plan();
    plan.instances[1].model = "a".to_owned();
    for (usages, waiting, expected) in [
        ([Some(0.4), Some(0.4)], 0, true),
        ([Some(0.5), Some(0.5)], 1, false),
        ([None, None], 1, false),
    ] {
        let engines = vec![engine("a-0", usages[0], waiting, 0), engine("b-0", usages[1], 0, 0)];
        let look = Look { engines, ..Look::default() };
        assert_eq!(can_do_without(&plan, "a", &look, |_| true), expected, "{usages:?}");
    }
    assert!(!can_do_without(&plan, "a", &Look::default(), |_| true), "what isn't seen may be busy");
    let idle = |id: &str| EngineLook { running: Some(0), ..engine(id, None, 0, 0) };
    let look = Look { engines: vec![idle("a-0"), idle("b-0")], ..Look::default() };
    assert!(can_do_without(&plan, "a", &look, |_| true), "nothing is asked of it");
    // What doesn't serve is missed by nobody.
    for (serve, expected) in [(&["a-0"][..], true), (&[], true), (&["a-0", "b-0"], false)] {
        let look = Look { engines: vec![idle("a-0")], ..Look::default() };
        let serves = |id: &InstanceId| serve.contains(&id.0.as_str());
        assert_eq!(can_do_without(&plan, "a", &look, serves), expected, "{serve:?}");
    }
}

/// Flags of a model, which way and how far, and what they become.
#[test]
fn knobs() {
    use Direction::{Less, More};
    for (engine, flags, direction, steps, expected) in [
        (
            "vllm",
            "gpu_memory_utilization = 0.9",
            More,
            1,
            Some("m: gpu_memory_utilization from 0.900 to 0.920"),
        ),
        (
            "vllm",
            "gpu-memory-utilization = 0.9",
            Less,
            3,
            Some("m: gpu_memory_utilization from 0.900 to 0.840"),
        ),
        (
            "vllm",
            "max_model_len = 8192",
            Less,
            1,
            Some("m: gpu_memory_utilization from its default to 0.900"),
        ),
        ("vllm", "gpu_memory_utilization = 0.94", More, 1, None),
        ("vllm", "gpu_memory_utilization = 0.51", Less, 1, None),
        (
            "vllm",
            "kv_cache_memory_bytes = 1000000",
            More,
            1,
            Some("m: kv_cache_memory_bytes from 1000000 to 1050000"),
        ),
        (
            "llama_server",
            "ctx-size = 8192\nparallel = 2",
            More,
            1,
            Some("m: ctx-size from 8192 to 12288 parallel from 2 to 3"),
        ),
        (
            "llama_server",
            "ctx-size = 8192\nparallel = 2",
            Less,
            1,
            Some("m: ctx-size from 8192 to 4096 parallel from 2 to 1"),
        ),
        ("llama_server", "ctx-size = 8192\nparallel = 1", Less, 1, None),
        ("llama_server", "parallel = 2", Less, 1, None),
    ] {
        let text = format!(
            "[models.m]\nsource = \"m\"\nengine = \"{engine}\"\n[models.m.flags]\n{flags}\n"
        );
        let spec = Spec::parse("knobs", &text).unwrap();
        let one = &spec.deployments[0];
        let turned = knob::turn(one, &one.flags, direction, steps, &AdjustSpec::default());
        let said = turned.map(|flags| {
            Adjustment { deployment: "m".to_owned(), flags, why: String::new(), at_ms: 0 }
                .to_string()
        });
        assert_eq!(said.as_deref(), expected, "{flags}");
    }
}

/// An adjustment holds until the spec says another value.
#[test]
fn the_user_has_the_last_word() {
    let spec = |share: f64| {
        let text = format!(
            "[models.m]\nsource = \"m\"\nengine = \"vllm\"\n[models.m.flags]\ngpu_memory_utilization = {share}\n"
        );
        Spec::parse("word", &text).unwrap()
    };
    let change = FlagChange {
        flag: "gpu_memory_utilization".to_owned(),
        from: Some(FlagValue::Float(0.9)),
        to: FlagValue::Float(0.92),
    };
    let adjustment = Adjustment {
        deployment: "m".to_owned(),
        flags: vec![change],
        why: String::new(),
        at_ms: 0,
    };
    for (written, runs) in [(0.9, 0.92), (0.88, 0.88), (0.92, 0.92)] {
        let adjusted = spec(written).adjusted(std::slice::from_ref(&adjustment));
        let flag = &adjusted.deployments[0].flags["gpu_memory_utilization"];
        assert_eq!(*flag, FlagValue::Float(runs), "{written}");
        assert_eq!(adjusted.adjustments.len(), usize::from(written == 0.9));
    }
}
