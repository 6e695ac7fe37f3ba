//! Strategies side by side: the case of sixteen machines, and what must hold for any.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use berth_core::memory::vllm::Engine;
use berth_core::model::hf_config::Transformer;
use berth_core::model::known;
use berth_core::perf::Speeds;
use berth_core::placement::{Found, LocatedModel};
use berth_core::spec::{EngineKind, Spec};
use berth_core::strategy::report::{Comparison, StrategyReport};
use berth_core::strategy::{Cluster, Language, StrategyVerdict, compare};
use berth_core::units::Bytes;

const CASE: &str = include_str!("../../../examples/medgemma-16x4.toml");

fn found(spec: &Spec) -> Found {
    let mut found = Found::default();
    let strategies = spec.strategies.iter().flat_map(|one| &one.spec.deployments);
    for one in spec.deployments.iter().chain(strategies) {
        if one.engine == EngineKind::Vllm && one.facts.is_none() {
            let name = one.source.to_string();
            let model = Transformer::from_config(&known::find(&name).unwrap().config).unwrap();
            found.models.insert(one.weights(), LocatedModel::transformer(name, model));
        }
        found.assume(std::slice::from_ref(one));
    }
    found
}

fn compared(text: &str) -> Comparison {
    let spec = Spec::parse("s", text).unwrap();
    let found = found(&spec);
    let engine = Engine::of_version(&spec.vllm_version);
    let speeds = &Speeds::default();
    compare::compare(&spec, &Cluster { nodes: &[], found: &found, engine, speeds }, &|| 0.0)
        .unwrap()
}

fn named<'a>(compared: &'a Comparison, name: &str) -> &'a StrategyReport {
    compared.strategies.iter().find(|one| one.name == name).unwrap_or_else(|| panic!("no {name}"))
}

/// Each strategy of the case with its verdict, and what is said of it.
#[test]
fn the_case() {
    use StrategyVerdict::{Fits, Impossible, Tight};
    let compared = compared(CASE);
    for (name, verdict, says) in [
        ("as-written", Impossible, "GPU memory utilization (0.92, 20.29 GiB)"),
        ("1A-lower-090", Impossible, "is less than desired GPU memory utilization (0.1, 2.21 GiB)"),
        ("1A-lower-090", Impossible, "9.20 GB is a sum over 4 GPUs"),
        (
            "1B-lower-093",
            Impossible,
            "is less than desired GPU memory utilization (0.07, 1.54 GiB)",
        ),
        ("1B-lower-093", Impossible, "6.44 GB is a sum over 4 GPUs"),
        ("2-dedicate", Impossible, "medgemma-4b on node-0"),
        (
            "3A-split-3-1",
            Impossible,
            "attention heads (32) must be divisible by tensor parallel size (3)",
        ),
        ("3A-split-3-1", Impossible, "there is nothing to add up"),
        ("3B-ollama", Impossible, "not even one layer fits"),
        ("3B-ollama", Impossible, "13.00 GB is a sum over 4 GPUs"),
        ("fewer-sequences", Impossible, "is less than desired GPU memory utilization (0.05"),
        ("spread", Impossible, "max seq len (8192)"),
        ("spread-fp8", Tight, "engines share 4 GPUs"),
        ("pipeline-plus-one", Impossible, "CUDA out of memory"),
        ("pipeline-plus-one-fp8", Fits, "medgemma-27b runs as fp8"),
        ("half-fp8", Fits, "medgemma-27b runs as fp8"),
        ("int4", Fits, "medgemma-27b runs as w4a16"),
        ("ollama-q8", Impossible, "No available memory for the cache blocks"),
        ("node-for-newcomer", Fits, "has 987 MiB left"),
        ("best", Fits, "has 987 MiB left"),
    ] {
        let report = named(&compared, name);
        assert_eq!(report.verdict, verdict, "{name}");
        let findings = report.reasons.iter().chain(&report.complexity);
        let beside = report.written.iter().map(|written| &written.finding);
        let said: Vec<String> = findings.chain(beside).map(ToString::to_string).collect();
        assert!(said.iter().any(|text| text.contains(says)), "{name}: {said:#?} lacks {says:?}");
    }
    assert_eq!(compared.recommended.as_deref(), Some("node-for-newcomer"));
    assert_eq!(compared.runner_up.as_deref(), Some("best"));
    assert!(compared.runner_up_wins[0].to_string().contains("61 GPUs, the first 64"));
    let today = compared.today.unwrap();
    assert_eq!((today.verdict, today.restarts), (Fits, 0));
    assert_eq!(today.models[0].instances, 16);
}

/// What other people's scripts rely on.
#[test]
fn the_contract() {
    let json = serde_json::to_value(compared(CASE)).unwrap();
    for pointer in [
        "/plan_digest",
        "/recommended",
        "/strategies/0/name",
        "/strategies/0/verdict",
        "/strategies/0/reasons/0",
        "/strategies/0/gpus/63/node",
        "/strategies/0/gpus/63/gpu",
        "/strategies/0/gpus/63/total_bytes",
        "/strategies/0/gpus/63/planned_bytes",
        "/strategies/0/gpus/63/headroom_bytes",
        "/strategies/0/gpus/63/instances/0/model",
        "/strategies/0/gpus/63/instances/0/bytes",
        "/strategies/0/models/0/name",
        "/strategies/0/models/0/instances",
        "/strategies/0/models/0/kv_cache_tokens",
        "/strategies/0/models/0/max_concurrency",
        "/strategies/0/models/0/tokens_per_second/low",
        "/strategies/0/models/0/tokens_per_second/mid",
        "/strategies/0/models/0/tokens_per_second/high",
        "/strategies/0/restarts",
    ] {
        assert!(json.pointer(pointer).is_some_and(|value| !value.is_null()), "{pointer}");
    }
    let strategies = json["strategies"].as_array().unwrap();
    let solver = &strategies.iter().find(|one| one["name"] == "best").unwrap()["solver"];
    for figure in ["objective", "bound", "gap", "ms"] {
        assert!(solver[figure].is_number(), "{figure}");
    }
}

/// What fits has room on each GPU, not in their sum.
#[test]
fn what_fits_fits_on_every_gpu() {
    for report in compared(CASE).strategies {
        if report.verdict == StrategyVerdict::Impossible {
            continue;
        }
        for gpu in &report.gpus {
            let held: Bytes = gpu.instances.iter().map(|share| share.bytes).sum();
            assert_eq!(held, gpu.planned_bytes, "{} {}", report.name, gpu.gpu);
            assert!(gpu.planned_bytes + gpu.headroom_bytes <= gpu.total_bytes, "{}", report.name);
        }
        // All cards are alike here, and what is kept has more left than what is new.
        let least =
            report.gpus.iter().filter(|gpu| gpu.node == "node-0" && !gpu.instances.is_empty());
        let least = least.map(|gpu| gpu.headroom_bytes).min();
        if let Some(least) = least.filter(|_| report.restarts > 0) {
            assert_eq!(report.worst.unwrap().headroom_bytes, least, "{}", report.name);
        }
    }
}

/// The order of a file's sections and of its nodes is no input.
#[test]
fn the_order_of_the_file_does_not_matter() {
    let mut sections: Vec<String> = Vec::new();
    for line in CASE.lines() {
        if line.starts_with('[') || sections.is_empty() {
            sections.push(String::new());
        }
        sections.last_mut().unwrap().push_str(&format!("{line}\n"));
    }
    sections.reverse();
    let nodes = "names = \"node-[0-15]\"\ngpu = \"A10\"\ngpus = 4";
    let apart: Vec<String> = (0..16)
        .rev()
        .map(|n| format!("[[cluster.nodes]]\nnames = \"node-{n}\"\ngpu = \"A10\"\ngpus = 4\n"))
        .collect();
    let turned =
        sections.concat().replace(&format!("[[cluster.nodes]]\n{nodes}\n"), &apart.concat());
    assert!(!turned.contains("node-[0-15]\"\ngpu"), "the nodes are apart");
    let text = |compared: &Comparison| serde_json::to_string(compared).unwrap();
    assert_eq!(text(&compared(&turned)), text(&compared(CASE)));
}

/// A strategy that is found can be put into the file, and is the same there.
#[test]
fn what_is_found_can_be_written_down() {
    let first = compared(CASE);
    let found: Vec<&StrategyReport> =
        first.strategies.iter().filter(|report| report.is_found).collect();
    assert!(found.len() > 8);
    let texts: Vec<String> = found.iter().map(|report| report.toml.clone().unwrap()).collect();
    let second = compared(&format!("{CASE}\n{}", texts.concat()));
    for report in found {
        let written = named(&second, &report.name);
        assert_eq!(written.plan_digest, report.plan_digest, "{}", report.name);
        assert!(!written.is_found);
    }
}

/// Once the recommended strategy runs, it asks for nothing more.
#[test]
fn what_runs_as_recommended_is_left_alone() {
    let best = compared(CASE);
    let best = named(&best, "node-for-newcomer");
    let flags = best.toml.as_ref().unwrap().lines().filter(|line| line.starts_with("flags"));
    let flags: Vec<&str> = flags.collect();
    let running =
        CASE.replace("nodes = \"node-[0-15]\"\n# What", "nodes = \"node-[1-15]\"\n# What");
    let text = format!(
        "{running}\n[models.medgemma-4b.running]\nnodes = \"node-0\"\n{}\n{}",
        flags[1],
        best.toml.as_ref().unwrap()
    );
    let text = text.replace("replicas = { min = 1, max = 4 }", "replicas = 1");
    let report = compared(&text);
    assert_eq!(named(&report, "node-for-newcomer").restarts, 0);
    assert!(named(&report, "node-for-newcomer").verdict == StrategyVerdict::Fits);
}

/// Nothing is left in English, but for what engines say.
#[test]
fn everything_is_said_in_spanish_too() {
    let compared = compared(CASE);
    let reports = compared.strategies.iter();
    let mut count = 0;
    for finding in reports.flat_map(|report| report.reasons.iter().chain(&report.complexity)) {
        let (english, spanish) = (finding.say(Language::English), finding.say(Language::Spanish));
        let notes = matches!(finding, berth_core::strategy::words::Finding::Note { .. });
        assert!(english != spanish || notes, "{english}");
        count += 1;
    }
    assert!(count > 40);
}

/// Another machine never makes the best worse, and another kind of GPU changes the answer.
#[test]
fn more_and_larger_machines_help() {
    let more = CASE.replace("names = \"node-[0-15]\"\ngpu", "names = \"node-[0-16]\"\ngpu");
    let (before, after) = (compared(CASE), compared(&more));
    let kept = |compared: &Comparison| {
        let report = named(compared, "best");
        report.models.iter().find(|model| model.name == "medgemma-27b").unwrap().capacity.unwrap()
    };
    assert!(kept(&after) >= kept(&before));
    let larger = CASE.replace("gpu = \"A10\"", "gpu = \"L40S\"");
    let spread = compared(&larger);
    assert_eq!(named(&spread, "spread").verdict, StrategyVerdict::Fits);
}

/// The documents have every strategy, no markup from outside, and need nothing else.
#[test]
fn documents_are_whole() {
    use berth_core::strategy::document::{html, markdown};
    let mut compared = compared(CASE);
    compared.strategies[0].title = Some("<script>alert(1)</script>".to_owned());
    for language in [Language::English, Language::Spanish] {
        let (page, text) = (html(&compared, language), markdown(&compared, language));
        for one in &compared.strategies {
            assert!(page.contains(&one.name) && text.contains(&one.name), "{}", one.name);
        }
        assert!(!page.contains("<script") && !page.contains("http:") && !page.contains("src="));
        assert!(page.contains("<svg") && text.contains("█"));
    }
    assert!(html(&compared, Language::Spanish).contains("recomendada: node-for-newcomer"));
}

const BIG: &str = "source = \"medgemma-27b\"\nengine = \"vllm\"\nflags = { tensor_parallel_size = 4, \
                   gpu_memory_utilization = 0.9, max_model_len = 8192, enforce_eager = true }\n";
const SMALL: &str = "source = \"medgemma-4b\"\nengine = \"vllm\"\nflags = { max_model_len = 8192, enforce_eager = true }\n";

fn cluster(nodes: &[(&str, &str, u32)]) -> String {
    let node = |(names, gpu, gpus): &(&str, &str, u32)| {
        format!("[[cluster.nodes]]\nnames = \"{names}\"\ngpu = \"{gpu}\"\ngpus = {gpus}\n")
    };
    nodes.iter().map(node).collect()
}

/// Other clusters than the case's: what a strategy comes to, and the first GPUs that are taken.
#[test]
fn other_clusters() {
    use StrategyVerdict::{Fits, Impossible};
    let four = cluster(&[("n[0-3]", "A10", 4)]);
    let three = cluster(&[("n", "A10", 3)]);
    let mixed = cluster(&[("a", "A10", 1), ("h", "H200", 1)]);
    let model = |name: &str, body: &str, more: &str| format!("[models.{name}]\n{body}{more}\n");
    let stages = "pipeline_parallel_size = 3, gpu_memory_utilization = 0.9, max_model_len";
    let pipeline = SMALL.replace("max_model_len", stages);
    let pair = SMALL.replace("max_model_len", "tensor_parallel_size = 2, max_model_len");
    for (what, text, name, verdict, taken) in [
        (
            "a window that is not aligned",
            format!(
                "{four}{}{}",
                model("a", SMALL, "devices = [\"gpu:0\"]\nnodes = \"n0\""),
                model("b", &pipeline, "nodes = \"n0\"")
            ),
            "as-written",
            Fits,
            vec!["a-0 gpu:0", "b-0 gpu:1", "b-0 gpu:2", "b-0 gpu:3"],
        ),
        (
            "every one of the GPUs that are named",
            format!(
                "{four}{}",
                model("a", SMALL, "devices = [\"gpu:1\", \"gpu:3\"]\nreplicas = 2\nnodes = \"n2\"")
            ),
            "as-written",
            Fits,
            vec!["a-0 gpu:1", "a-1 gpu:3"],
        ),
        (
            "GPUs that are not side by side",
            format!("{four}{}", model("a", &pair, "devices = [\"gpu:0\", \"gpu:3\"]")),
            "as-written",
            Impossible,
            vec![],
        ),
        (
            "a pair beside one that runs on three GPUs",
            format!(
                "{three}{}{}[models.a.running]\nnodes = \"n\"\n",
                model("b", &pair, ""),
                model("a", SMALL, "")
            ),
            "best",
            Fits,
            vec!["a-1-0 gpu:0", "b-1-0 gpu:1"],
        ),
        (
            "where it runs it stays",
            format!(
                "{four}{}[models.a.running]\nnodes = \"n1\"\ndevices = [\"gpu:2\"]\n",
                model("a", SMALL, "")
            ),
            "best",
            Fits,
            vec!["a-1-0 gpu:2"],
        ),
        (
            "a small card is not judged by a large one",
            format!("{mixed}{}", model("a", SMALL, "nodes = \"a\"")),
            "as-written",
            Fits,
            vec!["a-0 gpu:0"],
        ),
        (
            "two newcomers, found apart",
            format!(
                "{four}{}[models.old.running]\nnodes = \"n[0-3]\"\n{}{}",
                model("old", BIG, "replicas = { min = 1, max = 4 }"),
                model("b", SMALL, "nodes = \"n0\""),
                model("c", SMALL, "nodes = \"n1\"")
            ),
            "half-fp8-c",
            Impossible,
            vec![],
        ),
        (
            "an engine that a strategy says again",
            format!(
                "{four}{}[models.a.deployments.x]\nnodes = \"n0\"\n\
                 [strategies.again.models.a.deployments.x]\nengine = \"vllm\"\n",
                model("a", BIG, "")
            ),
            "again",
            Fits,
            vec!["a-x-0 gpu:0", "a-x-0 gpu:1", "a-x-0 gpu:2", "a-x-0 gpu:3"],
        ),
    ] {
        let compared = compared(&text);
        let report = named(&compared, name);
        assert_eq!(report.verdict, verdict, "{what}: {:#?}", report.reasons);
        let place = |gpu: &berth_core::strategy::report::GpuReport| {
            let share = gpu.instances.first()?;
            Some(format!("{} {}", share.instance, gpu.gpu))
        };
        let places: Vec<String> = report.gpus.iter().filter_map(place).collect();
        assert!(
            taken.iter().all(|one| places.iter().any(|place| place == one)),
            "{what}: {places:?}"
        );
        assert!(!taken.is_empty() || verdict == Impossible, "{what}");
    }
}

/// Two racks of two nodes: a model that is spread, one that stays beside another, and host memory. What is
/// on which node, as written and as the program finds it; or why nothing is.
#[test]
fn rules_about_other_instances() {
    let rack = |names: &str, rack: &str, more: &str| {
        format!(
            "[[cluster.nodes]]\nnames = \"{names}\"\ngpu = \"A10\"\ngpus = 1\n\
             labels = {{ rack = \"{rack}\" }}\n{more}\n"
        )
    };
    let racks = |more: &str| format!("{}{}", rack("a[0-2]", "a", more), rack("b[0-1]", "b", more));
    let model = |name: &str, more: &str| format!("[models.{name}]\n{SMALL}{more}\n");
    for (what, text, taken) in [
        (
            "as evenly as there is room",
            racks("") + &model("m", "replicas = 2\nspread = \"rack\""),
            Ok(vec![("m", "a0"), ("m", "b0")]),
        ),
        (
            "no more than so many in a rack, although there is a free node",
            racks("")
                + &model(
                    "m",
                    "replicas = { min = 1, max = 5 }\nspread = { over = \"rack\", most = 2 }\n\
                     demand = { requests_per_second = 100 }",
                ),
            Ok(vec![("m", "a0"), ("m", "a1"), ("m", "b0"), ("m", "b1")]),
        ),
        (
            "more than the racks may have",
            racks("") + &model("m", "replicas = 3\nspread = { over = \"rack\", most = 1 }"),
            Err("every rack has its 1 of m already"),
        ),
        (
            "beside another in its rack",
            racks("")
                + &model("m", "nodes = \"b0\"")
                + &model("n", "beside = { model = \"m\", over = \"rack\" }"),
            Ok(vec![("m", "b0"), ("n", "b1")]),
        ),
        (
            "beside another on its node, which is full",
            racks("") + &model("m", "nodes = \"b0\"") + &model("n", "beside = \"m\""),
            Err("less than desired GPU memory utilization"),
        ),
        (
            "beside one that isn't where it may be",
            racks("")
                + &model("m", "nodes = \"b0\"")
                + &model("n", "beside = { model = \"m\", over = \"rack\" }\nnodes = \"a0\""),
            Err("there is no m on a rack with room"),
        ),
        (
            "host memory for its processes",
            racks("host_memory = \"1 GiB\"") + &model("m", ""),
            Err("of host memory, and 1.00 GiB are left"),
        ),
    ] {
        let compared = compared(&text);
        for name in ["as-written", "best"] {
            let Some(report) = compared.strategies.iter().find(|one| one.name == name) else {
                panic!("{what}: no {name}")
            };
            let said: Vec<String> = report.reasons.iter().map(ToString::to_string).collect();
            let holds = report
                .gpus
                .iter()
                .filter_map(|gpu| Some((gpu.instances.first()?.model.as_str(), gpu.node.as_str())));
            let mut holds: Vec<(&str, &str)> = holds.collect();
            holds.sort_unstable();
            match &taken {
                Ok(taken) => {
                    assert_eq!(report.verdict, StrategyVerdict::Fits, "{what}, {name}: {said:#?}");
                    assert_eq!(holds, *taken, "{what}, {name}");
                }
                Err(why) if name == "as-written" => {
                    assert_eq!(report.verdict, StrategyVerdict::Impossible, "{what}: {said:#?}");
                    assert!(said.iter().any(|text| text.contains(why)), "{what}: {said:#?}");
                }
                Err(_) => {}
            }
        }
    }
}
