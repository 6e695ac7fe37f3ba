//! `berth up`: plan, apply, and serve in the foreground until Ctrl-C.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use berth_cluster::local::StateDir;
use berth_control::clock::now_ms;
use berth_control::journal::Asked;
use berth_control::{Controller, InstanceState, Journal, JournalError, Patience};
use berth_core::placement::Planned;
use berth_core::report::PlanVerdict;

use super::{plan, rehearse, serve, status};
use crate::args::{DashboardArgs, UpArgs};
use crate::failure::Failure;
use crate::lifecycle::{self, DRAIN_LIMIT};
use crate::publish::Served;
use crate::{advise, dashboard, output, prepare};

pub(crate) fn run(state: &Path, args: &UpArgs) -> Result<ExitCode, Failure> {
    if args.emulate {
        return rehearse::run(state, args);
    }
    let dir = prepare::state_dir(state)?;
    let asked = advise::asked(&args.plan)?;
    let planned = prepare::plan(state, &args.plan, args.listen, &Journal::open(&dir.journal())?)?;
    plan::show(&planned, false)?;
    if planned.report.verdict == PlanVerdict::Impossible {
        return Ok(plan::exit_code(&planned));
    }
    lifecycle::runtime()?.block_on(up(&dir, &planned, &asked, &args.dashboard))
}

pub(super) async fn up(
    dir: &StateDir,
    planned: &Planned,
    asked: &Asked,
    dashboard: &DashboardArgs,
) -> Result<ExitCode, Failure> {
    let spec = &planned.plan.gateway;
    let gateway = lifecycle::gateway(spec)?;
    let mut controller = lifecycle::controller(dir, Some(&planned.plan), Some(&gateway))?
        .ok_or_else(serve::taken)?;
    let listener = lifecycle::bind(planned.plan.gateway.listen).await?;
    controller.journal_mut().commit(&planned.plan, Some(&planned.report), now_ms())?;
    controller.journal_mut().set_asked(asked)?;
    controller.journal_mut().set_gateway(Some(planned.plan.gateway.listen))?;
    output::talk(&format!("\ngateway at {}", lifecycle::url(spec)));

    let serving = tokio::spawn({
        let gateway = gateway.clone();
        async move { gateway.serve(listener, DRAIN_LIMIT).await }
    });
    tokio::spawn(lifecycle::follow_keys(gateway.clone(), spec.keys.as_ref().map(PathBuf::from)));
    let feed = dashboard::start(dir, dashboard, spec.listen).await?;
    let watching = tokio::spawn(lifecycle::watch(dir.clone(), feed));
    let routes = dir.routes();
    let served = Served { gateway: &gateway, routes: &routes };
    let ended = tokio::select! {
        ended = run_until_stopped(dir, &mut controller, served) => ended,
        () = lifecycle::signal() => Ok(ExitCode::SUCCESS),
    };
    if ended.is_err() && planned.plan.ray.is_some() {
        // What Ray runs is no worse for what went wrong here.
        output::talk(
            "\nthe engines go on: Ray looks after them; `berth serve` takes them up again",
        );
        gateway.drain();
        return ended;
    }
    // Nothing is adjusted any more.
    watching.abort();
    output::talk("\nstopping: finishing what runs (Ctrl-C again stops at once)");
    gateway.drain();
    tokio::select! {
        _ = serving => controller.set_patience(Patience::Ask),
        () = lifecycle::signal() => controller.set_patience(Patience::None),
    }
    stop(&mut controller).await?;
    ended
}

/// Brings everything up, prints the ledger, and keeps it so. Ends only where nothing came up.
async fn run_until_stopped(
    dir: &StateDir,
    controller: &mut Controller,
    served: Served<'_>,
) -> Result<ExitCode, Failure> {
    let turn = lifecycle::settle(controller, Some(served)).await?;
    let is_there = |state| matches!(state, InstanceState::Ready | InstanceState::Asleep);
    if !turn.instances.iter().any(|instance| is_there(instance.state)) {
        output::talk("error: no instance came up; the reasons are above");
        return Ok(ExitCode::FAILURE);
    }
    let status = status::read(dir, controller.journal_mut())?;
    output::data(&format!("\n{}\n", output::ledger(&status.ledger)));
    match turn.instances.iter().all(|instance| is_there(instance.state)) {
        true => output::talk("all models are ready; Ctrl-C stops them"),
        false => output::talk("some models failed; the others serve; Ctrl-C stops them"),
    }
    lifecycle::keep(controller, served).await?;
    Ok(ExitCode::SUCCESS)
}

/// Stops what this state has running, however it came to run. Another Ctrl-C stops it at once.
async fn stop(controller: &mut Controller) -> Result<(), Failure> {
    if let Err(failure) = want_nothing(controller.journal_mut()) {
        controller.stop_without_journal();
        output::talk("the engines were asked to end, which could not be journalled");
        return Err(failure);
    }
    tokio::select! {
        settled = lifecycle::settle(controller, None) => return settled.map(drop),
        () = lifecycle::signal() => {}
    }
    controller.set_patience(Patience::None);
    lifecycle::settle(controller, None).await?;
    Ok(())
}

/// Other plans that may come in between.
const MOST_TRIES: u32 = 50;

/// Brings the plan into force under which nothing runs, whatever plan came in between.
fn want_nothing(journal: &mut Journal) -> Result<(), Failure> {
    for _ in 0..MOST_TRIES {
        let Some(nothing) = prepare::nothing(journal)? else { return Ok(()) };
        match journal.commit(&nothing, None, now_ms()) {
            Err(JournalError::Stale) => {}
            committed => return Ok(committed.map(drop)?),
        }
    }
    Err(JournalError::Stale.into())
}
