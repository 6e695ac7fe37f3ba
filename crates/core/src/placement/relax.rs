//! What would have to change for a model to fit: each answer is tried against the memory model.

use super::launch;
use crate::inventory::Cpu;
use crate::memory::fit;
use crate::model::ModelFacts;
use crate::spec::{Deployment, FlagValue};
use crate::units::Bytes;

/// Contexts are allocated in steps of this many tokens.
const CTX_STEP: u64 = 256;

/// The changes that would each make one more instance of `model` fit into `free`, the smallest
/// first.
pub(super) fn changes(
    model: &Deployment,
    facts: &ModelFacts,
    cpu: Cpu,
    need: Bytes,
    free: Bytes,
) -> Vec<String> {
    let mut changes = Vec::new();
    if let Some(change) = quantised_cache(model, facts, cpu, free) {
        changes.push(change);
    }
    if let Some(change) = shorter_context(model, facts, cpu, free) {
        changes.push(change);
    }
    changes.push(format!(
        "give it {} more: raise host_budget, or take something else off the device",
        need - free
    ));
    changes
}

fn total_with(
    model: &Deployment,
    facts: &ModelFacts,
    cpu: Cpu,
    flags: &[(&str, FlagValue)],
) -> Option<Bytes> {
    let mut changed = model.clone();
    for (name, value) in flags {
        for spelling in spellings(name) {
            changed.flags.remove(spelling);
        }
        changed.flags.insert((*name).to_owned(), value.clone());
    }
    let fit = fit::fit(facts, &launch::memory_args(&changed), cpu);
    fit.verdict.is_ready().then(|| fit.footprint.total())
}

fn spellings(name: &str) -> Vec<&'static str> {
    use crate::memory::llama_cpp::flags::find_bare;
    let flag = find_bare(name).map(|(flag, _)| flag.spellings.clone()).unwrap_or_default();
    flag.into_iter().map(|spelling| spelling.trim_start_matches('-')).collect()
}

fn quantised_cache(
    model: &Deployment,
    facts: &ModelFacts,
    cpu: Cpu,
    free: Bytes,
) -> Option<String> {
    let q8 = FlagValue::Text("q8_0".to_owned());
    let total =
        total_with(model, facts, cpu, &[("cache-type-k", q8.clone()), ("cache-type-v", q8)])?;
    (total <= free).then(|| {
        format!("cache-type-k = \"q8_0\" and cache-type-v = \"q8_0\" in its flags: {total} then")
    })
}

/// The longest context that fits, by bisection over the steps in which it is allocated.
fn shorter_context(
    model: &Deployment,
    facts: &ModelFacts,
    cpu: Cpu,
    free: Bytes,
) -> Option<String> {
    let total = |steps: u64| {
        let tokens = i64::try_from(steps * CTX_STEP).ok()?;
        total_with(model, facts, cpu, &[("ctx-size", FlagValue::Int(tokens))])
    };
    let fits = |steps: u64| total(steps).is_some_and(|total| total <= free);
    if !fits(1) {
        return None;
    }
    let (mut good, mut bad) = (1, (1 << 30) / CTX_STEP);
    while bad - good > 1 {
        let middle = (good + bad) / 2;
        if fits(middle) { good = middle } else { bad = middle }
    }
    let total = total(good)?;
    Some(format!(
        "ctx-size = {} in its flags, the longest that fits: {total} then",
        good * CTX_STEP
    ))
}
