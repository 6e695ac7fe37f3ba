//! `berth apply`: makes a plan so, and leaves it running.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use berth_cluster::local::{StateDir, lock};
use berth_control::clock::now_ms;
use berth_control::journal::Advice;
use berth_control::{InstanceState, InstanceStatus, Journal, Status};
use berth_core::report::PlanVerdict;
use berth_core::{Digest, Plan};
use berth_load::verdict::Judgement;

use super::{plan, prove, rollback, status};
use crate::args::{ApplyArgs, ProveArgs};
use crate::failure::Failure;
use crate::{advise, lifecycle, output, prepare};

pub(crate) fn run(state: &Path, args: &ApplyArgs) -> Result<ExitCode, Failure> {
    let dir = prepare::state_dir(state)?;
    let mut journal = Journal::open(&dir.journal())?;
    if !args.prove {
        return apply(state, &dir, &mut journal, args);
    }
    let before = journal.current()?.map(|journalled| journalled.plan);
    if !lock::is_held(&dir.controller_lock()).unwrap_or(false) {
        let error =
            anyhow::anyhow!("nobody serves here, so nothing can be asked of what is applied");
        return Err(Failure::new(error)
            .hint("leave `berth serve` or `berth up` running, and apply from another terminal"));
    }
    let code = apply(state, &dir, &mut journal, args)?;
    if code != ExitCode::SUCCESS {
        return Ok(code);
    }
    proved(&dir, &mut journal, before, args.duration)
}

/// Proves what has just come into force; it goes back where that fails.
fn proved(
    dir: &StateDir,
    journal: &mut Journal,
    before: Option<Plan>,
    duration: u64,
) -> Result<ExitCode, Failure> {
    let proved = prove::prove(dir, &ProveArgs::of(duration));
    let (report, page) = proved.inspect_err(|_| {
        output::talk(
            "it is in force, and not proved (`berth rollback` brings back what was before):",
        );
    })?;
    output::data(&output::proof(&report));
    output::talk(&format!("report: {}", page.display()));
    if report.verdict.result == Judgement::Fail {
        let Some(before) = before.filter(|plan| !plan.instances.is_empty()) else {
            output::talk("nothing was in force before it: it stays (`berth down` stops it)");
            return Ok(ExitCode::FAILURE);
        };
        let current = journal.current()?.map(|journalled| journalled.plan.digest());
        if current.as_ref().map(Digest::as_str) != Some(report.plan_digest.as_str()) {
            output::talk("another plan came into force meanwhile: that one stays");
            return Ok(ExitCode::FAILURE);
        }
        if current == Some(before.digest()) {
            output::talk("it is what was in force before: it stays");
            return Ok(ExitCode::FAILURE);
        }
        output::talk("going back to the plan before");
        rollback::bring_back(journal, before)?;
        let back = carry_out(dir, journal)?;
        match outcome(&back.instances) == ExitCode::SUCCESS {
            true => output::talk("what was before is in force again"),
            false => output::data(&output::status(&back)),
        }
    }
    Ok(prove::code(report.verdict.result))
}

fn apply(
    state: &Path,
    dir: &StateDir,
    journal: &mut Journal,
    args: &ApplyArgs,
) -> Result<ExitCode, Failure> {
    if args.advised {
        return advised(dir, journal, args.plan.json);
    }
    let args = &args.plan;
    // Before it is planned: what is written into it from now on was not asked for.
    let asked = advise::asked(args)?;
    let planned = prepare::plan(state, args, None, journal)?;
    if planned.report.verdict == PlanVerdict::Impossible {
        plan::show(&planned, args.json)?;
        return Ok(plan::exit_code(&planned));
    }
    let before = journal.current()?.map(|journalled| journalled.plan);
    output::talk(&output::changes(&planned.plan, before.as_ref()));
    journal.commit(&planned.plan, Some(&planned.report), now_ms())?;
    journal.set_asked(&asked)?;
    finish(dir, journal, args.json)
}

/// Brings into force what berth advises, if it still fits.
fn advised(dir: &StateDir, journal: &mut Journal, is_json: bool) -> Result<ExitCode, Failure> {
    let Some(advice) = journal.advice()? else {
        return Err(Failure::new(anyhow::anyhow!("nothing is advised for the plan in force"))
            .hint("`berth status` shows what is, while `berth up` or `berth serve` runs"));
    };
    let before = journal.current()?.map(|journalled| journalled.plan);
    output::talk(&output::changes(&advice.plan, before.as_ref()));
    take_advice(journal, advice)?;
    finish(dir, journal, is_json)
}

/// Brings what is advised into force, if it still fits.
pub(crate) fn take_advice(journal: &mut Journal, advice: Advice) -> Result<(), Failure> {
    if let Some(message) = rollback::taken_since(&advice.plan, &prepare::inventory(journal)?) {
        let error = anyhow::anyhow!("what is advised does not fit any more: {message}");
        return Err(Failure::does_not_fit(error).hint("free it, or wait: berth looks again"));
    }
    let (asked, advice) = (journal.asked()?, advice.at(now_ms()));
    journal.commit(&advice.plan, None, now_ms())?;
    if let Some(asked) = asked {
        journal.set_asked(&asked)?;
    }
    Ok(())
}

/// Sees the plan in force through, and shows what came of it.
pub(crate) fn finish(
    dir: &StateDir,
    journal: &Journal,
    is_json: bool,
) -> Result<ExitCode, Failure> {
    let status = carry_out(dir, journal)?;
    if is_json {
        output::json(&status)?;
    } else {
        output::data(&output::status(&status));
    }
    Ok(outcome(&status.instances))
}

/// Sees the plan in force through: as the controller where there is none, else by watching it.
pub(crate) fn carry_out(dir: &StateDir, journal: &Journal) -> Result<Status, Failure> {
    lifecycle::runtime()?.block_on(async {
        let current = journal.current()?.map(|journalled| journalled.plan);
        match lifecycle::controller(dir, current.as_ref(), None)? {
            Some(mut controller) => {
                controller.journal_mut().set_gateway(None)?;
                lifecycle::settle(&mut controller, None).await?;
                // Nobody watches how the trial of what is ready ends.
                controller.prove()?;
            }
            None => {
                output::talk("another berth watches over this state; it makes the change");
                watch(dir, journal).await?;
            }
        }
        status::read(dir, journal)
    })
}

async fn watch(dir: &StateDir, journal: &Journal) -> Result<(), Failure> {
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let status = status::read(dir, journal)?;
        let is_done = |one: &InstanceStatus| {
            (one.state == InstanceState::Failed || is_up(one.state)) && !one.is_to_change
        };
        if status.instances.iter().all(is_done) {
            return Ok(());
        }
        if !status.controller_running {
            return Err(Failure::new(anyhow::anyhow!("the berth that made the change has ended"))
                .hint("run the command again: it goes on where that one ended"));
        }
    }
}

/// 0 only where every instance runs as planned.
pub(crate) fn outcome(instances: &[InstanceStatus]) -> ExitCode {
    let as_planned = |i: &InstanceStatus| is_up(i.state) && !i.rolled_back && !i.is_to_change;
    if instances.iter().all(as_planned) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether an instance is as its plan has it.
pub(crate) fn is_up(state: InstanceState) -> bool {
    matches!(state, InstanceState::Ready | InstanceState::Asleep | InstanceState::Spare)
}
