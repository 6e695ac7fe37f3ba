//! `berth top`: memory as bars, again and again. It looks by itself, with or without a controller.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use berth_control::{Journal, watch};
use berth_core::plan::Plan;
use berth_core::spec::GatewaySpec;
use berth_core::watch::{Look, Watch};

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
        let mut known = Watch::default();
        loop {
            let plan = journal.current()?.map(|journalled| journalled.plan);
            let plan = plan.unwrap_or_else(|| Plan::nothing(GatewaySpec::default(), None));
            let look = match &plan.ray {
                Some(_) => Look::of_inventory(
                    &prepare::inventory(&journal)?,
                    berth_control::clock::now_ms(),
                ),
                None => watch::look(&state_id, &plan).await,
            };
            known.step(&plan, look);
            let Some(look) = known.last() else { continue };
            let seen = Seen::new(Some(&plan), look, known.alarms());
            match (args.json, args.once) {
                (true, _) => output::json_line(&seen)?,
                (false, true) => output::data(&output::memory::view(&seen)),
                (false, false) => output::data(&format!("{CLEAR}{}", output::memory::view(&seen))),
            }
            if args.once {
                return Ok(ExitCode::SUCCESS);
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = lifecycle::signal() => return Ok(ExitCode::SUCCESS),
            }
        }
    })
}
