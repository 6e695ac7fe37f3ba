//! Row by row: the verdict, the message, and every figure that vLLM logged or NVML counted.

use berth_core::units::Bytes;
use serde_json::Value;

use crate::data;

/// What an error may be, as a share of what was measured.
type Bounds = std::ops::RangeInclusive<f64>;

/// One load leaves less behind than the most that loads of every order leave, which is what is planned.
const AFTER_ONE_LOAD: Bounds = -0.005..=0.026;

const GIB: f64 = (1_u64 << 30) as f64;

/// What is wrong with the prediction of a row.
fn check(row: &Value, process: Bounds, served: Bounds) -> Vec<String> {
    let fit = data::predict(row);
    let measured = &row["measured"];
    let mut wrong = Vec::new();
    if measured["verdict"] != fit.verdict.as_str() {
        wrong.push(format!("verdict {}: {:?}", fit.verdict.as_str(), fit.message));
    }
    if let (Some(said), Some(message)) = (measured["error"].as_str(), &fit.message) {
        let same = message.chars().zip(said.chars()).take_while(|(a, b)| a == b).count();
        // The rows keep the first 400 characters or so.
        if same < said.len().min(message.len()).min(300) {
            wrong.push(format!("says {message:?}, not {said:?}"));
        }
    }
    let Some(stage) = fit.stages.first() else { return wrong };
    let mut expect = |what: &str, predicted: f64, measured: &Value, bounds: Bounds| {
        let Some(measured) = measured.as_f64().filter(|value| *value != 0.0) else { return };
        let error = predicted / measured - 1.0;
        if !bounds.contains(&error) {
            wrong.push(format!(
                "{what} {:+.2} %: {predicted:.3}, measured {measured}",
                error * 100.0
            ));
        }
    };
    let gib = |bytes: Bytes| bytes.0 as f64 / GIB;
    // The log's two decimals are 1 % of half a GiB.
    expect("weights", gib(stage.weights), &measured["weights_gib"], -0.01..=0.01);
    expect("tokens", fit.kv_cache_tokens as f64, &measured["kv_cache_tokens"], -0.01..=0.01);
    expect("concurrency", fit.max_concurrency, &measured["max_concurrency"], -0.01..=0.01);
    expect("ready", stage.ready.0 as f64, &measured["process_bytes_ready"], process.clone());
    for (what, bytes) in [("served", stage.served), ("peak", stage.peak)] {
        expect(what, bytes.0 as f64, &measured[format!("process_bytes_{what}")], served.clone());
    }
    let total = measured["process_bytes_ready"].as_f64().unwrap_or(f64::INFINITY);
    let cache = measured["kv_cache_gib"].as_f64().unwrap_or(stage.kv_cache as f64 / GIB);
    if (stage.kv_cache as f64 - cache * GIB).abs() > 0.01 * total {
        wrong.push(format!("KV cache {:.2} GiB, logged {cache}", stage.kv_cache as f64 / GIB));
    }
    wrong
}

fn check_file(file: &str, expected: usize, process: Bounds, served: Bounds) {
    let rows = data::rows(file);
    assert_eq!(rows.len(), expected, "{file} has lost or gained rows");
    let wrong: Vec<String> = rows
        .iter()
        .flat_map(|row| {
            let name = row["name"].as_str().unwrap().to_owned();
            check(row, process.clone(), served.clone())
                .into_iter()
                .map(move |what| format!("{name}: {what}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The rows that the calibration comes from.
#[test]
fn h100_rows_are_met() {
    check_file("vllm-h100.jsonl", 13, -0.005..=0.006, AFTER_ONE_LOAD);
}

/// Another card, mostly other models.
#[test]
fn h200_rows_are_met() {
    check_file("vllm-h200.jsonl", 11, -0.005..=0.005, AFTER_ONE_LOAD);
}

/// Rows with PyTorch's own figures, measured from within the process.
#[test]
fn h200_rows_from_within_are_met() {
    check_file("vllm-h200-inside.jsonl", 15, -0.005..=0.005, AFTER_ONE_LOAD);
}

/// Starts that were measured once all of the above was frozen, of kinds that were not there before:
/// experts with graphs, and Mistral with graphs and a batch of 4096.
#[test]
fn later_h200_rows_are_met() {
    check_file("vllm-h200-later.jsonl", 2, -0.005..=0.005, AFTER_ONE_LOAD);
}

/// Prompts of every length alone, the longest contexts, full batches, bursts: what they leave behind together.
#[test]
fn growth_is_met() {
    check_file("vllm-growth.jsonl", 18, -0.005..=0.005, -0.005..=0.011);
}

/// What PyTorch reserved, and the pool of the graphs: the replay of its allocator, without anything
/// fitted but what compiling leaves behind.
#[test]
fn the_allocator_is_met() {
    const MIB: f64 = (1_u64 << 20) as f64;
    for row in data::rows("vllm-h200-inside.jsonl") {
        let fit = data::predict(&row);
        let stage = &fit.stages[0];
        let is_eager = row["args"]["enforce_eager"] == true;
        let measured = |key: &str| row["measured"][key].as_f64();
        let off =
            |bytes: Bytes, key: &str| measured(key).map_or(0.0, |at| (bytes.0 as f64 - at) / MIB);
        let ready = off(stage.reserved_ready, "torch_reserved_ready");
        let served = off(stage.reserved_served, "torch_reserved_served");
        let pool = off(stage.terms.get("cuda_graph_pool"), "graph_pool_bytes");
        let bounds = if is_eager { -25.0..=5.0 } else { -80.0..=140.0 };
        let name = &row["name"];
        assert!(bounds.contains(&ready), "{name}: {ready:+} MiB when ready");
        assert!(served >= *bounds.start(), "{name}: {served:+} MiB after load");
        assert!(pool.abs() <= 14.0, "{name}: {pool:+} MiB in the graphs' pool");
    }
}

/// A check that can't fail checks nothing.
#[test]
fn a_wrong_row_is_seen() {
    let mut row = data::rows("vllm-h100.jsonl").remove(0);
    for (pointer, value) in [
        ("/measured/verdict", Value::from("oom_on_load")),
        ("/measured/weights_gib", 52.0.into()),
        ("/measured/kv_cache_tokens", 64_000.into()),
        ("/measured/process_bytes_ready", 70_000_000_000_u64.into()),
    ] {
        let right = std::mem::replace(row.pointer_mut(pointer).unwrap(), value);
        assert!(!check(&row, -0.005..=0.006, AFTER_ONE_LOAD).is_empty(), "{pointer}");
        *row.pointer_mut(pointer).unwrap() = right;
    }
}

/// The page that derives a footprint by hand arrives at the model's own bytes.
#[test]
fn the_page_by_hand_is_right() {
    let page = include_str!("../../../../docs/by-hand.md");
    let rows = data::rows("vllm-h100.jsonl");
    let row = rows.iter().find(|row| row["name"] == "qwen3-8b-eager").unwrap();
    let fit = data::predict(row);
    let stage = &fit.stages[0];
    let terms = stage.terms.terms.iter().map(|term| term.bytes.0);
    let figures = [stage.served.0, stage.activation_peak.0, fit.kv_cache_tokens];
    for figure in terms.chain(figures) {
        assert!(page.contains(&grouped(figure)), "{} is not on the page", grouped(figure));
    }
    assert!(page.contains(&format!("{} blocks", fit.kv_cache_blocks)));
}

/// With commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let parts: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|part| std::str::from_utf8(part).unwrap()).collect();
    parts.join(",")
}
