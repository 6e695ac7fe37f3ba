//! Who sleeps for whom, and who wakes.

use std::collections::{BTreeMap, BTreeSet};

use berth_core::adjust::AdjustSpec;
use berth_core::adjust::sleep::{Order, Rest, Seen, Short, orders};
use berth_core::inventory::{DeviceId, InstanceId};
use berth_core::memory::Footprint;
use berth_core::plan::{DeviceShare, Plan, PlannedInstance, Sleep};
use berth_core::spec::{EngineKind, GatewaySpec};
use berth_core::units::Bytes;

const NOW_MS: u64 = 1_000_000_000;

/// An instance of ten GiB on the GPU of its node that can sleep down to one, and its weights take five of host memory.
fn instance(id: &str, node: &str, can_sleep: bool) -> PlannedInstance {
    let mut footprint = Footprint::default();
    footprint.exact("all", Bytes::gib(10), "as it is".to_owned());
    let device = DeviceId("gpu:0".to_owned());
    let share = DeviceShare { device, footprint, resident_ready: Bytes::gib(10) };
    PlannedInstance {
        id: InstanceId(id.to_owned()),
        deployment: id.to_owned(),
        model: id.to_owned(),
        engine: EngineKind::Vllm,
        engine_version: None,
        binary: "vllm".to_owned(),
        args: Vec::new(),
        environment: BTreeMap::new(),
        library: None,
        host: "127.0.0.1".to_owned(),
        port: 1,
        node: node.to_owned(),
        folder: String::new(),
        shares: vec![share],
        cache_tokens: None,
        weight: 1,
        sleep: can_sleep.then(|| Sleep {
            level: 1,
            bytes: vec![Bytes::gib(1)],
            host: Bytes::gib(5),
        }),
    }
}

/// What is so at a moment, in words: `idle a 300` (seconds), `rests a 10`, `wakes a`, `waits a`, `short n0`,
/// `free n0 9` (GiB), `host n0 4`.
fn check(seen: &[&str], expected: &[&str]) {
    let instances =
        vec![instance("a", "n0", true), instance("b", "n0", true), instance("c", "n0", false)];
    let adjust = AdjustSpec { idle_s: 300, ..AdjustSpec::default() };
    let plan = Plan { instances, adjust, ..Plan::nothing(GatewaySpec::default(), None) };
    let (mut idle, mut resting) = (BTreeMap::new(), BTreeMap::new());
    let (mut waiting, mut short, mut free) = (BTreeSet::new(), Vec::new(), BTreeMap::new());
    let mut host_free = BTreeMap::new();
    for line in seen {
        let words: Vec<&str> = line.split(' ').collect();
        let number = || words.get(2).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        let id = InstanceId(words[1].to_owned());
        let (ago_ms, gib) = (NOW_MS - number() * 1000, Bytes::gib(number()));
        let gpu = DeviceId("gpu:0".to_owned());
        match words[0] {
            "idle" => drop(idle.insert(id, ago_ms)),
            "rests" | "wakes" => {
                let config =
                    plan.instance(&id).map(PlannedInstance::config).expect("it is planned");
                let is_waking = words[0] == "wakes";
                let why = String::new();
                resting.insert(id, Rest { config, since_ms: ago_ms, why, is_waking });
            }
            "waits" => drop(waiting.insert(id)),
            "short" => {
                short.push(Short { node: words[1].to_owned(), device: gpu, why: "x".to_owned() })
            }
            "free" => drop(free.insert((words[1].to_owned(), gpu), gib)),
            "host" => drop(host_free.insert(words[1].to_owned(), gib)),
            other => panic!("{other}"),
        }
    }
    let found = orders(Seen {
        plan: &plan,
        idle_since_ms: &idle,
        resting: &resting,
        asked_for: &waiting,
        short: &short,
        free: &free,
        host_free: &host_free,
        now_ms: NOW_MS,
    });
    let words = |order: &Order| match order {
        Order::Sleep { instance, .. } => format!("sleep {instance}"),
        Order::Wake(instance) => format!("wake {instance}"),
    };
    assert_eq!(found.iter().map(words).collect::<Vec<_>>(), expected, "{seen:?}");
}

#[test]
fn an_idle_engine_sleeps_for_others() {
    check(&["idle a 300", "short n0"], &["sleep a"]);
    // Nobody is short; it has not been idle for long; it works; it is asked for; it can't sleep.
    check(&["idle a 300"], &[]);
    check(&["idle a 299", "short n0"], &[]);
    check(&["short n0"], &[]);
    check(&["idle a 300", "waits a", "short n0"], &[]);
    check(&["idle c 300", "short n0"], &[]);
    // Elsewhere.
    check(&["idle a 300", "short n1"], &[]);
    // One at a time, also where two are short of it.
    check(&["idle a 300", "idle b 300", "short n0", "short n0"], &["sleep b"]);
    check(&["idle a 300", "idle b 300", "rests b 15", "short n0"], &["sleep a"]);
    check(&["idle a 300", "idle b 300", "rests b 14", "short n0"], &[]);
    // Its weights need their place first.
    check(&["idle a 300", "short n0", "host n0 4"], &[]);
    check(&["idle a 300", "short n0", "host n0 5"], &["sleep a"]);
}

#[test]
fn one_that_sleeps_wakes_when_there_is_room() {
    check(&["rests a 1", "waits a", "free n0 9"], &["wake a"]);
    check(&["rests a 1", "waits a", "free n0 8"], &[]);
    check(&["rests a 1", "waits a"], &[]);
    // Whoever is asked for goes first, and whoever was short gets a minute.
    check(&["rests a 1", "waits a", "free n0 9", "short n0"], &["wake a"]);
    check(&["rests a 60", "free n0 9"], &["wake a"]);
    check(&["rests a 59", "free n0 9"], &[]);
    check(&["rests a 60", "free n0 9", "short n0"], &[]);
    check(&["wakes a 60", "free n0 9"], &[]);
}
