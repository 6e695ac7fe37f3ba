//! From a load test to how fast berth expects engines to be: each phase is a point of the model of speed. What is emulated
//! teaches nothing.

use std::collections::BTreeMap;

use anyhow::Context as _;
use berth_cluster::local::StateDir;
use berth_control::Journal;
use berth_core::memory::vllm::{Gpu, flags};
use berth_core::perf::fit::Point;
use berth_core::plan::{Plan, PlannedInstance};
use berth_core::spec::EngineKind;
use berth_load::record::Record;

use crate::cmd::calibrate::load;
use crate::failure::Failure;
use crate::learn::own_flags;
use crate::{output, prepare};

/// Takes what was measured of each model in vLLM into what plans go by, and says so.
pub(super) fn learn(dir: &StateDir, journal: &Journal, plan: &Plan, records: &[Record]) {
    if plan.ray.as_ref().is_none_or(|ray| ray.is_emulated) {
        return;
    }
    let mut models: BTreeMap<&str, Vec<&PlannedInstance>> = BTreeMap::new();
    for one in plan.instances.iter().filter(|one| one.engine == EngineKind::Vllm) {
        models.entry(&one.model).or_default().push(one);
    }
    for (model, instances) in models {
        let points = points(records, model, instances.len());
        match of_model(dir, journal, instances[0], &points) {
            Ok(said) => output::talk(&format!("how fast {model} is, for plans to come: {said}")),
            Err(failure) => {
                let why = failure.told().next().map(|(text, _)| text).unwrap_or_default();
                output::talk(&format!("of how fast {model} is nothing was learnt: {why}"));
            }
        }
    }
}

fn of_model(
    dir: &StateDir,
    journal: &Journal,
    one: &PlannedInstance,
    points: &[Point],
) -> Result<String, Failure> {
    let inventory = prepare::inventory(journal)?;
    let device = one.shares.first().map(|share| &share.device);
    let node = inventory.nodes.iter().find(|node| node.name == one.node);
    let device = node.and_then(|node| node.devices.iter().find(|it| Some(&it.id) == device));
    let gpu = device.and_then(Gpu::of_device).context("its GPU's kind isn't known");
    let source = one.args.get(1).context("it has no model").map_err(Failure::new)?;
    let flags = flags::from_words(&own_flags(&one.args)).map_err(Failure::new)?;
    load::keep(dir.root(), points, source, gpu.map_err(Failure::new)?, &flags)
}

/// A point for each phase, of those requests that were answered, and two for the steady one: of shorter and longer
/// prompts.
fn points(records: &[Record], model: &str, instances: usize) -> Vec<Point> {
    let mut phases: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in records.iter().filter(|one| *one.model == *model && one.is_ok()) {
        phases.entry(&record.phase).or_default().push(record);
    }
    let mut points = Vec::new();
    for (_, mut of) in phases {
        let at_once = at_once(&of) / instances.max(1) as f64;
        of.sort_by_key(|one| one.prompt_tokens);
        let is_overload = of.iter().any(|one| one.is_overload);
        let parts = if is_overload { 1 } else { 2 };
        points.extend(of.chunks(of.len().div_ceil(parts)).filter_map(|part| point(part, at_once)));
    }
    points
}

/// Answers that are on their way at once, on average.
fn at_once(of: &[&Record]) -> f64 {
    let spans: Vec<_> =
        of.iter().filter_map(|one| Some((one.marks.first?, one.marks.last?))).collect();
    let (begin, end) =
        (spans.iter().map(|span| span.0).min(), spans.iter().map(|span| span.1).max());
    let Some((begin, end)) = begin.zip(end) else { return 0.0 };
    let busy: f64 = spans.iter().map(|(first, last)| (*last - *first).as_secs_f64()).sum();
    (busy / (end - begin).as_secs_f64().max(1e-9)).max(1.0)
}

fn point(of: &[&Record], batch: f64) -> Option<Point> {
    let mean = |values: Vec<f64>| {
        let count = values.len() as f64;
        (count > 0.0).then(|| values.into_iter().sum::<f64>() / count)
    };
    let tokens =
        |count: fn(&Record) -> u32| mean(of.iter().map(|one| f64::from(count(one))).collect());
    Some(Point {
        batch,
        prompt_tokens: tokens(|one| one.prompt_tokens)?.round().max(1.0) as u32,
        answer_tokens: tokens(|one| one.answer_tokens)?.round().max(1.0) as u32,
        token_ms: mean(of.iter().filter_map(|one| one.itl_ms()).collect())?,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use berth_load::record::{Marks, Outcome};

    use super::*;

    /// A request of so many tokens whose answer of eleven comes from one second to another.
    fn record(phase: &str, is_overload: bool, prompt_tokens: u32, span: (u64, u64)) -> Record {
        let [first, last] = [span.0, span.1].map(|seconds| Some(Duration::from_secs(seconds)));
        Record {
            phase: phase.into(),
            is_overload,
            model: "m".into(),
            marks: Marks { first, last, ..Marks::default() },
            prompt_tokens,
            answer_tokens: 11,
            outcome: Outcome::Ok,
            detail: None,
        }
    }

    #[test]
    fn phases_are_points() {
        let mut records = vec![
            record("longest", true, 1000, (0, 10)),
            record("longest", true, 1000, (0, 10)),
            record("longest", true, 1000, (0, 20)),
            record("steady", false, 10, (30, 31)),
            record("steady", false, 500, (31, 33)),
        ];
        records.push(Record { model: "other".into(), ..records[0].clone() });
        records.push(Record { outcome: Outcome::Timeout, ..records[0].clone() });
        let found: Vec<(f64, u32, f64)> = points(&records, "m", 1)
            .iter()
            .map(|point| (point.batch, point.prompt_tokens, point.token_ms.round()))
            .collect();
        assert_eq!(found, [(2.0, 1000, 1333.0), (1.0, 10, 100.0), (1.0, 500, 200.0)]);
        assert_eq!(points(&records, "m", 2)[0].batch, 1.0, "each of two has half of them");
        assert_eq!(points(&[], "m", 1), []);
    }
}
