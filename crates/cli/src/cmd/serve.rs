//! `berth serve`: watches over what is applied, and serves it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use berth_control::Journal;
use berth_core::Plan;

use crate::args::ServeArgs;
use crate::failure::Failure;
use crate::lifecycle::{self, DRAIN_LIMIT};
use crate::publish::Served;
use crate::{dashboard, output, prepare};
use berth_gateway::Gateway;

pub(crate) fn run(state: &Path, args: &ServeArgs) -> Result<ExitCode, Failure> {
    let dir = prepare::state_dir(state)?;
    let current = Journal::open(&dir.journal())?.current()?;
    let Some(current) = current.filter(|current| has_something(&current.plan)) else {
        return Err(Failure::new(anyhow::anyhow!("nothing is applied here yet"))
            .hint("`berth apply -f SPEC` first, or `berth up -f SPEC` for both at once"));
    };
    let spec = &current.plan.gateway;
    lifecycle::runtime()?.block_on(async {
        let listener = lifecycle::bind(current.plan.gateway.listen).await?;
        let gateway = lifecycle::gateway(spec)?;
        let mut controller =
            lifecycle::controller(&dir, Some(&current.plan), Some(&gateway))?.ok_or_else(taken)?;
        controller.journal_mut().set_gateway(Some(current.plan.gateway.listen))?;
        output::talk(&format!("serving at {}", lifecycle::url(spec)));
        tokio::spawn(lifecycle::follow_keys(
            gateway.clone(),
            spec.keys.as_ref().map(PathBuf::from),
        ));
        let feed = dashboard::start(&dir, &args.dashboard, spec.listen).await?;
        tokio::spawn(lifecycle::watch(dir.clone(), feed));
        let routes = dir.routes();
        let served = Served { gateway: &gateway, routes: &routes };
        tokio::select! {
            ended = gateway.serve(listener, DRAIN_LIMIT) => ended.map_err(Failure::new),
            ended = lifecycle::keep(&mut controller, served) => ended,
            () = drained(&gateway) => Ok(()),
        }?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Whether there is anything to route to.
fn has_something(plan: &Plan) -> bool {
    !plan.instances.is_empty() || !plan.external.is_empty()
}

/// After a signal the gateway finishes what runs; `serve` returns then. A second signal ends it at
/// once.
async fn drained(gateway: &Gateway) {
    lifecycle::signal().await;
    output::talk("finishing what runs; the engines go on (`berth down` stops them)");
    gateway.drain();
    lifecycle::signal().await;
}

pub(crate) fn taken() -> Failure {
    Failure::new(anyhow::anyhow!("another berth watches over this state"))
        .hint("stop it first, or use another --state; `berth apply` hands it a new plan")
}
