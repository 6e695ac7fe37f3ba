//! From a wish to an engine's own flags.
//!
//! vLLM: `kv_cache_memory_bytes` where the spec says it, else `gpu_memory_utilization`. llama-server: `parallel`,
//! and with it `ctx-size`, which is shared out over the slots; only where the spec says both. Ollama sizes itself.

use super::{AdjustSpec, Direction, FlagChange};
use crate::memory::vllm::DEFAULT_UTILIZATION;
use crate::spec::{Deployment, EngineKind, FlagValue, Flags};

/// A step of vLLM's fraction.
const SHARE_STEP: f64 = 0.02;
/// A step of a cache in bytes, as a share of it.
const BYTES_STEP: f64 = 0.05;

/// A deployment's flags after so many steps; none where there is nothing to turn, or where that leaves the limits.
/// `written` is what the spec says, `now` what runs.
pub fn turn(
    deployment: &Deployment,
    now: &Flags,
    direction: Direction,
    steps: u32,
    limits: &AdjustSpec,
) -> Option<Vec<FlagChange>> {
    let written = &deployment.flags;
    let sign = match direction {
        Direction::More => 1.0,
        Direction::Less => -1.0,
    };
    let by = sign * f64::from(steps);
    let change = |flag: &str, to: FlagValue| FlagChange {
        flag: flag.to_owned(),
        from: written.get(flag).cloned(),
        to,
    };
    match deployment.engine {
        EngineKind::Vllm => match find(now, "kv_cache_memory_bytes") {
            Some((flag, FlagValue::Int(bytes))) => {
                let to = (*bytes as f64 * (1.0 + BYTES_STEP * by)) as i64;
                (to > 0).then(|| vec![change(flag, FlagValue::Int(to))])
            }
            // A cache's size in words: the user's own way to say it is not ours to write.
            Some(_) => None,
            None => {
                let found = find(now, "gpu_memory_utilization");
                let flag = found.map_or("gpu_memory_utilization", |(flag, _)| flag);
                let share = found.map_or(Some(DEFAULT_UTILIZATION), |(_, value)| number(value))?;
                // Written as people do, and not with the dust of floating point.
                let to = ((share + SHARE_STEP * by) * 1000.0).round() / 1000.0;
                let is_in = (limits.least..=limits.most).contains(&to);
                is_in.then(|| vec![change(flag, FlagValue::Float(to))])
            }
        },
        EngineKind::LlamaServer => {
            let (slots_flag, slots) = ["parallel", "np"].iter().find_map(|it| find(now, it))?;
            let (size_flag, size) = ["ctx_size", "c"].iter().find_map(|it| find(now, it))?;
            let (FlagValue::Int(slots), FlagValue::Int(size)) = (slots, size) else { return None };
            let to = slots.checked_add(by as i64)?;
            let size = size.checked_div(*slots)?.checked_mul(to)?;
            (to > 0 && size > 0).then(|| {
                vec![
                    change(size_flag, FlagValue::Int(size)),
                    change(slots_flag, FlagValue::Int(to)),
                ]
            })
        }
        EngineKind::Ollama => None,
    }
}

/// A flag by its name, however its words are joined.
fn find<'a>(flags: &'a Flags, name: &str) -> Option<(&'a str, &'a FlagValue)> {
    let found = flags.iter().find(|(flag, _)| flag.replace('-', "_") == name);
    found.map(|(flag, value)| (flag.as_str(), value))
}

fn number(value: &FlagValue) -> Option<f64> {
    match value {
        FlagValue::Int(number) => Some(*number as f64),
        FlagValue::Float(number) => Some(*number),
        _ => None,
    }
}
