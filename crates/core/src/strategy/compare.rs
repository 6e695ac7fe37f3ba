//! All strategies side by side, and the one that is recommended.

use std::collections::BTreeSet;

use super::evaluate::{Candidate, Cluster, Today, evaluate};
use super::report::{Comparison, ModelReport, SolverReport, StrategyReport, StrategyVerdict};
use super::words::Finding;
use super::{best, find};
use crate::placement::PlanError;
use crate::spec::{Spec, Strategy};

/// Evaluates what runs today, the spec's own strategies, and those that are found. `now` gives
/// milliseconds, for the report to say how long the integer program took.
///
/// # Errors
/// Where nothing is known of a model.
pub fn compare(
    spec: &Spec,
    cluster: &Cluster<'_>,
    now: &dyn Fn() -> f64,
) -> Result<Comparison, PlanError> {
    let today = today(spec, cluster)?;
    let before = today.as_ref().map(Today::new).unwrap_or_default();
    let strategies = std::iter::once(as_written(spec)).chain(spec.strategies.iter().cloned());
    let mut strategies: Vec<Strategy> = strategies.collect();
    strategies.extend(find::find(spec, cluster));
    let reports = strategies.iter().map(|one| evaluate_one(one, cluster, &before));
    let mut reports: Vec<StrategyReport> = reports.collect::<Result<_, _>>()?;
    let started = now();
    if let Some(best) = best::best(spec, cluster) {
        let solver = SolverReport { ms: now() - started, ..best.solver };
        let report = evaluate_one(&best.strategy, cluster, &before)?;
        reports.push(StrategyReport { solver: Some(solver), ..report });
    }
    Ok(recommend(reports, today))
}

/// The spec itself, as a strategy that changes nothing of it.
pub fn as_written(spec: &Spec) -> Strategy {
    let spec = Spec { strategies: Vec::new(), ..spec.clone() };
    Strategy { name: "as-written".to_owned(), title: None, written: None, toml: None, spec }
}

/// The spec's own strategies, and those that are found.
pub fn all(spec: &Spec, cluster: &Cluster<'_>) -> Vec<Strategy> {
    let mut strategies = spec.strategies.clone();
    strategies.extend(find::find(spec, cluster));
    strategies.extend(best::best(spec, cluster).map(|best| best.strategy));
    strategies
}

/// Evaluates one of them.
///
/// # Errors
/// Where nothing is known of a model.
pub fn evaluate_one(
    strategy: &Strategy,
    cluster: &Cluster<'_>,
    today: &Today,
) -> Result<StrategyReport, PlanError> {
    let mut found = cluster.found.clone();
    found.assume(&strategy.spec.deployments);
    evaluate(&Cluster { found: &found, ..*cluster }, &candidate(strategy), today)
}

fn candidate(strategy: &Strategy) -> Candidate<'_> {
    Candidate {
        name: &strategy.name,
        title: strategy.title.as_deref(),
        is_found: strategy.toml.is_some(),
        written: strategy.written,
        toml: strategy.toml.as_deref(),
        spec: &strategy.spec,
    }
}

/// What runs today, as a strategy that changes nothing.
pub fn today(spec: &Spec, cluster: &Cluster<'_>) -> Result<Option<StrategyReport>, PlanError> {
    if spec.running.is_empty() {
        return Ok(None);
    }
    let deployments = spec.running.iter().map(|running| running.deployment.clone()).collect();
    let as_is = Spec { deployments, strategies: Vec::new(), ..spec.clone() };
    let candidate = Candidate {
        name: "today",
        title: None,
        is_found: false,
        written: None,
        toml: None,
        spec: &as_is,
    };
    evaluate(cluster, &candidate, &Today::default()).map(Some)
}

/// What counts, the most important first; less is better.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
struct Merit {
    verdict: StrategyVerdict,
    /// Requests a second that can't be served, of all models.
    unserved: f64,
    /// Models that run in another form than they were made in.
    other_weights: usize,
    /// What the model that loses most loses of today's capacity, in whole percent.
    loss: f64,
    restarts: u32,
    complexity: usize,
    /// What is left on the fullest GPU, negative.
    tightness: f64,
}

impl Merit {
    fn of(report: &StrategyReport) -> Self {
        let other = |finding: &Finding| match finding {
            Finding::OtherWeights { model, .. } => Some(model.clone()),
            _ => None,
        };
        let other: BTreeSet<String> = report.complexity.iter().filter_map(other).collect();
        let kept = report.models.iter().filter_map(|model| model.capacity).fold(1.0, f64::min);
        Self {
            verdict: report.verdict,
            unserved: report.models.iter().map(|model| model.unserved_requests_per_second).sum(),
            other_weights: other.len(),
            loss: ((1.0 - kept) * 100.0).round(),
            restarts: report.restarts,
            complexity: report.complexity.len(),
            tightness: report
                .worst
                .as_ref()
                .map_or(0.0, |worst| -(worst.headroom_bytes_low.0 as f64)),
        }
    }
}

fn recommend(strategies: Vec<StrategyReport>, today: Option<StrategyReport>) -> Comparison {
    let mut order: Vec<(Merit, usize)> =
        strategies.iter().enumerate().map(|(at, report)| (Merit::of(report), at)).collect();
    order.retain(|(merit, _)| merit.verdict != StrategyVerdict::Impossible);
    order.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    let at = |place: usize| order.get(place).map(|(_, at)| &strategies[*at]);
    let (best, second) = (at(0), at(1));
    Comparison {
        plan_digest: best.map(|best| best.plan_digest.clone()),
        recommended: best.map(|best| best.name.clone()),
        reasons: best.map(|best| why(best, second)).unwrap_or_default(),
        runner_up: second.map(|second| second.name.clone()),
        runner_up_wins: best
            .zip(second)
            .map(|(best, second)| wins(best, second))
            .unwrap_or_default(),
        today,
        strategies,
    }
}

fn why(best: &StrategyReport, second: Option<&StrategyReport>) -> Vec<Finding> {
    let mut reasons = best.reasons.clone();
    let capacities = best.models.iter();
    reasons.extend(capacities.filter_map(|model| {
        Some(Finding::Capacity { model: model.name.clone(), part: model.capacity? })
    }));
    if second.is_none() {
        reasons.push(Finding::OnlyOne);
    }
    reasons
}

/// What stands between the next best and the first place: the first thing in which it is behind.
fn wins(best: &StrategyReport, second: &StrategyReport) -> Vec<Finding> {
    let (ours, theirs) = (Merit::of(best), Merit::of(second));
    let without = |finding: &Finding| vec![Finding::WinsWithout(Box::new(finding.clone()))];
    match () {
        () if theirs.verdict > ours.verdict => {
            let risks = |finding: &&Finding| {
                matches!(
                    finding,
                    Finding::Risk { .. } | Finding::Note { .. } | Finding::LeftTooLittle { .. }
                )
            };
            second.reasons.iter().find(risks).map(without).unwrap_or_default()
        }
        () if theirs.unserved > ours.unserved => {
            let unserved = |model: &&ModelReport| model.unserved_requests_per_second > 0.0;
            let model = second.models.iter().find(unserved);
            let finding = |model: &ModelReport| Finding::Unserved {
                model: model.name.clone(),
                requests_per_second: model.unserved_requests_per_second,
            };
            model.map(|model| without(&finding(model))).unwrap_or_default()
        }
        () if theirs.other_weights > ours.other_weights => {
            let other = |finding: &&Finding| matches!(finding, Finding::OtherWeights { .. });
            second.complexity.iter().find(other).map(without).unwrap_or_default()
        }
        () if theirs.loss > ours.loss => {
            let least = second.models.iter().filter(|model| model.capacity.is_some());
            let least = least.min_by(|a, b| {
                a.capacity.partial_cmp(&b.capacity).unwrap_or(std::cmp::Ordering::Equal)
            });
            let part = 1.0 - ours.loss / 100.0;
            least
                .map(|model| Finding::WinsBy { part, model: model.name.clone() })
                .into_iter()
                .collect()
        }
        () if theirs.restarts > ours.restarts => {
            without(&Finding::Restarts { count: second.restarts, seconds: second.restart_seconds })
        }
        () if theirs.complexity > ours.complexity => {
            second.complexity.first().map(without).unwrap_or_default()
        }
        () if theirs.tightness > ours.tightness => {
            let left = |finding: &&Finding| matches!(finding, Finding::Left { .. });
            second.reasons.iter().find(left).map(without).unwrap_or_default()
        }
        () => vec![Finding::AsGood { gpus: [best, second].map(taken) }],
    }
}

/// GPUs that hold anything.
fn taken(report: &StrategyReport) -> usize {
    report.gpus.iter().filter(|gpu| !gpu.instances.is_empty()).count()
}
