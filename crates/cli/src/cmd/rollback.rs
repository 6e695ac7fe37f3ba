//! `berth rollback`: brings an earlier plan into force again, as it was.

use std::path::Path;
use std::process::ExitCode;

use berth_control::Journal;
use berth_control::clock::now_ms;
use berth_control::journal::Asked;
use berth_core::adjust::law::FREEZE_MS;
use berth_core::adjust::{Adjustment, Freeze};
use berth_core::{Bytes, Digest, Inventory, Plan};

use super::apply;
use crate::args::RollbackArgs;
use crate::failure::Failure;
use crate::prepare;

pub(crate) fn run(state: &Path, args: &RollbackArgs) -> Result<ExitCode, Failure> {
    let dir = prepare::state_dir(state)?;
    let mut journal = Journal::open(&dir.journal())?;
    if journal.current()?.is_none() {
        return Err(Failure::new(anyhow::anyhow!("nothing was ever applied here"))
            .hint("`berth apply` brings a plan into force"));
    }
    let strategy = args.strategy.as_deref();
    let Some(earlier) = journal.earlier(strategy)? else {
        let what = strategy.map_or("no earlier plan".to_owned(), |name| {
            format!("no earlier plan of the strategy `{name}`")
        });
        return Err(Failure::new(anyhow::anyhow!("there is {what}"))
            .hint("`berth apply --strategy NAME` plans and applies one anew"));
    };
    bring_back(&mut journal, earlier)?;
    apply::finish(&dir, &journal, args.json)
}

/// Brings an earlier plan into force, if it still fits.
pub(crate) fn bring_back(journal: &mut Journal, earlier: Plan) -> Result<(), Failure> {
    if let Some(message) = taken_since(&earlier, &prepare::inventory(journal)?) {
        let error = anyhow::anyhow!("the earlier plan does not fit any more: {message}");
        return Err(Failure::does_not_fit(error).hint("free it, or plan anew with `berth apply`"));
    }
    let current = journal.current()?.map(|journalled| journalled.plan);
    prepare::refuse_to_move(current.as_ref(), earlier.ray.as_ref())?;
    let asked = journal.asked()?;
    let parent = current.as_ref().map(Plan::digest);
    let plan = Plan { parent, pace_s: 0, ..earlier };
    let before = current.iter().flat_map(|current| &current.adjustments);
    freeze(journal, before.filter(|one| !plan.adjustments.contains(one)))?;
    journal.commit(&plan, None, now_ms())?;
    // The file says something else by now, as far as is known: nothing is adjusted by it before it is applied again.
    let unknown = Digest::of(&"");
    let asked = asked.map(|asked| Asked { text: unknown, strategy: plan.strategy, ..asked });
    Ok(asked.map_or(Ok(()), |asked| journal.set_asked(&asked))?)
}

/// What was adjusted or advised, and somebody doesn't want, is left alone for a while.
pub(crate) fn freeze<'a>(
    journal: &Journal,
    unwanted: impl Iterator<Item = &'a Adjustment>,
) -> Result<(), Failure> {
    let mut frozen = journal.frozen()?;
    let until_ms = now_ms() + FREEZE_MS;
    frozen.extend(unwanted.map(|one| Freeze { deployment: one.deployment.clone(), until_ms }));
    Ok(journal.set_frozen(&frozen)?)
}

/// What of the plan somebody else has taken since: a port, or memory that it counts on.
pub(super) fn taken_since(plan: &Plan, inventory: &Inventory) -> Option<String> {
    let ports = inventory.nodes.iter().flat_map(|node| &node.ports_taken);
    let ports: Vec<u16> = ports.copied().collect();
    if let Some(one) = plan.instances.iter().find(|one| ports.contains(&one.port)) {
        return Some(format!("port {} of {} is in use by somebody else", one.port, one.id));
    }
    plan.devices.iter().find_map(|planned| {
        let nodes = inventory.nodes.iter().filter(|node| node.name == planned.node);
        let device = nodes.flat_map(|node| &node.devices).find(|one| one.id == planned.device);
        let free = device.map_or(Bytes::ZERO, |device| device.total - device.used_by_others);
        (planned.planned > free)
            .then(|| format!("{} has {free} free, it takes {}", planned.device, planned.planned))
    })
}
