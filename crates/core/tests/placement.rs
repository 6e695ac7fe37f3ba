//! Plans: what fits, what doesn't and why, and what the checker refuses.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use berth_core::inventory::{Cpu, Device, DeviceId, DeviceKind, Inventory, Node};
use berth_core::model::ModelFacts;
use berth_core::placement::{Found, LocatedModel, Planned, check, plan};
use berth_core::report::PlanVerdict;
use berth_core::spec::Spec;
use berth_core::units::Bytes;
use proptest::prelude::*;

fn facts(name: &str) -> ModelFacts {
    let path = format!("{}/../../data/models/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn found(spec: &Spec) -> Found {
    let located = |name: &str| {
        let file = if name.starts_with("gemma") {
            "gemma-3-270m-q4_k_m"
        } else {
            "SmolLM2-135M-Instruct.Q4_1"
        };
        LocatedModel::gguf(format!("/models/{file}.gguf"), facts(file))
    };
    let models = spec.deployments.iter().map(|model| (model.weights(), located(&model.name)));
    Found { models: models.collect(), ..Found::default() }
}

fn host(gib: u64) -> Inventory {
    let device = Device {
        id: DeviceId::host(),
        kind: DeviceKind::Host,
        total: Bytes::gib(gib),
        used_by_others: Bytes::ZERO,
        is_seen: true,
        processes: None,
        cpu: Cpu::default(),
    };
    let node = Node {
        name: "here".into(),
        devices: vec![device],
        ports_taken: [18_100].into(),
        ..Node::default()
    };
    Inventory { nodes: vec![node], ..Inventory::default() }
}

fn with_gpu(mut inventory: Inventory) -> Inventory {
    inventory.nodes[0].devices.push(Device {
        id: DeviceId("GPU-1".into()),
        kind: DeviceKind::Gpu { index: 0, name: "A10".into() },
        total: Bytes::gib(22),
        used_by_others: Bytes::ZERO,
        is_seen: true,
        processes: None,
        cpu: Cpu::default(),
    });
    inventory
}

fn run(text: &str, inventory: &Inventory) -> (Spec, Planned) {
    let spec = Spec::parse("s", text).unwrap();
    let planned = plan(&spec, inventory, &found(&spec), None).unwrap();
    (spec, planned)
}

const TWO: &str = "
    [models.gemma]
    source = \"g\"
    flags = { ctx-size = 4096, parallel = 1 }
    [models.smol]
    source = \"s\"
    replicas = 2
    flags = { ctx-size = 2048, parallel = 1 }
";

#[test]
fn a_plan_is_complete() {
    let inventory = host(4);
    let (spec, planned) = run(TWO, &inventory);
    assert_eq!(planned.report.verdict, PlanVerdict::Fits);
    assert_eq!(check(&planned.plan, &spec, &inventory), []);
    let started: Vec<_> =
        planned.plan.instances.iter().map(|i| (i.id.0.as_str(), i.port)).collect();
    assert_eq!(
        started,
        [("gemma-0", 18_101), ("smol-0", 18_102), ("smol-1", 18_103)],
        "18100 is taken"
    );
    let args = planned.plan.instances[1].args.join(" ");
    assert_eq!(
        args,
        "--model /models/SmolLM2-135M-Instruct.Q4_1.gguf --alias smol --host 127.0.0.1 --port 18102 \
         --device none --metrics --log-verbosity 4 --no-webui --cors-origins http://127.0.0.1 \
         --ctx-size 2048 --parallel 1 --cache-ram 0 --ctx-checkpoints 4"
    );
}

/// Flags by any of their names, their opposites, and extra words: all count where they are known.
#[test]
fn flags_and_extra_words_reach_the_engine_and_the_memory_model() {
    let with = |flags: &str, extra: &str| {
        let text = format!(
            "[models.smol]\nsource = \"s\"\nflags = {{ {flags} }}\nextra_args = [{extra}]\n"
        );
        let (_, planned) = run(&text, &host(64));
        let instance = planned.plan.instances[0].clone();
        (instance.args[16..].join(" "), instance.shares[0].footprint.get("kv_cache"))
    };
    for (flags, extra, args, kv_mib) in [
        ("c = 2048, np = 1", "", "-c 2048 -np 1 --cache-ram 0 --ctx-checkpoints 4", 45),
        (
            "ctx-size = 2048, parallel = 1, mmap = false, warmup = true, cache-ram = 64",
            "",
            "--cache-ram 64 --ctx-size 2048 --no-mmap --parallel 1 --warmup --ctx-checkpoints 4",
            45,
        ),
        (
            "parallel = 1",
            "\"--brand-new\", \"7\", \"-c\", \"4096\", \"-cram\", \"1\"",
            "--parallel 1 --ctx-checkpoints 4 --brand-new 7 -c 4096 -cram 1",
            90,
        ),
    ] {
        assert_eq!(with(flags, extra), (args.to_owned(), Bytes::mib(kv_mib)), "{flags}");
    }
}

/// What berth says would make a model fit does make it fit, and one step more does not.
#[test]
fn advice_is_true() {
    let spec_with = |flags: &str, budget: &str| {
        format!(
            "[cluster]\nhost_budget = \"{budget}\"\nheadroom = 0\n[models.smol]\nsource = \"s\"\nflags = {{ {flags} }}\n"
        )
    };
    let inventory = host(64);
    let (_, planned) = run(&spec_with("ctx-size = 65536, parallel = 1", "600 MiB"), &inventory);
    assert_eq!(planned.report.verdict, PlanVerdict::Impossible);
    let model = &planned.report.models[0];
    assert_eq!(model.reasons.len(), 1);
    assert!(model.reasons[0].contains("short"), "{:?}", model.reasons);
    let advice = model.changes.iter().find_map(|change| change.strip_prefix("ctx-size = "));
    let ctx: u64 = advice.unwrap().split(' ').next().unwrap().parse().unwrap();
    for (ctx, verdict) in [(ctx, PlanVerdict::Fits), (ctx + 256, PlanVerdict::Impossible)] {
        let (_, planned) =
            run(&spec_with(&format!("ctx-size = {ctx}, parallel = 1"), "600 MiB"), &inventory);
        assert_eq!(planned.report.verdict, verdict, "ctx-size {ctx}");
    }
    let quantised =
        "ctx-size = 65536, parallel = 1, cache-type-k = \"q8_0\", cache-type-v = \"q8_0\"";
    let (_, before) = run(&spec_with("ctx-size = 65536, parallel = 1", "1100 MiB"), &inventory);
    assert!(
        before.report.models[0].changes[0].contains("q8_0"),
        "{:?}",
        before.report.models[0].changes
    );
    let (_, after) = run(&spec_with(quantised, "1100 MiB"), &inventory);
    assert_eq!(after.report.verdict, PlanVerdict::Fits);
}

#[test]
fn gpus_are_not_promised_what_is_not_modelled() {
    let inventory = with_gpu(host(4));
    let (_, planned) = run("[models.smol]\nsource = \"s\"\n", &inventory);
    assert_eq!(planned.report.verdict, PlanVerdict::Impossible);
    assert_eq!(
        planned.report.models[0].changes,
        ["pin smol to the host's memory: devices = [\"host\"]"]
    );
    let (_, pinned) = run("[models.smol]\nsource = \"s\"\ndevices = [\"host\"]\n", &inventory);
    assert_eq!(pinned.report.verdict, PlanVerdict::Fits);
    let (_, absent) = run("[models.smol]\nsource = \"s\"\ndevices = [\"gpu:7\"]\n", &inventory);
    assert_eq!(absent.report.models[0].reasons, ["no device is gpu:7; there are: host, GPU-1"]);
}

#[test]
fn what_runs_keeps_its_port_and_its_digest() {
    let (spec, first) = run(TWO, &host(4));
    let mut busy = host(4);
    busy.nodes[0].devices[0].used_by_others = Bytes::mib(100);
    let again = plan(&spec, &busy, &found(&spec), Some(&first.plan)).unwrap();
    assert_eq!(again.plan.digest(), first.plan.digest());
    assert_eq!(again.plan.parent, Some(first.plan.digest()));
    // Unless a stranger has the port by now.
    busy.nodes[0].ports_taken.insert(18_101);
    let moved = plan(&spec, &busy, &found(&spec), Some(&first.plan)).unwrap();
    assert_eq!(check(&moved.plan, &spec, &busy), []);
    assert_eq!(moved.plan.instances[0].port, 18_104);
}

/// The checker sees each way in which a plan can be wrong.
#[test]
fn the_checker_refuses_bad_plans() {
    let inventory = host(4);
    let (spec, planned) = run(TWO, &inventory);
    type Damage = fn(&mut berth_core::Plan);
    let rows: [(&str, Damage); 9] = [
        ("planned, ", |plan| plan.instances[0].shares[0].footprint.terms[0].bytes = Bytes::gib(5)),
        ("its instances add up to", |plan| plan.devices[0].planned = Bytes(1)),
        ("which does not exist", |plan| {
            plan.instances[0].shares[0].device = DeviceId("GPU-9".into())
        }),
        ("takes no memory", |plan| plan.instances[0].shares.clear()),
        ("two instances are called gemma-0", |plan| {
            plan.instances[1].id = plan.instances[0].id.clone()
        }),
        ("port 18101, which is not free", |plan| plan.instances[1].port = 18_101),
        ("port 18100, which is not free", |plan| plan.instances[1].port = 18_100),
        ("smol has 1 instances, not 2 to 2", |plan| drop(plan.instances.pop())),
        ("which the spec does not have", |plan| plan.instances[0].model = "x".into()),
    ];
    for (expected, damage) in rows {
        let mut plan = planned.plan.clone();
        damage(&mut plan);
        let told: Vec<String> =
            check(&plan, &spec, &inventory).iter().map(ToString::to_string).collect();
        assert!(told.iter().any(|text| text.contains(expected)), "{told:?} lacks {expected:?}");
    }
    let pinned =
        Spec::parse("s", &TWO.replace("source = \"g\"", "source = \"g\"\ndevices = [\"gpu:0\"]"));
    let told = check(&planned.plan, &pinned.unwrap(), &with_gpu(inventory));
    assert!(
        told.iter().any(|violation| violation.to_string() == "gemma-0 may not use host"),
        "{told:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever the spec and the machine: a plan that says it fits passes the checker, the same
    /// input gives the same plan, and a plan in force is kept.
    #[test]
    fn plans_pass_the_checker(
        budget_mib in 100_u64..3000,
        others_mib in 0_u64..2000,
        replicas in prop::collection::vec(1_u32..4, 1..4),
        contexts in prop::collection::vec(1_u64..20_000, 4),
        gpu in any::<bool>(),
    ) {
        let mut text = format!("[cluster]\nhost_budget = {}\n", budget_mib << 20);
        for (i, replicas) in replicas.iter().enumerate() {
            let name = if i % 2 == 0 { "smol" } else { "gemma" };
            text.push_str(&format!(
                "[models.{name}{i}]\nsource = \"s\"\nreplicas = {replicas}\ndevices = [\"host\"]\n\
                 flags = {{ ctx-size = {}, parallel = 2 }}\n", contexts[i]
            ));
        }
        let mut inventory = if gpu { with_gpu(host(4)) } else { host(4) };
        inventory.nodes[0].devices[0].used_by_others = Bytes::mib(others_mib);
        let (spec, planned) = run(&text, &inventory);
        let violations = check(&planned.plan, &spec, &inventory);
        let fits = planned.report.verdict == PlanVerdict::Fits;
        prop_assert_eq!(fits, violations.is_empty(), "{:?}", violations);
        prop_assert_eq!(&run(&text, &inventory).1, &planned);
        if fits {
            let again = plan(&spec, &inventory, &found(&spec), Some(&planned.plan)).unwrap();
            prop_assert_eq!(again.plan.instances, planned.plan.instances);
        }
    }
}
