//! What the page asks for and has done, from the journal and the spec of the plan in force.

use std::sync::{Mutex, PoisonError};

use berth_cluster::local::StateDir;
use berth_control::Journal;
use berth_control::clock::now_ms;
use berth_core::report::PlanVerdict;
use berth_core::strategy::compare;
use berth_core::{Digest, Plan};
use berth_dashboard::{Act, Read, Refusal, Source};
use serde_json::{Value, json};

use crate::args::PlanArgs;
use crate::cmd::{apply, rollback};
use crate::failure::Failure;
use crate::prepare::{self, Planning};
use crate::proofs;
use crate::{advise, output};

/// How far the ledger's lines reach back, and how many points each has.
const PAST_MS: u64 = 12 * 60 * 60 * 1000;
const POINTS: u64 = 240;
/// What the spec would change is known for so long.
const DIFFERENCE_MS: u64 = 30_000;

/// A state folder.
pub(super) struct OfState {
    dir: StateDir,
    /// What the spec would change, by what that depends on: planning takes a while, and the page asks often.
    difference: Mutex<Option<(Key, (Value, Value))>>,
}

/// The plan in force, what the spec says, and about when.
type Key = (Option<i64>, Option<Digest>, u64);

impl OfState {
    pub(super) fn new(dir: StateDir) -> Self {
        Self { dir, difference: Mutex::default() }
    }

    fn journal(&self) -> Result<Journal, Failure> {
        Ok(Journal::open(&self.dir.journal())?)
    }

    /// The spec of the plan in force.
    fn asked(&self, journal: &Journal) -> Result<PlanArgs, Failure> {
        let Some(asked) = journal.asked()? else {
            let error = anyhow::anyhow!("which spec the plan in force was made from is not known");
            return Err(Failure::new(error).hint("`berth apply -f SPEC` says so"));
        };
        Ok(PlanArgs { file: asked.file, strategy: asked.strategy, json: false })
    }

    /// All strategies side by side; none where the machines are not in the spec.
    fn strategies(&self) -> Result<Option<Value>, Failure> {
        let journal = self.journal()?;
        let args = self.asked(&journal)?;
        // Before it is read: what has changed since is then refused when it is applied.
        let shown = text(&journal)?;
        let spec = prepare::spec(&args.file)?;
        if spec.cluster.nodes.is_empty() {
            return Ok(None);
        }
        let planning = Planning::new(self.dir.root(), &args.file, spec)?;
        let started = std::time::Instant::now();
        let now = || started.elapsed().as_secs_f64() * 1e3;
        let compared = compare::compare(&planning.spec, &planning.cluster(), &now);
        let mut compared = json_of(&compared.map_err(Failure::bad_spec)?)?;
        compared["spec_digest"] = json!(shown);
        Ok(Some(compared))
    }

    fn ledger(&self) -> Result<Value, Failure> {
        let (journal, now_ms) = (self.journal()?, now_ms());
        let plan = journal.current()?.map(|current| current.plan);
        let mut devices: Vec<Value> = Vec::new();
        let samples = journal.past(now_ms.saturating_sub(PAST_MS), now_ms, POINTS)?;
        for planned in plan.iter().flat_map(|plan| &plan.devices) {
            let of = samples
                .iter()
                .filter(|sample| sample.node == planned.node && sample.device == planned.device.0);
            let foreign = |used: Option<u64>, own: Option<u64>| Some(used?.saturating_sub(own?));
            let point = |one: &berth_control::journal::Sample| {
                json!([one.at_ms, one.planned, one.own, foreign(one.used, one.own)])
            };
            let points: Vec<Value> = of.map(point).collect();
            let (node, device, total) = (&planned.node, &planned.device, planned.total);
            devices
                .push(json!({ "node": node, "device": device, "total": total, "points": points }));
        }
        Ok(json!({ "at_ms": now_ms, "devices": devices, "errors": journal.plan_errors()? }))
    }

    fn changes(&self) -> Result<Value, Failure> {
        let journal = self.journal()?;
        let plans = journal.plans()?;
        let spec = self.asked(&journal).and_then(|args| prepare::spec(&args.file));
        let strategies: Vec<String> = match &spec {
            Ok(spec) => spec.strategies.iter().map(|one| one.name.clone()).collect(),
            Err(_) => Vec::new(),
        };
        let (difference, problem) = self.difference(&journal)?;
        Ok(json!({
            "in_force": plans.first(),
            "plans": plans,
            "difference": difference,
            "problem": problem,
            "advice": journal.advice()?,
            "spec_digest": text(&journal)?,
            "strategies": strategies,
        }))
    }

    /// What applying the spec now would do, or what is wrong with it.
    fn difference(&self, journal: &Journal) -> Result<(Value, Value), Failure> {
        let args = match self.asked(journal).map_err(refusal) {
            Ok(args) => args,
            Err(Refusal { error, hint, .. }) => {
                return Ok((json!([]), json!({ "error": error, "hint": hint })));
            }
        };
        // What others hold changes by itself: now and then it is planned anew.
        let key = (journal.current_seq()?, text(journal)?, now_ms() / DIFFERENCE_MS);
        let mut known = self.difference.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, both)) = known.as_ref().filter(|(of, _)| *of == key) {
            return Ok(both.clone());
        }
        let both = match planned(&self.dir, &args, journal) {
            Ok(lines) => (json!(lines), Value::Null),
            Err(Refusal { error, hint, .. }) => {
                (json!([]), json!({ "error": error, "hint": hint }))
            }
        };
        *known = Some((key, both.clone()));
        Ok(both)
    }

    fn apply(&self, strategy: Option<&str>, shown: Option<&str>) -> Result<(), Refusal> {
        let mut journal = self.journal().map_err(refusal)?;
        let mut args = self.asked(&journal).map_err(refusal)?;
        args.strategy = strategy.map(str::to_owned);
        let asked = advise::asked(&args).map_err(refusal)?;
        if shown.is_some_and(|shown| shown != asked.text.as_str()) {
            return Err(conflict(
                "the spec says something else by now",
                "look at what it would change",
            ));
        }
        let listen = listen(&journal).map_err(refusal)?;
        let planned = prepare::plan(self.dir.root(), &args, listen, &journal).map_err(refusal)?;
        if planned.report.verdict == PlanVerdict::Impossible {
            return Err(does_not_fit(&planned.report));
        }
        let committed = journal.commit(&planned.plan, Some(&planned.report), now_ms());
        committed.map_err(Failure::from).map_err(refusal)?;
        journal.set_asked(&asked).map_err(Failure::from).map_err(refusal)
    }

    fn advice(&self, digest: Option<&str>, approve: bool) -> Result<(), Refusal> {
        let mut journal = self.journal().map_err(refusal)?;
        let advice = journal.advice().map_err(Failure::from).map_err(refusal)?;
        let shown = |advice: &berth_control::journal::Advice| {
            advice.digest.as_ref().map(Digest::as_str) == digest
        };
        let Some(advice) = advice.filter(shown) else {
            return Err(conflict("what is advised is no longer that", "look at it again"));
        };
        match approve {
            false => {
                rollback::freeze(&journal, advice.changes.iter()).map_err(refusal)?;
                journal.forget_advice().map_err(Failure::from).map_err(refusal)
            }
            true => apply::take_advice(&mut journal, advice).map_err(refusal),
        }
    }

    fn roll_back(&self, seq: i64) -> Result<(), Refusal> {
        let mut journal = self.journal().map_err(refusal)?;
        let earlier = journal.plan(seq).map_err(Failure::from).map_err(refusal)?;
        let Some(earlier) = earlier.map(|journalled| journalled.plan) else {
            return Err(conflict("that plan is no longer kept", "choose another"));
        };
        rollback::bring_back(&mut journal, earlier).map_err(refusal)
    }
}

impl Source for OfState {
    fn read(&self, what: &Read) -> Result<String, Refusal> {
        let value = match what {
            Read::Plan => {
                let current = self.journal().and_then(|journal| Ok(journal.current()?));
                let Some(current) = current.map_err(refusal)? else {
                    return Err(nothing("nothing is applied here yet"));
                };
                let digest = current.plan.digest();
                Ok(json!({ "plan_digest": digest, "plan": current.plan }))
            }
            Read::Strategies => {
                return match self.strategies().map_err(refusal)? {
                    Some(compared) => Ok(compared.to_string()),
                    None => {
                        Err(nothing("strategies are compared on machines that are written down"))
                    }
                };
            }
            Read::Ledger => self.ledger(),
            Read::Changes => self.changes(),
            Read::Proofs => proofs::list(&self.dir).and_then(|all| json_of(&all)),
            Read::Proof(name) => {
                return proofs::page(&self.dir, name)
                    .ok_or_else(|| nothing("there is no such report"));
            }
        };
        value.map(|value| value.to_string()).map_err(refusal)
    }

    fn act(&self, act: &Act) -> Result<(), Refusal> {
        match act {
            Act::Apply { strategy, spec } => self.apply(strategy.as_deref(), spec.as_deref()),
            Act::Advice { digest, approve } => self.advice(digest.as_deref(), *approve),
            Act::RollBack { seq } => self.roll_back(*seq),
        }
    }
}

/// The digest of the spec's text as it is.
fn text(journal: &Journal) -> Result<Option<Digest>, Failure> {
    let Some(asked) = journal.asked()? else { return Ok(None) };
    Ok(std::fs::read_to_string(&asked.file).ok().map(|text| Digest::of(&text)))
}

/// What the spec would change, a line each.
fn planned(dir: &StateDir, args: &PlanArgs, journal: &Journal) -> Result<Vec<String>, Refusal> {
    let listen = listen(journal).map_err(refusal)?;
    let planned = prepare::plan(dir.root(), args, listen, journal).map_err(refusal)?;
    if planned.report.verdict == PlanVerdict::Impossible {
        return Err(does_not_fit(&planned.report));
    }
    let current = journal.current().map_err(Failure::from).map_err(refusal)?;
    let current: Option<Plan> = current.map(|journalled| journalled.plan);
    let lines = output::changes(&planned.plan, current.as_ref());
    let is_change = |line: &&str| line.starts_with(['+', '-', '~']);
    Ok(lines.lines().filter(is_change).map(str::to_owned).collect())
}

/// The gateway stays where it is, whatever the spec says: it can't move while it serves.
fn listen(journal: &Journal) -> Result<Option<std::net::SocketAddr>, Failure> {
    Ok(journal.current()?.map(|current| current.plan.gateway.listen))
}

fn json_of(value: &impl serde::Serialize) -> Result<Value, Failure> {
    serde_json::to_value(value).map_err(Failure::new)
}

fn does_not_fit(report: &berth_core::report::PlanReport) -> Refusal {
    let reasons = report.models.iter().flat_map(|model| {
        model.reasons.iter().map(move |reason| format!("{}: {reason}", model.model))
    });
    let reasons: Vec<String> = reasons.collect();
    conflict(
        &format!("it does not fit: {}", reasons.join("; ")),
        "`berth plan --compare` shows what does",
    )
}

fn conflict(error: &str, hint: &str) -> Refusal {
    Refusal { status: 409, error: error.to_owned(), hint: Some(hint.to_owned()) }
}

fn nothing(error: &str) -> Refusal {
    let hint = Some("`berth apply -f SPEC` brings a plan into force".to_owned());
    Refusal { status: 404, error: error.to_owned(), hint }
}

fn refusal(failure: Failure) -> Refusal {
    let status = if failure.is_of_the_spec() { 422 } else { 409 };
    let mut told = failure.told();
    let (error, hint) =
        told.next().map_or_else(Default::default, |(error, hint)| (error, hint.map(str::to_owned)));
    Refusal { status, error, hint }
}
