//! Of many requests: counts, latencies, rates.
//!
//! Percentiles are exact, of all values, by the nearest rank: the smallest value that so many per cent
//! of the values don't exceed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::record::{Outcome, Record};

/// What latencies should be at most; what is absent is not asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Targets {
    /// Of the first token.
    pub ttft_ms: Option<f64>,
    /// Between tokens, on average of an answer.
    pub itl_ms: Option<f64>,
    /// Of the whole answer.
    pub e2e_ms: Option<f64>,
}

impl Targets {
    /// Whether a request was answered as it should be.
    pub fn are_met(&self, record: &Record) -> bool {
        let is_met = |target: Option<f64>, value: Option<f64>| {
            target.is_none_or(|target| value.is_some_and(|value| value <= target))
        };
        record.is_ok()
            && is_met(self.ttft_ms, record.ttft_ms())
            // An answer of one token has nothing between.
            && (record.answer_tokens < 2 || is_met(self.itl_ms, record.itl_ms()))
            && is_met(self.e2e_ms, Some(record.e2e_ms()))
    }
}

/// Targets by model; a model without any isn't there.
pub type TargetsByModel = BTreeMap<String, Targets>;

/// How values are spread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The median.
    pub p50: f64,
    /// Nine in ten are no more.
    pub p90: f64,
    /// 99 in 100 are no more.
    pub p99: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// Of values in any order; none where there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_unstable_by(f64::total_cmp);
        let max = *values.last()?;
        let at = |share: f64| values.get(rank(share, values.len())).copied().unwrap_or(max);
        Some(Self { p50: at(0.50), p90: at(0.90), p99: at(0.99), max })
    }
}

/// The place of a percentile among so many, from 0.
fn rank(share: f64, of: usize) -> usize {
    ((share * of as f64).ceil() as usize).clamp(1, of.max(1)) - 1
}

/// Requests that ended in one way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorCount {
    /// Which way.
    pub outcome: Outcome,
    /// How many.
    pub count: u64,
    /// What was said of the first of them.
    pub example: Option<String>,
}

/// How long things took; what nobody measured is absent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latencies {
    /// From due to the first token.
    pub ttft_ms: Option<Spread>,
    /// Between tokens.
    pub itl_ms: Option<Spread>,
    /// From due to the end.
    pub e2e_ms: Option<Spread>,
    /// From sent to the first token.
    pub ttft_from_sent_ms: Option<Spread>,
    /// From sent to the end.
    pub e2e_from_sent_ms: Option<Spread>,
    /// The longest wait within each answer.
    pub longest_gap_ms: Option<Spread>,
}

/// What the generator itself did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Own {
    /// From due to sent.
    pub delay_ms: Option<Spread>,
    /// How late what had come was seen.
    pub reading_delay_ms: Option<Spread>,
    /// The most requests that were under way at once.
    pub most_in_flight: u64,
}

/// Tokens of answered requests.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    /// From the first request due to the last end; of several phases, the sum.
    pub wall_s: f64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Tokens read and written.
    pub total_tokens: u64,
    /// Written in a second.
    pub output_tokens_per_s: f64,
    /// Read and written in a second.
    pub total_tokens_per_s: f64,
}

/// What was measured of some requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// All of them.
    pub requests: u64,
    /// Answered.
    pub ok: u64,
    /// Refused for overload.
    pub refused: u64,
    /// Everything else, by how it ended.
    pub errors: Vec<ErrorCount>,
    /// Of those answered.
    pub latencies: Latencies,
    /// Of those answered.
    pub throughput: Throughput,
    /// Requests of models that have targets.
    pub with_targets: u64,
    /// Of them those that met all.
    pub met: u64,
    /// The share of them; absent where no model has targets.
    pub goodput: Option<f64>,
    /// Of the generator.
    pub own: Own,
}

/// One model's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSummary {
    /// The model.
    pub model: String,
    /// What was measured.
    pub measures: Measures,
}

/// One phase's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseSummary {
    /// The phase.
    pub name: String,
    /// Whether it asked for more than can be served.
    pub is_overload: bool,
    /// Of all models.
    pub all: Measures,
    /// Of each.
    pub models: Vec<ModelSummary>,
}

/// A run's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Over everything.
    pub all: Measures,
    /// Of each model over all phases.
    pub models: Vec<ModelSummary>,
    /// Of each phase, in their order.
    pub phases: Vec<PhaseSummary>,
}

/// Sums a run up.
pub fn summarize(records: &[Record], targets: &TargetsByModel) -> Summary {
    let all: Vec<&Record> = records.iter().collect();
    Summary {
        all: measure(&all, targets),
        models: by_model(&all, targets),
        phases: phases(&all).iter().map(|phase| of_phase(phase, targets)).collect(),
    }
}

fn of_phase(records: &[&Record], targets: &TargetsByModel) -> PhaseSummary {
    let first = records.first();
    PhaseSummary {
        name: first.map(|record| record.phase.to_string()).unwrap_or_default(),
        is_overload: first.is_some_and(|record| record.is_overload),
        all: measure(records, targets),
        models: by_model(records, targets),
    }
}

/// The requests of each phase, in the order of what was due first.
fn phases<'a>(records: &[&'a Record]) -> Vec<Vec<&'a Record>> {
    let mut phases: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in records {
        phases.entry(&record.phase).or_default().push(record);
    }
    let mut phases: Vec<_> = phases.into_values().collect();
    phases.sort_by_key(|records| records.iter().map(|record| record.marks.intended).min());
    phases
}

fn by_model(records: &[&Record], targets: &TargetsByModel) -> Vec<ModelSummary> {
    let mut models: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in records {
        models.entry(&record.model).or_default().push(record);
    }
    let summary = |(model, records): (&str, Vec<&Record>)| ModelSummary {
        model: model.to_owned(),
        measures: measure(&records, targets),
    };
    models.into_iter().map(summary).collect()
}

fn measure(records: &[&Record], targets: &TargetsByModel) -> Measures {
    let count = |outcome| records.iter().filter(|record| record.outcome == outcome).count() as u64;
    let aimed: Vec<bool> = records
        .iter()
        .filter_map(|record| Some(targets.get(&*record.model)?.are_met(record)))
        .collect();
    let met = aimed.iter().filter(|is_met| **is_met).count();
    Measures {
        requests: records.len() as u64,
        ok: count(Outcome::Ok),
        refused: count(Outcome::Refused),
        errors: errors(records),
        latencies: latencies(records),
        throughput: throughput(records),
        with_targets: aimed.len() as u64,
        met: met as u64,
        goodput: (!aimed.is_empty()).then(|| met as f64 / aimed.len() as f64),
        own: own(records),
    }
}

fn errors(records: &[&Record]) -> Vec<ErrorCount> {
    let mut counts: BTreeMap<Outcome, ErrorCount> = BTreeMap::new();
    for record in records {
        let outcome = record.outcome;
        if matches!(outcome, Outcome::Ok | Outcome::Refused) {
            continue;
        }
        let none = ErrorCount { outcome, count: 0, example: None };
        let counted = counts.entry(outcome).or_insert(none);
        counted.count += 1;
        counted.example = counted.example.take().or_else(|| record.detail.clone());
    }
    counts.into_values().collect()
}

fn latencies(records: &[&Record]) -> Latencies {
    let ok = || records.iter().filter(|record| record.is_ok());
    let gaps = ok().filter(|record| record.marks.last > record.marks.first);
    Latencies {
        ttft_ms: Spread::of(ok().filter_map(|record| record.ttft_ms())),
        itl_ms: Spread::of(ok().filter_map(|record| record.itl_ms())),
        e2e_ms: Spread::of(ok().map(|record| record.e2e_ms())),
        ttft_from_sent_ms: Spread::of(ok().filter_map(|record| record.ttft_from_sent_ms())),
        e2e_from_sent_ms: Spread::of(ok().map(|record| record.e2e_from_sent_ms())),
        longest_gap_ms: Spread::of(gaps.map(|one| one.marks.longest_gap.as_secs_f64() * 1e3)),
    }
}

fn throughput(records: &[&Record]) -> Throughput {
    let wall_s: f64 = phases(records).iter().map(|phase| wall_s(phase)).sum();
    let sum = |tokens: fn(&Record) -> u64| -> u64 {
        records.iter().filter(|record| record.is_ok()).map(|record| tokens(record)).sum()
    };
    let output_tokens = sum(|record| u64::from(record.answer_tokens));
    let total_tokens = output_tokens + sum(|record| u64::from(record.prompt_tokens));
    let rate = |tokens: u64| if wall_s > 0.0 { tokens as f64 / wall_s } else { 0.0 };
    Throughput {
        wall_s,
        output_tokens,
        total_tokens,
        output_tokens_per_s: rate(output_tokens),
        total_tokens_per_s: rate(total_tokens),
    }
}

fn wall_s(records: &[&Record]) -> f64 {
    let first = records.iter().map(|record| record.marks.intended).min().unwrap_or_default();
    let last = records.iter().map(|record| record.marks.end).max().unwrap_or_default();
    last.saturating_sub(first).as_secs_f64()
}

fn own(records: &[&Record]) -> Own {
    Own {
        delay_ms: Spread::of(records.iter().map(|record| record.own_delay_ms())),
        reading_delay_ms: Spread::of(
            records.iter().map(|record| record.marks.reading_delay.as_secs_f64() * 1e3),
        ),
        most_in_flight: most_in_flight(records),
    }
}

fn most_in_flight(records: &[&Record]) -> u64 {
    let sent = records.iter().map(|record| (record.marks.sent, 1));
    // An end before a start of the same time: those two weren't there at once.
    let ended = records.iter().map(|record| (record.marks.end, -1));
    let mut changes: Vec<(_, i64)> = sent.chain(ended).collect();
    changes.sort_unstable();
    let mut now = 0;
    changes.iter().fold(0, |most, (_, change)| {
        now += change;
        most.max(now)
    }) as u64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::record::Marks;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let up_to = |last: u32| (1..=last).map(f64::from).collect::<Vec<f64>>();
        for (values, want) in [
            (vec![], None),
            (vec![f64::NAN], None),
            (vec![5.0], Some([5.0, 5.0, 5.0, 5.0])),
            (vec![2.0, 1.0], Some([1.0, 2.0, 2.0, 2.0])),
            (up_to(10), Some([5.0, 9.0, 10.0, 10.0])),
            (up_to(100), Some([50.0, 90.0, 99.0, 100.0])),
            (up_to(1001), Some([501.0, 901.0, 991.0, 1001.0])),
        ] {
            let got = Spread::of(values.clone()).map(|s| [s.p50, s.p90, s.p99, s.max]);
            assert_eq!(got, want, "{} values", values.len());
        }
    }

    fn record(model: &str, phase: &str, at_ms: [u64; 5], outcome: Outcome) -> Record {
        let [intended, sent, first, last, end] = at_ms.map(Duration::from_millis);
        let marks = Marks {
            intended,
            sent,
            first: Some(first),
            last: Some(last),
            end,
            longest_gap: Duration::ZERO,
            reading_delay: Duration::ZERO,
        };
        Record {
            phase: phase.into(),
            is_overload: phase == "burst",
            model: model.into(),
            marks,
            prompt_tokens: 100,
            answer_tokens: 11,
            outcome,
            detail: (outcome == Outcome::Broken).then(|| "cut".to_owned()),
        }
    }

    #[test]
    fn a_run_summed_up() {
        let records = [
            record("a", "batch", [0, 1, 100, 300, 310], Outcome::Ok),
            record("a", "batch", [0, 2, 200, 400, 410], Outcome::Ok),
            record("b", "batch", [0, 3, 300, 500, 1000], Outcome::Broken),
            record("b", "burst", [2000, 2000, 2500, 2600, 3000], Outcome::Refused),
            record("b", "burst", [2000, 2000, 2500, 2600, 3000], Outcome::Ok),
        ];
        let targets = Targets { ttft_ms: Some(150.0), ..Targets::default() };
        let summary = summarize(&records, &BTreeMap::from([("a".to_owned(), targets)]));
        let [batch, burst] = &summary.phases[..] else { panic!("two phases") };
        assert_eq!((&*batch.name, batch.is_overload), ("batch", false));
        assert_eq!((&*burst.name, burst.is_overload), ("burst", true));
        assert_eq!((batch.all.requests, batch.all.ok, burst.all.refused), (3, 2, 1));
        let broken =
            ErrorCount { outcome: Outcome::Broken, count: 1, example: Some("cut".to_owned()) };
        assert_eq!(summary.models[1].measures.errors, [broken]);
        assert!(burst.all.errors.is_empty());
        let a = &summary.models[0].measures;
        assert_eq!(a.latencies.ttft_ms.unwrap().max, 200.0);
        assert_eq!(a.latencies.ttft_from_sent_ms.unwrap().p50, 99.0);
        assert_eq!(a.latencies.itl_ms.unwrap().p50, 20.0);
        assert_eq!((a.with_targets, a.met, a.goodput), (2, 1, Some(0.5)));
        assert_eq!(summary.models[1].measures.goodput, None);
        // 22 tokens in 0.41 s; over all, 33 in 1 s and 1 s.
        assert!((a.throughput.output_tokens_per_s - 22.0 / 0.41).abs() < 1e-9);
        assert_eq!(summary.all.throughput.output_tokens_per_s, 16.5);
        assert_eq!(summary.all.throughput.total_tokens, 333);
        assert_eq!((batch.all.own.most_in_flight, summary.all.own.most_in_flight), (3, 3));
        assert_eq!(batch.all.own.delay_ms.unwrap().max, 3.0);
    }

    #[test]
    fn a_summary_is_the_same_after_json() {
        let records = [record("a", "batch", [0, 1, 100, 300, 310], Outcome::Status(500))];
        let summary = summarize(&records, &BTreeMap::new());
        let text = serde_json::to_string(&summary).unwrap();
        assert_eq!(serde_json::from_str::<Summary>(&text).unwrap(), summary);
        assert_eq!(summarize(&[], &BTreeMap::new()).all.requests, 0);
    }
}
