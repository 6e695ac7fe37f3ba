//! vLLM's sleep mode as reckoned, against what it took on an H200 (`data/vllm-sleep.jsonl`, vLLM 0.26.0).

use berth_core::memory::vllm::{Engine, EntryPoint, Gpu, StageFit, fit};
use berth_core::model::hf_config::Transformer;
use serde_json::Value;

/// How far one may be off, as a share of what was measured.
const CACHE: f64 = 0.001;
const READY: f64 = 0.005;
const ASLEEP: f64 = 0.12;
const PINNED: f64 = 0.005;

fn reckoned(row: &Value) -> (u64, StageFit) {
    let name = row["model"].as_str().unwrap_or_default();
    let path = format!("{}/../../data/configs/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect("the model's config");
    let config = serde_json::from_str(&text).expect("JSON");
    let model = Transformer::from_config(&config).expect("a model");
    let gpu = Gpu::from_row(&row["gpu"]).expect("a GPU");
    let engine = Engine { entry_point: EntryPoint::Llm, ..Engine::of_version("0.26.0") };
    let fit = fit(&model, &row["args"], &[gpu], &engine);
    (fit.kv_cache_blocks, fit.stages.into_iter().next().expect("it starts"))
}

#[test]
fn what_sleeps_is_reckoned_as_it_was_measured() {
    let mut slept = 0;
    for line in include_str!("../../../data/vllm-sleep.jsonl").lines() {
        let row: Value = serde_json::from_str(line).expect("JSON");
        let (blocks, stage) = reckoned(&row);
        let points = row["measured"]["points"].as_array().cloned().unwrap_or_default();
        let at = |point: &str, what: &str| {
            let found = points.iter().find(|one| one["point"] == point);
            found.and_then(|one| one[what].as_u64())
        };
        let check = |what: &str, reckoned: u64, measured: u64, bound: f64| {
            let off = reckoned as f64 / measured as f64 - 1.0;
            assert!(off.abs() < bound, "{}: {what} {:.2} % off", row["name"], off * 100.0);
        };
        let measured = row["measured"]["num_gpu_blocks"].as_u64().expect("blocks");
        check("cache", blocks, measured, CACHE);
        check("ready", stage.ready.0, at("ready", "gpu_bytes").expect("bytes"), READY);
        assert_eq!(stage.asleep.is_some(), row["args"]["enable_sleep_mode"] == true);
        if let (Some(asleep), Some(measured)) = (stage.asleep, at("asleep_1", "gpu_bytes")) {
            check("asleep", asleep.0, measured, ASLEEP);
            let [before, after] = ["ready", "asleep_1"].map(|point| at(point, "rssshmem_bytes"));
            let pinned = after.expect("bytes") - before.expect("bytes");
            check("pinned", stage.pinned.0, pinned, PINNED);
            slept += 1;
        }
    }
    assert_eq!(slept, 9);
}
