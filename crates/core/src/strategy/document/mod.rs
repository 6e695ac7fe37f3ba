//! A comparison as a document: what is recommended, all strategies in a table, then each with its
//! reasons and the memory of every GPU that it changes, before and after.
//!
//! - `markdown`, `html`: the two forms; HTML is one file that needs nothing else
//! - `changes`: the GPUs that a strategy changes

mod changes;
mod html;
mod markdown;

pub use html::html;
pub use markdown::markdown;

use super::report::{Comparison, StrategyReport, StrategyVerdict};
use super::words::{self, Finding, Language};

/// The table of all strategies, its head first.
fn table(compared: &Comparison, language: Language) -> Vec<Vec<String>> {
    let head =
        ["strategy", "verdict", "left", "model", "tokens", "requests", "speed", "kept", "restarts"];
    let mut rows = vec![head.map(|key| words::heading(key, language).to_owned()).to_vec()];
    for one in &compared.strategies {
        let left = one.worst.as_ref().filter(|_| one.verdict != StrategyVerdict::Impossible);
        for (index, model) in one.models.iter().enumerate() {
            let first = |text: String| if index == 0 { text } else { String::new() };
            let speed = model.tokens_per_second;
            rows.push(vec![
                first(one.name.clone()),
                first(words::verdict(one.verdict, language).to_owned()),
                first(left.map_or("-".to_owned(), |worst| worst.headroom_bytes.to_string())),
                format!("{} x {}", model.instances, model.name),
                model.kv_cache_tokens.to_string(),
                format!("{:.1}", model.max_concurrency),
                format!("{:.0} ({:.0} .. {:.0})", speed.mid, speed.low, speed.high),
                model.capacity.map_or("-".to_owned(), |part| format!("{:.0} %", part * 100.0)),
                first(one.restarts.to_string()),
            ]);
        }
    }
    rows
}

/// What to say of speeds.
fn speeds(compared: &Comparison, language: Language) -> &'static str {
    words::speeds(compared.is_calibrated(), language)
}

/// All that is said of a strategy, in order.
fn findings(one: &StrategyReport) -> impl Iterator<Item = &Finding> {
    let written = one.written.iter().map(|written| &written.finding);
    one.reasons.iter().chain(written).chain(&one.complexity)
}
