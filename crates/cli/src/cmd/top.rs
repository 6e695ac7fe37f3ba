//! `berth top`: memory as bars, again and again. It looks by itself, with or without a controller.

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use berth_control::ray::Processes;
use berth_control::{Journal, watch};
use berth_core::plan::Plan;
use berth_core::spec::GatewaySpec;
use berth_core::watch::Watch;

use crate::args::TopArgs;
use crate::failure::Failure;
use crate::output::memory::Seen;
use crate::{lifecycle, output, prepare};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// To the upper left, and nothing below.
const CLEAR: &str = "\x1b[H\x1b[J";

pub(crate) fn run(state: &Path, args: &TopArgs) -> Result<ExitCode, Failure> {
    let dir = prepare::state_dir(state)?;
    let journal = Journal::open(&dir.journal())?;
    let state_id = journal.state_id()?;
    lifecycle::runtime()?.block_on(async {
        // From the beginning: Ctrl-C may come in the midst of a look.
        tokio::select! {
            ended = show(&journal, &state_id, args) => ended,
            () = lifecycle::signal() => Ok(ExitCode::SUCCESS),
        }
    })
}

/// Again and again, until nobody reads any more.
async fn show(journal: &Journal, state_id: &str, args: &TopArgs) -> Result<ExitCode, Failure> {
    let (mut known, mut processes) = (Watch::default(), Processes::default());
    let clear = if std::io::stdout().is_terminal() { CLEAR } else { "" };
    loop {
        let plan = journal.current()?.map(|journalled| journalled.plan);
        let plan = plan.unwrap_or_else(|| Plan::nothing(GatewaySpec::default(), None));
        let look = watch::look(state_id, &plan, &mut processes).await;
        known.step(&plan, look);
        let Some(look) = known.last() else { continue };
        let seen = Seen::new(Some(&plan), look, known.alarms());
        let text = match (args.json, args.once) {
            (true, _) => serde_json::to_string(&seen).map_err(Failure::new)?,
            (false, true) => output::memory::view(&seen),
            (false, false) => format!("{clear}{}", output::memory::view(&seen)),
        };
        if !output::is_read(&text) || args.once {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(LOOK).await;
    }
}
