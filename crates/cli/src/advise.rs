//! From a wish to a plan: an engine's flags are turned step by step until the planner says that it fits. What fits is
//! advised, or brought into force where berth may.

use std::path::Path;

use berth_control::Journal;
use berth_control::clock::now_ms;
use berth_control::journal::{Advice, Asked};
use berth_core::adjust::law::can_do_without;
use berth_core::adjust::{Adjustment, Direction, Mode, PACE_S, Wish, knob};
use berth_core::inventory::InstanceId;
use berth_core::plan::Change;
use berth_core::reconcile::Phase;
use berth_core::report::PlanVerdict;
use berth_core::watch::Look;
use berth_core::{Digest, Plan, Spec};

use crate::args::PlanArgs;
use crate::failure::Failure;
use crate::prepare;

/// Steps that are tried where a deployment has to give room.
const MOST_STEPS: u32 = 10;
/// Steps that a neighbour may be asked for.
const MOST_GIVEN: u32 = 3;

/// What came of a wish.
pub(crate) enum Came {
    /// A plan that waits for `berth apply --advised`.
    Advised(Advice),
    /// A plan that is in force.
    Applied(Advice),
    /// Nothing, and why.
    Nothing(String),
}

/// Answers a wish; `look` is what it came from.
pub(crate) fn answer(state: &Path, wish: &Wish, look: &Look) -> Result<Came, Failure> {
    let dir = prepare::state_dir(state)?;
    let mut journal = Journal::open(&dir.journal())?;
    let Some(current) = journal.current()?.map(|journalled| journalled.plan) else {
        return Ok(Came::Nothing("nothing is applied".to_owned()));
    };
    let Some(asked) = journal.asked()? else {
        let why = "the spec of the plan in force isn't known: `berth apply` it once more";
        return Ok(Came::Nothing(why.to_owned()));
    };
    let args = PlanArgs { file: asked.file.clone(), strategy: asked.strategy.clone(), json: false };
    if !journal.rollbacks()?.is_empty() {
        let why =
            "a change went back: `berth status` says why, and the next `berth apply` settles it";
        return Ok(Came::Nothing(why.to_owned()));
    }
    let found = first_that_fits(state, &args, &journal, &current, wish)?;
    // After planning: it must not have taken up what nobody has applied.
    if text(&args.file)? != asked.text {
        let file = args.file.display();
        let why =
            format!("{file} has changed since it was applied: apply it, and berth goes by it");
        return Ok(Came::Nothing(why));
    }
    let Some((changes, plan)) = found else {
        return Ok(Came::Nothing(
            "no change of its flags that is allowed fits where its instances are".to_owned(),
        ));
    };
    if plan.parent != Some(current.digest()) {
        return Ok(Came::Nothing("another plan came into force meanwhile".to_owned()));
    }
    let digest = Some(plan.digest());
    let mut advice = Advice { changes, plan, at_ms: now_ms(), digest };
    let entries = journal.instances()?;
    let serves =
        |id: &InstanceId| entries.get(id).is_some_and(|entry| entry.record.phase == Phase::Ready);
    let can_do = |one: &Adjustment| can_do_without(&current, &one.deployment, look, serves);
    let is_free = advice.changes.iter().all(can_do);
    if current.adjust.mode == Mode::Auto && is_free {
        advice.plan.pace_s = PACE_S;
        journal.commit(&advice.plan, None, now_ms())?;
        journal.set_asked(&asked)?;
        return Ok(Came::Applied(advice));
    }
    journal.set_advice(&advice)?;
    Ok(Came::Advised(advice))
}

/// Which spec a plan is made from.
pub(crate) fn asked(args: &PlanArgs) -> Result<Asked, Failure> {
    let file = std::path::absolute(&args.file).map_err(Failure::new)?;
    Ok(Asked { text: text(&file)?, file, strategy: args.strategy.clone() })
}

fn text(file: &Path) -> Result<Digest, Failure> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        let what = format!("the spec {} can't be read", file.display());
        Failure::bad_spec(anyhow::Error::new(error).context(what))
    })?;
    Ok(Digest::of(&text))
}

/// The first change that a wish allows and the planner finds room for, with its plan.
fn first_that_fits(
    state: &Path,
    args: &PlanArgs,
    journal: &Journal,
    current: &Plan,
    wish: &Wish,
) -> Result<Option<(Vec<Adjustment>, Plan)>, Failure> {
    let written = prepare::written(state, args)?;
    for turns in turns(wish) {
        let Some(changes) = changes(&written, current, wish, &turns) else { continue };
        let is_other =
            |one: &&Adjustment| changes.iter().all(|change| change.deployment != one.deployment);
        let kept = current.adjustments.iter().filter(is_other).cloned();
        let all: Vec<Adjustment> = kept.chain(changes.iter().cloned()).collect();
        let planned = prepare::plan_adjusted(state, args, None, journal, &all)?;
        if planned.report.verdict == PlanVerdict::Fits
            && changes_only(&planned.plan, current, &changes)
        {
            let gateway = current.gateway.clone();
            return Ok(Some((changes, Plan { gateway, ..planned.plan })));
        }
    }
    Ok(None)
}

/// Whether nothing else restarts than what is adjusted, and nothing comes, goes or moves.
fn changes_only(plan: &Plan, current: &Plan, changes: &[Adjustment]) -> bool {
    let is_adjusted = |id: &InstanceId| {
        let deployment = plan.instance(id).map(|one| one.deployment.as_str());
        changes.iter().any(|one| Some(one.deployment.as_str()) == deployment)
    };
    plan.changes_from(Some(current)).iter().all(|(id, change)| match change {
        Change::Stay => true,
        Change::Restart => is_adjusted(id),
        Change::Start | Change::Stop => false,
    })
}

/// A deployment, which way, and how many steps.
type Turn<'a> = (&'a str, Direction, u32);

/// What may be tried, the least change first.
fn turns(wish: &Wish) -> Vec<Vec<Turn<'_>>> {
    let own = wish.deployment.as_str();
    match wish.direction {
        Direction::Less => {
            (1..=MOST_STEPS).map(|steps| vec![(own, Direction::Less, steps)]).collect()
        }
        Direction::More => {
            let alone = vec![(own, Direction::More, 1)];
            let given = (1..=MOST_GIVEN).flat_map(|steps| {
                wish.givers.iter().map(move |giver| {
                    vec![(own, Direction::More, 1), (giver.as_str(), Direction::Less, steps)]
                })
            });
            std::iter::once(alone).chain(given).collect()
        }
    }
}

fn changes(
    written: &Spec,
    current: &Plan,
    wish: &Wish,
    turns: &[Turn<'_>],
) -> Option<Vec<Adjustment>> {
    let now = written.clone().adjusted(&current.adjustments);
    let change = |(name, direction, steps): &Turn<'_>| {
        let of = |spec: &Spec| spec.deployments.iter().find(|one| one.name == *name).cloned();
        let (before, now) = (of(written)?, of(&now)?);
        let flags = knob::turn(&before, &now.flags, *direction, *steps, &written.adjust)?;
        let why = match *name == wish.deployment {
            true => wish.why.clone(),
            false => format!("{} needs the room", wish.deployment),
        };
        Some(Adjustment { deployment: (*name).to_owned(), flags, why, at_ms: now_ms() })
    };
    turns.iter().map(change).collect()
}
