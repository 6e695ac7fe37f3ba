//! What a cluster's vLLM logs as it starts, taken into the calibration by itself: each plan after it goes by what its
//! GPUs were seen to take. What is emulated teaches nothing.

use std::path::Path;

use anyhow::Context as _;
use berth_cluster::local::StateDir;
use berth_cluster::ray::{Ray, serve, token};
use berth_control::{Event, EventKind, Journal, ray};
use berth_core::emit::ray as emit;
use berth_core::inventory::InstanceId;
use berth_core::memory::vllm::calibration::Entry;
use berth_core::memory::vllm::{self, Gpu, flags, learning};
use berth_core::plan::PlannedInstance;
use berth_core::spec::{EngineKind, RaySpec};
use berth_engines::source::{Hub, transformer};

use crate::cmd::calibrate;
use crate::output;

/// Flags of a start that say where it listens and what it is called.
const WHERE: [&str; 3] = ["--served-model-name", "--host", "--port"];

/// Learns from the starts that events tell of, one after the other.
pub(crate) struct Learner(std::sync::mpsc::Sender<InstanceId>);

impl Learner {
    /// One for a state folder.
    pub(crate) fn new(dir: StateDir) -> Self {
        let (starts, told) = std::sync::mpsc::channel::<InstanceId>();
        std::thread::spawn(move || {
            for id in told {
                match lesson(&dir, &id) {
                    Ok(Some(entry)) => keep(dir.root(), &id, entry),
                    Ok(None) => {}
                    Err(error) => {
                        tracing::debug!(%id, error = %format!("{error:#}"), "nothing learnt")
                    }
                }
            }
        });
        Self(starts)
    }

    /// Takes an event in.
    pub(crate) fn tell(&self, event: &Event) {
        if matches!(event.kind, EventKind::Ready { .. } | EventKind::Adopted) {
            drop(self.0.send(event.instance.clone()));
        }
    }
}

/// Takes a lesson into the calibration.
fn keep(state: &Path, id: &InstanceId, entry: Entry) {
    match calibrate::keep(state, entry) {
        Ok(0) => {}
        Ok(count) => output::talk(&format!(
            "{id}: its log has taught {count} figures of its GPUs; the next plan goes by them"
        )),
        Err(failure) => {
            failure.report();
        }
    }
}

/// What an instance's log teaches; none where it says what is known.
fn lesson(dir: &StateDir, id: &InstanceId) -> anyhow::Result<Option<Entry>> {
    let journal = Journal::open(&dir.journal())?;
    let Some(plan) = journal.current()?.map(|current| current.plan) else { return Ok(None) };
    let Some(planned) = plan.instance(id).filter(|one| one.engine == EngineKind::Vllm) else {
        return Ok(None);
    };
    // vLLM counts what neighbours take meanwhile as its own.
    let shares = |other: &PlannedInstance| {
        other.id != planned.id
            && other.node == planned.node
            && planned.shares.iter().any(|share| other.uses(&share.device))
    };
    if plan.instances.iter().any(shares) {
        return Ok(None);
    }
    // With sleep mode vLLM miscounts what isn't PyTorch's.
    let Some(spec) = plan.ray.as_ref().filter(|ray| !ray.is_emulated && planned.sleep.is_none())
    else {
        return Ok(None);
    };
    let (log, gpu) = start_of(spec, &journal.state_id()?, planned)?;
    let start = berth_engines::vllm::log::read(&log);
    let version = start.engine_version.clone().context("its log doesn't say vLLM's version")?;
    let source = planned.args.get(1).context("it has no model")?;
    let model = transformer(source, &Hub::from_env())?.transformer;
    let args = flags::from_words(&own_flags(&planned.args))?;
    let engine = vllm::Engine::of_version(&version);
    let ranks = planned.shares.len();
    let fit = vllm::fit(&model, &args, &vec![gpu; ranks], &engine);
    let source = format!("the log of {id} on {}, vLLM {version}", planned.node);
    let lesson = learning::learn(&start, &fit, &model, &gpu, source);
    match lesson.mismatch {
        Some(mismatch) => anyhow::bail!(mismatch),
        None => Ok(lesson.entry),
    }
}

/// An instance's log of its start, and its GPU.
fn start_of(
    spec: &RaySpec,
    state_id: &str,
    planned: &PlannedInstance,
) -> anyhow::Result<(String, Gpu)> {
    let (inventory, serving) = ray::observe(spec, state_id)?;
    let node = inventory.nodes.iter().find(|node| node.name == planned.node);
    let first = planned.shares.first().context("it has no GPU")?;
    let device = node.and_then(|node| node.devices.iter().find(|one| one.id == first.device));
    let gpu = device.and_then(Gpu::of_device).context("its GPU's kind isn't known")?;
    let app = serving.applications.get(&emit::name(&planned.id)).context("it is gone")?;
    let started = app.config.as_ref().and_then(emit::identity).map(|(_, _, digest)| digest);
    if started != Some(planned.config()) {
        anyhow::bail!("it runs otherwise than it is planned");
    }
    let replica = app.replica().context("it has no replica")?;
    let ray = Ray::new(&spec.address, token::read(spec)?);
    let log = serve::log(&ray, &planned.id.0, replica).context("Ray doesn't give its log")?;
    Ok((log, gpu))
}

/// The words that memory depends on.
pub(crate) fn own_flags(args: &[String]) -> Vec<String> {
    let mut flags = Vec::new();
    let mut words = args.iter().skip(2);
    while let Some(word) = words.next() {
        match WHERE.contains(&word.as_str()) {
            true => drop(words.next()),
            false => flags.push(word.clone()),
        }
    }
    flags
}
