//! Host memory that vLLM's processes hold for themselves: the API server, the engine's core, and a worker
//! for each GPU. It hardly depends on the weights: pages of their files are the kernel's to take back, and
//! don't count (10 starts of 0.26.0, `data/vllm-host.jsonl`).

use serde_json::Value;

use super::Engine;
use super::calibration::{Estimate, Subject, Term};
use crate::units::Bytes;

/// A tokenizer's entry in the API server and in the core: from one start with a synthetic one of 262,144
/// entries, so twice as much is its
/// pessimistic end.
const TOKENIZER_ENTRY: Bytes = Bytes(5_050);

/// As it likely is after load, and at the pessimistic end.
pub fn memory(engine: &Engine<'_>, subject: &Subject<'_>, args: &Value) -> (Bytes, Bytes) {
    let gpus = subject.tensor_parallel * subject.stages as u64;
    let is = |name: &str| args[name].as_bool().unwrap_or(false);
    // With one GPU the worker is in the core's process, and takes what it takes alone.
    let has_core = gpus > 1 || args["distributed_executor_backend"] == "mp";
    let captures = !is("enforce_eager");
    let sees = subject.model.vision.is_some();
    let at = |estimate| {
        let constants = engine.calibration.constants(subject, estimate);
        let of = |term, applies: bool| {
            if applies { Bytes(constants.get(term)) } else { Bytes::ZERO }
        };
        let entries = if is("skip_tokenizer_init") { 0 } else { subject.model.vocab };
        let tokenizer = TOKENIZER_ENTRY * entries * if estimate == Estimate::High { 2 } else { 1 };
        let worker = of(Term::HostWorker, true)
            + of(Term::HostGraphs, captures)
            + of(Term::HostWorkerImages, sees);
        let once =
            of(Term::HostServer, true) + of(Term::HostCore, has_core) + of(Term::HostImages, sees);
        once + tokenizer + worker * gpus
    };
    (at(Estimate::Likely), at(Estimate::High))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::vllm::communicators::Transport;
    use crate::memory::vllm::version;
    use crate::model::hf_config::Transformer;

    /// The figures were fitted to these rows; the other bounds are how far one may be off.
    #[test]
    fn what_was_measured_is_within_the_band() {
        let mut seen = 0;
        for line in include_str!("../../../../../data/vllm-host.jsonl").lines() {
            let row: Value = serde_json::from_str(line).unwrap_or_default();
            if row["offload_gb"] != 0 {
                continue;
            }
            let name = row["model"].as_str().unwrap_or_default().trim_end_matches("-real");
            let path = format!("{}/../../data/configs/{name}.json", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let config = serde_json::from_str(&text).unwrap_or_default();
            let Ok(model) = Transformer::from_config(&config) else { panic!("no {path}") };
            let engine = Engine::of_version("0.26.0");
            let Some(version) = version::parse("0.26.0") else { panic!() };
            let subject = Subject {
                gpu: None,
                version,
                model: &model,
                tensor_parallel: 1,
                stages: 1,
                transport: Transport::Bus,
            };
            let sees = row["after_images_sum"].as_u64();
            // Its tokenizer was a stand-in without entries.
            let skips = row["skip_tokenizer_init"] == true || sees.is_some();
            let args = serde_json::json!({
                "distributed_executor_backend": row["executor"],
                "enforce_eager": row["enforce_eager"],
                "skip_tokenizer_init": skips,
            });
            let sum = || -> u64 {
                let roles = row["after_load"].as_object().into_iter().flatten();
                roles.filter_map(|(_, bytes)| bytes.as_u64()).sum()
            };
            let measured = sees.unwrap_or_else(sum) as f64;
            let (likely, high) = memory(&engine, &subject, &args);
            let off = likely.0 as f64 / measured - 1.0;
            assert!(off.abs() < 0.06, "{}: {:.1} % off", row["name"], off * 100.0);
            let peaks = ["peak_starting", "peak_load", "peak_images"];
            let peak = peaks.iter().filter_map(|name| row[name].as_u64()).max();
            assert!(high.0 >= peak.unwrap_or_default(), "{}: {high}", row["name"]);
            seen += 1;
        }
        assert_eq!(seen, 9);
    }
}
