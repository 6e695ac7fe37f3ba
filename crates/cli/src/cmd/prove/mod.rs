//! `berth prove`: saturates all models at once, and says whether what is in force holds.
//!
//! - [`models`]: what each model can be asked
//! - [`phases`]: what is asked when
//! - [`memory`]: what memory did meanwhile
//! - [`speed`]: what it says of how fast the engines are

mod memory;
mod models;
mod phases;
mod speed;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use berth_cluster::local::{StateDir, lock};
use berth_control::clock::now_ms;
use berth_control::{InstanceState, InstanceStatus, Journal};
use berth_core::Plan;
use berth_core::spec::Demand;
use berth_load::dataset::Request;
use berth_load::record::Record;
use berth_load::report::{Generator, PhaseNote, Report, VERSION};
use berth_load::run::{Progress, run_blocking};
use berth_load::summary::{Summary, Targets, summarize};
use berth_load::target::Target;
use berth_load::verdict::{Judgement, Limits, MemorySeen, judge};
use berth_load::{dataset, trace};

use crate::args::ProveArgs;
use crate::cmd::status;
use crate::failure::Failure;
use crate::{lifecycle, output, prepare, proofs};
use memory::Watched;
use phases::{Steady, Texts, texts};

/// Where the gateway's key is.
const KEY: &str = "BERTH_API_KEY";
/// Of what the engines were seen to do at most a steady load asks for so much.
const SHARE: f64 = 0.5;

pub(crate) fn run(state: &Path, args: &ProveArgs) -> Result<ExitCode, Failure> {
    let dir = prepare::state_dir(state)?;
    let (report, page) = prove(&dir, args)?;
    match args.json {
        true => output::json(&report)?,
        false => output::data(&output::proof(&report)),
    }
    output::talk(&format!("report: {}", page.display()));
    Ok(code(report.verdict.result))
}

/// 0 where it holds, 1 where it doesn't, 4 where that can't be told.
pub(crate) fn code(result: Judgement) -> ExitCode {
    match result {
        Judgement::Pass => ExitCode::SUCCESS,
        Judgement::Fail => ExitCode::FAILURE,
        Judgement::Inconclusive => ExitCode::from(4),
    }
}

/// Proves the plan in force through the gateway that serves it; keeps the report, and says where.
pub(crate) fn prove(
    dir: &StateDir,
    args: &ProveArgs,
) -> Result<(Report, std::path::PathBuf), Failure> {
    let journal = Journal::open(&dir.journal())?;
    let plan = serving(dir, &journal)?;
    if let Some(why) = unlike(dir, &journal)?.into_iter().next() {
        return Err(Failure::new(anyhow::anyhow!("what runs is not what is planned: {why}"))
            .hint("`berth status` says why; prove it once all is ready"));
    }
    let at_ms = now_ms();
    let target = target(&journal, &plan)?;
    let files = Files::read(args)?;
    let runtime = lifecycle::runtime()?;
    let ran = runtime.block_on(async {
        tokio::select! {
            ended = load(&journal, &plan, &target, &files, args) => ended,
            () = lifecycle::signal() => Err(Failure::new(anyhow::anyhow!("stopped before it was through"))
                .hint("nothing is proved")),
        }
    });
    // What still sends is not waited for.
    runtime.shutdown_background();
    let Ran { records, mut memory, asked } = ran?;
    memory.missing.extend(unlike(dir, &journal)?);
    let digest = plan.digest();
    if journal.current()?.map(|current| current.plan.digest()) != Some(digest.clone()) {
        return Err(Failure::new(anyhow::anyhow!("another plan came into force meanwhile"))
            .hint("run it again: a proof is of one plan"));
    }
    let limits = limits(&plan, args);
    let mut summary = summarize(&records, &limits.targets);
    summary.phases.sort_by_key(|phase| asked.iter().position(|note| note.name == phase.name));
    let verdict = judge(&summary, &memory, &limits);
    let report = Report {
        version: VERSION,
        name: format!("{}-{digest}", at_ms / 1000),
        at_ms,
        plan_digest: digest.to_string(),
        strategy: plan.strategy.clone(),
        emulated: plan.ray.as_ref().is_some_and(|ray| ray.is_emulated),
        verdict,
        limits,
        phases: asked,
        generator: Generator { threads: 1, own: summary.all.own },
        summary,
        memory,
    };
    let page = proofs::keep(dir, &report)?;
    if report.verdict.result == Judgement::Pass {
        speed::learn(dir, &journal, &plan, &records);
    }
    Ok((report, page))
}

/// Instances that are otherwise than planned, in words: a proof would be of something else.
fn unlike(dir: &StateDir, journal: &Journal) -> Result<Vec<String>, Failure> {
    let status = status::read(dir, journal)?;
    let is_spare = |one: &&InstanceStatus| one.state != InstanceState::Spare;
    let words = |one: &InstanceStatus| {
        let how = match one {
            one if one.state != InstanceState::Ready => one.state.as_str(),
            one if one.rolled_back => "back at its earlier configuration",
            one if one.is_to_change => "to change yet",
            _ => return None,
        };
        Some(format!("{} is {how}", one.id))
    };
    Ok(status.instances.iter().filter(is_spare).filter_map(words).collect())
}

/// The plan in force, with somebody who looks after it.
fn serving(dir: &StateDir, journal: &Journal) -> Result<Plan, Failure> {
    let is_served = lock::is_held(&dir.controller_lock()).unwrap_or(false);
    match journal.current()?.map(|current| current.plan) {
        Some(plan) if !plan.instances.is_empty() && !is_served => {
            Err(Failure::new(anyhow::anyhow!("no gateway serves what is applied"))
                .hint("`berth serve` does; leave it running, and prove from another terminal"))
        }
        Some(plan) if !plan.instances.is_empty() => Ok(plan),
        _ => Err(Failure::new(anyhow::anyhow!("nothing is applied here yet"))
            .hint("`berth apply -f SPEC` first, or `berth up -f SPEC` for both at once")),
    }
}

fn target(journal: &Journal, plan: &Plan) -> Result<Target, Failure> {
    let Some(address) = journal.gateway()? else {
        return Err(Failure::new(anyhow::anyhow!("no gateway serves what is applied"))
            .hint("`berth serve` does; leave it running, and prove from another terminal"));
    };
    let scheme = if plan.gateway.tls.is_some() { "https" } else { "http" };
    let key = std::env::var(KEY).ok();
    Target::parse(&format!("{scheme}://{address}"), key.as_deref()).map_err(|error| {
        Failure::new(error).hint(format!(
            "the load goes by http to the gateway's address; its key is taken from {KEY}"
        ))
    })
}

/// What a person's files say.
struct Files {
    dataset: Option<Vec<Request>>,
    trace: Option<Vec<f64>>,
}

impl Files {
    fn read(args: &ProveArgs) -> Result<Self, Failure> {
        let dataset = args.dataset.as_deref().map(dataset::read).transpose();
        let trace = args.trace.as_deref().map(trace::read).transpose();
        Ok(Self {
            dataset: dataset.map_err(|error| {
                Failure::bad_spec(error).hint("ShareGPT's JSON, or OpenAI's batch lines")
            })?,
            trace: trace.map_err(|error| {
                Failure::bad_spec(error)
                    .hint("a number of seconds a line, or lines with \"timestamp\"")
            })?,
        })
    }
}

/// What was asked, what came of it, and what memory did.
struct Ran {
    asked: Vec<PhaseNote>,
    records: Vec<Record>,
    memory: MemorySeen,
}

/// Asks everything, and watches memory beside it.
async fn load(
    journal: &Journal,
    plan: &Plan,
    target: &Target,
    files: &Files,
    args: &ProveArgs,
) -> Result<Ran, Failure> {
    let reading = plan.clone();
    let asked = tokio::task::spawn_blocking(move || models::asked(&reading)).await;
    let asked = asked
        .map_err(Failure::new)?
        .map_err(|error| Failure::new(error).hint("`berth status` says whether it is ready"))?;
    let seed = args.seed.unwrap_or_else(now_ms);
    let mut all = Vec::new();
    for one in asked {
        all.push(texts(one, seed).await.map_err(Failure::new)?);
    }
    let mut watched = Watched::new(plan, journal.state_id()?);
    let sending = async {
        let begun = std::time::Instant::now();
        let worst = phases::overload(&all, seed);
        let mut notes: Vec<PhaseNote> = worst.iter().map(PhaseNote::of).collect();
        let mut records = send(target, worst).await?;
        let steady = Steady {
            duration: Duration::from_secs(args.duration),
            trace: files.trace.as_deref(),
            dataset: files.dataset.as_deref(),
            seed,
        };
        let reached = summarize(&records, &Default::default());
        let demands = demands(journal);
        let rate = |one: &Texts| {
            let demand = demands.iter().find(|(model, _)| *model == one.asked.model);
            let demand = demand.map(|(_, demand)| demand.requests_per_second);
            args.rate.or(demand).unwrap_or_else(|| SHARE * capacity(&reached, one))
        };
        let steady = steady.phase(&all, rate);
        notes.push(PhaseNote::of(&steady));
        let later = begun.elapsed();
        let then = send(target, vec![steady]).await?;
        records.extend(then.into_iter().map(|record| record.later_by(later)));
        Ok::<_, Failure>((notes, records))
    };
    let (asked, records) = tokio::select! {
        ran = sending => ran?,
        () = watched.look_on() => Default::default(),
    };
    // What the last requests did to an engine is seen a moment later.
    watched.look_once_more().await;
    output::end_progress();
    Ok(Ran { asked, records, memory: watched.seen(journal)? })
}

/// On a thread of its own: nothing else may keep it from sending on time.
async fn send(
    target: &Target,
    phases: Vec<berth_load::phase::Phase>,
) -> Result<Vec<Record>, Failure> {
    let target = target.clone();
    let sending = tokio::task::spawn_blocking(move || run_blocking(&target, phases, show));
    sending.await.map_err(Failure::new)?.map_err(Failure::new)
}

fn show(progress: &Progress) {
    let Progress { phase, planned, sent, finished, failed, elapsed } = progress;
    output::progress(&format!(
        "{phase}: {} s: {sent} of {planned} sent, {finished} ended, {failed} not answered",
        elapsed.as_secs()
    ));
}

/// Requests a second of the steady mix that a model was seen to be good for, by the tokens that it made under all that
/// it was asked.
fn capacity(reached: &Summary, one: &Texts) -> f64 {
    let model = reached.models.iter().find(|model| model.model == one.asked.model);
    let tokens = model.map_or(0.0, |model| model.measures.throughput.output_tokens_per_s);
    tokens / f64::from(one.answer.max(1))
}

/// What the spec says is asked of its models.
fn demands(journal: &Journal) -> Vec<(String, Demand)> {
    let Ok(Some(asked)) = journal.asked() else { return Vec::new() };
    let spec = prepare::spec(&asked.file);
    let spec = spec.and_then(|spec| prepare::with_strategy(spec, asked.strategy.as_deref()));
    let Ok(spec) = spec else { return Vec::new() };
    let of = spec.deployments.iter();
    of.filter_map(|one| Some((one.model.clone(), one.demand?))).collect()
}

fn limits(plan: &Plan, args: &ProveArgs) -> Limits {
    let targets = Targets { ttft_ms: args.ttft, itl_ms: args.itl, e2e_ms: args.e2e };
    let models = plan.instances.iter().map(|one| one.model.clone());
    let targets = match targets == Targets::default() {
        true => Default::default(),
        false => models.map(|model| (model, targets)).collect(),
    };
    Limits { targets, ..Limits::default() }
}
