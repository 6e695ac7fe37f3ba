//! Whether what was measured and seen is as it should be: a function of values.
//!
//! It fails where an engine did: died, held more than its plan, left less free than nothing, answered
//! with errors of its own, or was slower than its targets. It is open where the measurement isn't good
//! enough to say. That a server refused or put requests off is noted: under overload it should.

use serde::{Deserialize, Serialize};

use crate::record::Outcome;
use crate::summary::{ErrorCount, Measures, PhaseSummary, Spread, Summary, TargetsByModel};

mod memory;

pub use memory::{DeviceSeen, InstanceSeen, MemorySeen};

/// What is still all right.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Of the requests of a model with targets such a share has to meet them.
    pub least_goodput: f64,
    /// The generator may be so late at the 99th percentile, with sending and with reading.
    pub most_own_delay_ms: f64,
    /// Of each model so many requests have to be answered.
    pub least_requests: u64,
    /// An instance may hold so much more than its plan, as a share of it.
    pub over_plan: f64,
    /// What latencies should be.
    pub targets: TargetsByModel,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            least_goodput: 0.95,
            most_own_delay_ms: 10.0,
            least_requests: 20,
            over_plan: 0.01,
            targets: TargetsByModel::new(),
        }
    }
}

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Judgement {
    /// As it should be.
    Pass,
    /// Not as it should be.
    Fail,
    /// It can't be said.
    Inconclusive,
}

/// What a reason does to a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// It is wrong.
    Fails,
    /// Without it nothing can be said.
    LeavesOpen,
    /// It is worth knowing.
    Note,
}

/// A reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// What it does.
    pub weight: Weight,
    /// A sentence with the number and the limit.
    pub text: String,
}

impl Reason {
    fn new(weight: Weight, text: impl Into<String>) -> Self {
        Self { weight, text: text.into() }
    }
}

/// A verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// How it is.
    pub result: Judgement,
    /// Why: what weighs most first.
    pub reasons: Vec<Reason>,
}

/// Judges a run by what was measured of requests and seen of memory meanwhile.
pub fn judge(summary: &Summary, memory: &MemorySeen, limits: &Limits) -> Verdict {
    let mut reasons = memory::reasons(memory, limits);
    reasons.extend(summary.phases.iter().flat_map(of_phase));
    reasons.extend(goodputs(summary, limits));
    reasons.extend(own_delays(summary, limits));
    reasons.extend(counts(summary, limits));
    // Stable: within a weight the order is that of above.
    reasons.sort_by_key(|reason| reason.weight);
    Verdict { result: result(&reasons), reasons }
}

fn result(reasons: &[Reason]) -> Judgement {
    match reasons.first().map(|reason| reason.weight) {
        Some(Weight::Fails) => Judgement::Fail,
        Some(Weight::LeavesOpen) => Judgement::Inconclusive,
        Some(Weight::Note) | None => Judgement::Pass,
    }
}

/// Errors and refusals of a phase, by model.
fn of_phase(phase: &PhaseSummary) -> Vec<Reason> {
    let of_model = |model: &str, measures: &Measures| {
        let all = measures.requests;
        let refused = (measures.refused > 0).then(|| {
            let refused = measures.refused;
            let name = &phase.name;
            let text =
                format!("{model} refused {refused} of {all} requests for overload in {name}");
            let weight = if phase.is_overload { Weight::Note } else { Weight::LeavesOpen };
            Reason::new(weight, text)
        });
        let errors = measures.errors.iter().map(|error| of_error(phase, model, error, all));
        errors.chain(refused).collect::<Vec<_>>()
    };
    phase.models.iter().flat_map(|one| of_model(&one.model, &one.measures)).collect()
}

fn of_error(phase: &PhaseSummary, model: &str, error: &ErrorCount, all: u64) -> Reason {
    let said = error.example.as_ref().map(|example| format!(": {example}")).unwrap_or_default();
    let (count, words, name) = (error.count, error.outcome.words(), &phase.name);
    let limit =
        if weight(error.outcome, phase.is_overload) == Weight::Fails { " (limit 0)" } else { "" };
    Reason::new(
        weight(error.outcome, phase.is_overload),
        format!("{count} of {all} requests to {model} in {name} were {words}{limit}{said}"),
    )
}

fn weight(outcome: Outcome, is_overload: bool) -> Weight {
    match outcome {
        Outcome::Connect | Outcome::Broken => Weight::Fails,
        Outcome::Status(status) if status >= 500 => Weight::Fails,
        Outcome::Timeout if !is_overload => Weight::Fails,
        // The request's fault, or this machine's: nothing was tried.
        Outcome::Status(_) | Outcome::Own => Weight::LeavesOpen,
        Outcome::Timeout | Outcome::Refused | Outcome::Ok => Weight::Note,
    }
}

/// Whether models with targets met them where no more was asked than can be served.
fn goodputs(summary: &Summary, limits: &Limits) -> Vec<Reason> {
    let of_model = |model: &String| {
        let measured = summary
            .phases
            .iter()
            .filter(|phase| !phase.is_overload)
            .flat_map(|phase| &phase.models)
            .filter(|one| one.model == *model);
        let (met, all) = measured.fold((0, 0), |(met, all), one| {
            (met + one.measures.met, all + one.measures.with_targets)
        });
        let goodput = if all > 0 { met as f64 / all as f64 } else { return None };
        let text = format!(
            "{met} of {all} requests to {model} met its targets, {} % (limit {} %)",
            percent(goodput),
            percent(limits.least_goodput),
        );
        let is_low = goodput < limits.least_goodput;
        Some(Reason::new(if is_low { Weight::Fails } else { Weight::Note }, text))
    };
    limits.targets.keys().filter_map(of_model).collect()
}

/// Whether the generator kept up where latencies count.
fn own_delays(summary: &Summary, limits: &Limits) -> Vec<Reason> {
    let late = |phase: &PhaseSummary, spread: Option<Spread>, what: &str| {
        let p99 = spread.map(|spread| spread.p99).filter(|p99| *p99 > limits.most_own_delay_ms)?;
        let (name, limit) = (&phase.name, limits.most_own_delay_ms);
        let text = format!(
            "the load generator was late with {what} in {name}: {p99:.1} ms at the 99th percentile (limit {limit:.1} ms)"
        );
        Some(Reason::new(Weight::LeavesOpen, text))
    };
    let of_phase = |phase: &PhaseSummary| {
        let own = phase.all.own;
        [late(phase, own.delay_ms, "sending"), late(phase, own.reading_delay_ms, "reading answers")]
    };
    summary.phases.iter().filter(|phase| !phase.is_overload).flat_map(of_phase).flatten().collect()
}

/// Whether enough was answered to say anything.
fn counts(summary: &Summary, limits: &Limits) -> Vec<Reason> {
    let least = limits.least_requests;
    // What is asked of queues that overflow says nothing of how it goes on for long.
    let answered = |model: &str| -> u64 {
        let steady = summary.phases.iter().filter(|phase| !phase.is_overload);
        let of = steady.flat_map(|phase| &phase.models).filter(|one| one.model == *model);
        of.map(|one| one.measures.ok).sum()
    };
    let few = summary.models.iter().filter_map(|one| {
        let (ok, model) = (answered(&one.model), &one.model);
        let text = || {
            format!("only {ok} requests to {model} were answered in steady load (limit {least})")
        };
        (ok < least).then(|| Reason::new(Weight::LeavesOpen, text()))
    });
    let none = summary
        .models
        .is_empty()
        .then(|| Reason::new(Weight::LeavesOpen, "no request was sent to any model (limit 1)"));
    few.chain(none).collect()
}

/// A share with as many places as tell it from its neighbours.
fn percent(share: f64) -> String {
    let text = format!("{:.2}", share * 100.0);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests;
