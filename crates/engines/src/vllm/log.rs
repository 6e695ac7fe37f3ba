//! The lines of a start in vLLM's log (0.26 to 0.33).

use std::collections::BTreeMap;

use berth_core::ledger::Reported;
use berth_core::memory::vllm::learning::StartLog;
use berth_core::units::Bytes;

/// Reads what a log says about memory. Of lines that are there several times, once for each rank or
/// start, the last counts.
pub fn read(log: &str) -> StartLog {
    let mut start = StartLog::default();
    for line in log.lines() {
        read_line(line, &mut start);
    }
    start
}

/// What a log reports of the terms of a plan, which it gives in GiB with two decimals; none where it says nothing of
/// them.
pub fn reported(log: &str) -> Option<Reported> {
    const GIB: f64 = (1_u64 << 30) as f64;
    let start = read(log);
    // Not its "non-torch memory": beside neighbours and with sleep mode that is miscounted.
    let terms = [("weights", start.weights_gib), ("kv_cache", start.kv_cache_gib)];
    let said = |(term, gib): (&str, Option<f64>)| {
        Some((term.to_owned(), Bytes((gib.filter(|gib| *gib >= 0.0)? * GIB) as u64)))
    };
    let said: BTreeMap<String, Bytes> = terms.into_iter().filter_map(said).collect();
    (!said.is_empty()).then_some(Reported(said))
}

fn read_line(line: &str, start: &mut StartLog) {
    set(&mut start.engine_version, between(line, "engine (v", ")").map(str::to_owned));
    set(
        &mut start.engine_version,
        between(line, "vLLM API server version ", " ").map(str::to_owned),
    );
    set(&mut start.tensor_parallel, number_after(line, "tensor_parallel_size="));
    set(&mut start.stages, number_after(line, "pipeline_parallel_size="));
    set(&mut start.weights_gib, float_after(line, "Model loading took "));
    set(&mut start.kv_cache_gib, float_after(line, "Available KV cache memory: "));
    set(&mut start.kv_cache_tokens, number_after(line, "GPU KV cache size: "));
    if line.contains("Graph capturing finished") {
        set(&mut start.cuda_graphs_gib, float_after(line, "took "));
    }
    // From 0.29 on there is an estimate beside it; what is said to be used is the real figure.
    if let Some(used) = line.split("Actual usage is ").nth(1) {
        set(&mut start.activation_peak_gib, float_before(used, " GiB for peak activation"));
        set(&mut start.non_torch_gib, float_before(used, " GiB for non-torch memory"));
        set(&mut start.consumed_gib, float_before(used, " GiB for consumed memory"));
        set(&mut start.cuda_graphs_gib, float_before(used, " GiB for CUDAGraph memory"));
    }
    if let Some(device) = between(line, "Free memory on device", " GiB)") {
        let pair = device.rsplit_once('(').and_then(|(_, pair)| pair.split_once('/'));
        let parsed = pair.and_then(|(free, total)| Some((free.parse().ok()?, total.parse().ok()?)));
        set(&mut start.free_and_total_gib, parsed);
    }
}

fn set<T>(place: &mut Option<T>, value: Option<T>) {
    if value.is_some() {
        *place = value;
    }
}

fn between<'a>(line: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = line.split_once(before)?.1;
    Some(rest.split_once(after).map_or(rest, |(text, _)| text))
}

fn is_number(c: char) -> bool {
    c.is_ascii_digit() || c == '.' || c == '-'
}

fn float_after(line: &str, before: &str) -> Option<f64> {
    let rest = line.split_once(before)?.1;
    let end = rest.find(|c| !is_number(c)).unwrap_or(rest.len());
    rest[..end].parse().ok().filter(|value: &f64| value.is_finite())
}

fn float_before(text: &str, after: &str) -> Option<f64> {
    let before = text.split_once(after)?.0;
    let start = before.rfind(|c| !is_number(c)).map_or(0, |at| at + 1);
    before[start..].parse().ok().filter(|value: &f64| value.is_finite())
}

/// A whole number that may have thousands separated by commas.
fn number_after(line: &str, before: &str) -> Option<u64> {
    let rest = line.split_once(before)?.1;
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != ',').unwrap_or(rest.len());
    rest[..end].replace(',', "").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_reported_where_they_are_logged() {
        for (log, want) in [
            ("nothing of memory", vec![]),
            ("Model loading took 15.50 GiB and 1.7 seconds", vec![("weights", 15.5)]),
            ("Available KV cache memory: -0.50 GiB", vec![]),
            (
                "Available KV cache memory: 16.25 GiB\nActual usage is 15.27 GiB for weight, 1.29 GiB for peak \
                 activation, 0.25 GiB for non-torch memory",
                vec![("kv_cache", 16.25)],
            ),
        ] {
            let want = want.into_iter().map(|(term, gib): (&str, f64)| {
                (term.to_owned(), Bytes((gib * (1_u64 << 30) as f64) as u64))
            });
            assert_eq!(reported(log).unwrap_or_default().0, want.collect(), "{log}");
        }
    }

    #[test]
    fn a_log_of_0_26_is_read() {
        let log = "INFO 11-24 10:55:58 [core.py:116] Initializing a V1 LLM engine (v0.26.0) with config: model='/m', tensor_parallel_size=1, pipeline_parallel_size=1, \n\
            INFO [model_runner.py:305] Model loading took 15.27 GiB and 1.754948 seconds\n\
            INFO [gpu_worker.py:560] Available KV cache memory: 18.27 GiB\n\
            INFO [kv_cache_utils.py:1] GPU KV cache size: 133,008 tokens\n\
            INFO [model_runner.py:747] Graph capturing finished in 6 secs, took 0.61 GiB\n\
            INFO [gpu_worker.py:857] Free memory on device (139.29/139.8 GiB) on startup. Desired GPU memory utilization is (0.25, 34.95 GiB). Actual usage is 15.27 GiB for weight, 1.19 GiB for peak activation, 0.22 GiB for non-torch memory, and 0.61 GiB for CUDAGraph memory. Replace";
        let expected = StartLog {
            engine_version: Some("0.26.0".to_owned()),
            tensor_parallel: Some(1),
            stages: Some(1),
            free_and_total_gib: Some((139.29, 139.8)),
            weights_gib: Some(15.27),
            activation_peak_gib: Some(1.19),
            non_torch_gib: Some(0.22),
            consumed_gib: None,
            cuda_graphs_gib: Some(0.61),
            kv_cache_gib: Some(18.27),
            kv_cache_tokens: Some(133_008),
        };
        assert_eq!(read(log), expected);
    }

    #[test]
    fn a_log_of_0_33_is_read() {
        let log = "Free memory on device (21.8/22.06 GiB) on startup. Desired GPU memory utilization is (0.9, 19.85 GiB). Actual usage is 9.61 GiB for consumed memory (weights + non-torch), 0.5 GiB for peak activation, and 0.3 GiB for CUDAGraph memory.";
        let start = read(log);
        assert_eq!(start.consumed_gib, Some(9.61));
        assert_eq!((start.activation_peak_gib, start.cuda_graphs_gib), (Some(0.5), Some(0.3)));
        assert_eq!(start.non_torch_gib, None);
    }

    #[test]
    fn other_texts_say_nothing() {
        for text in [
            "",
            "Model loading took GiB",
            "GPU KV cache size: tokens",
            "Free memory on device (x/y GiB)",
        ] {
            assert_eq!(read(text), StartLog::default(), "{text}");
        }
    }
}
