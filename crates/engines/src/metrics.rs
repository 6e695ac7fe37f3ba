//! What engines say of themselves at `/metrics`, in Prometheus' text format.
//!
//! vLLM 0.26 to 0.33 (`v1/metrics/loggers.py`); llama-server b10434 started with `--metrics`, which says nothing of
//! its cache any more. Ollama has no such page, and says at `/api/ps` what its models hold.

use std::net::SocketAddr;

use berth_core::inventory::InstanceId;
use berth_core::spec::EngineKind;
use berth_core::units::Bytes;
use berth_core::watch::EngineLook;

use serde_json::Value;

use crate::health;

/// Asks an engine; none where it doesn't answer.
pub async fn ask(
    instance: &InstanceId,
    engine: EngineKind,
    address: SocketAddr,
) -> Option<EngineLook> {
    Some(match engine {
        EngineKind::Ollama => read_ps(instance, &health::page(address, "/api/ps").await?),
        _ => read(instance, &health::page(address, "/metrics").await?),
    })
}

/// Reads what Ollama says of its models that are loaded (`/api/ps`): what they hold of GPUs. Of requests it says nothing.
pub fn read_ps(instance: &InstanceId, page: &str) -> EngineLook {
    let page: Value = serde_json::from_str(page).unwrap_or_default();
    let held = |models: &Vec<Value>| {
        models.iter().map(|model| Some(Bytes(model["size_vram"].as_u64()?))).sum()
    };
    EngineLook {
        instance: instance.clone(),
        running: None,
        waiting: None,
        kv_cache_usage: None,
        preemptions: None,
        held: page["models"].as_array().and_then(held),
        is_asleep: None,
    }
}

/// Reads a page. What isn't on it is unknown.
pub fn read(instance: &InstanceId, page: &str) -> EngineLook {
    let sum = |names: &[&str]| names.iter().find_map(|name| sum(page, name));
    let count = |names: &[&str]| sum(names).map(|value| value.max(0.0) as u64);
    EngineLook {
        instance: instance.clone(),
        running: count(&["vllm:num_requests_running", "llamacpp:requests_processing"]),
        waiting: count(&["vllm:num_requests_waiting", "llamacpp:requests_deferred"]),
        // Of several engines the fullest counts.
        kv_cache_usage: ["vllm:kv_cache_usage_perc", "llamacpp:kv_cache_usage_ratio"]
            .iter()
            .find_map(|name| values(page, name).reduce(f64::max))
            .filter(|usage| (0.0..=1.0).contains(usage)),
        preemptions: count(&["vllm:num_preemptions_total", "vllm:num_preemptions"]),
        held: None,
        is_asleep: labelled(page, "vllm:engine_sleep_state", "sleep_state=\"awake\"")
            .reduce(f64::max)
            .map(|awake| awake == 0.0),
    }
}

/// The sum of a metric over its labels (one series for each engine of a server).
fn sum(page: &str, name: &str) -> Option<f64> {
    values(page, name).reduce(|sum, value| sum + value)
}

fn values(page: &str, name: &str) -> impl Iterator<Item = f64> {
    labelled(page, name, "")
}

/// The values of a metric's series that have a label.
fn labelled(page: &str, name: &str, label: &str) -> impl Iterator<Item = f64> {
    let of = move |line: &str| {
        let rest = line.strip_prefix(name)?;
        let value = match rest.as_bytes().first()? {
            b' ' => rest,
            b'{' => {
                let (labels, value) = rest.rsplit_once('}')?;
                labels.contains(label).then_some(value)?
            }
            _ => return None,
        };
        value.split_whitespace().next()?.parse::<f64>().ok().filter(|value| value.is_finite())
    };
    page.lines().filter_map(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_ollama() {
        let two = r#"{"models":[{"name":"a","size":10,"size_vram":7},{"name":"b","size_vram":5}]}"#;
        for (page, held) in [
            (two, Some(Bytes(12))),
            (r#"{"models":[]}"#, Some(Bytes(0))),
            (r#"{"models":[{"name":"a"}]}"#, None),
            ("{}", None),
            ("not json", None),
        ] {
            assert_eq!(read_ps(&InstanceId("a-0".to_owned()), page).held, held, "{page}");
        }
    }

    #[test]
    fn pages_of_engines() {
        let vllm = "# HELP vllm:num_requests_running x\n# TYPE vllm:num_requests_running gauge\n\
            vllm:num_requests_running{engine=\"0\",model_name=\"a} b\"} 3.0\n\
            vllm:num_requests_running{engine=\"1\",model_name=\"a} b\"} 2.0\n\
            vllm:num_requests_waiting{engine=\"0\",model_name=\"a\"} 7.0\n\
            vllm:num_requests_waiting_by_reason{engine=\"0\",reason=\"capacity\"} 7.0\n\
            vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"a\"} 0.97\n\
            vllm:kv_cache_usage_perc{engine=\"1\",model_name=\"a\"} 0.5\n\
            vllm:num_preemptions_total{engine=\"0\",model_name=\"a\"} 4.0\n";
        let llama = "llamacpp:requests_processing 1\nllamacpp:requests_deferred 0\n";
        for (page, running, waiting, usage, preemptions) in [
            (vllm, Some(5), Some(7), Some(0.97), Some(4)),
            (llama, Some(1), Some(0), None, None),
            ("", None, None, None, None),
            ("vllm:num_requests_running NaN\nvllm:kv_cache_usage_perc 7\n", None, None, None, None),
        ] {
            let look = read(&InstanceId("a-0".to_owned()), page);
            let seen = (look.running, look.waiting, look.kv_cache_usage, look.preemptions);
            assert_eq!(seen, (running, waiting, usage, preemptions), "{page}");
        }
    }
}
