//! `berth up --emulate`: a spec's machines and engines, emulated; all else as it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use berth_cluster::local::{StateDir, lock};
use berth_cluster::ray::package;
use berth_control::Journal;
use berth_control::clock::now_ms;
use berth_core::emit::ray as emit;
use berth_core::placement::Facts;
use berth_core::report::PlanVerdict;
use berth_core::spec::{Backend, RaySpec, Spec};
use berth_emulator::ray::{Cluster, NAME_LABEL, Setup};

use super::{plan, serve, up};
use crate::args::UpArgs;
use crate::failure::Failure;
use crate::prepare::{self, Planning};
use crate::{advise, lifecycle, output};

pub(crate) fn run(state: &Path, args: &UpArgs) -> Result<ExitCode, Failure> {
    // What is real keeps its own folder, and every rehearsal begins anew.
    let state: PathBuf = state.join("emulated");
    if lock::is_held(&prepare::state_dir(&state)?.controller_lock()).unwrap_or(true) {
        return Err(serve::taken());
    }
    std::fs::remove_dir_all(&state).map_err(Failure::new)?;
    let dir = prepare::state_dir(&state)?;
    let spec = prepare::spec(&args.plan.file)?;
    let planning = Planning::new(&state, &args.plan.file, spec)?;
    let runtime = lifecycle::runtime()?;
    let setup = setup(&planning, args.speedup);
    let cluster = runtime.block_on(Cluster::start(setup)).map_err(Failure::new)?;
    let ray = RaySpec {
        address: cluster.address(),
        name_label: Some(NAME_LABEL.to_owned()),
        is_emulated: true,
        ..RaySpec::default()
    };
    let mut journal = Journal::open(&dir.journal())?;
    runtime.block_on(async { begin(&planning, &ray, &cluster, &mut journal) })?;
    let planned = prepare::plan(&state, &args.plan, args.listen, &journal)?;
    plan::show(&planned, false)?;
    if planned.report.verdict == PlanVerdict::Impossible {
        return Ok(plan::exit_code(&planned));
    }
    let before = journal.current()?.map(|journalled| journalled.plan);
    output::talk(&output::changes(&planned.plan, before.as_ref()));
    help(&cluster, &dir, &planning.spec);
    let asked = advise::asked(&args.plan)?;
    runtime.block_on(up::up(&dir, &planned, &asked, &args.dashboard))
}

fn setup(planning: &Planning, speedup: f64) -> Setup {
    let models = planning.models().filter_map(|located| match &located.facts {
        Facts::Transformer(model) => Some((located.path.clone(), (**model).clone())),
        Facts::Gguf(_) => None,
    });
    let library = planning.models().filter_map(|located| match &located.facts {
        Facts::Gguf(facts) => Some((located.path.clone(), (**facts).clone())),
        Facts::Transformer(_) => None,
    });
    Setup {
        nodes: planning.spec.cluster.nodes.clone(),
        models: models.collect::<BTreeMap<_, _>>(),
        library: library.collect::<BTreeMap<_, _>>(),
        vllm_version: planning.spec.vllm_version.clone(),
        speedup: speedup.clamp(0.01, 1e6),
    }
}

/// Has the emulated machines run what the spec says to run today, and the journal know it.
fn begin(
    planning: &Planning,
    ray: &RaySpec,
    cluster: &Cluster,
    journal: &mut Journal,
) -> Result<(), Failure> {
    let mut today: Spec = planning.spec.clone();
    (today.cluster.backend, today.cluster.ray) = (Backend::Ray, ray.clone());
    today.deployments = today.running.iter().map(|running| running.deployment.clone()).collect();
    let state_id = journal.state_id()?;
    let (inventory, _) = berth_control::ray::observe(ray, &state_id)?;
    let planned = planning.plan_on(&today, &inventory)?;
    let counted = emit::counted(&planned.plan, &BTreeMap::new());
    let module = package::uri();
    let context = emit::Context {
        inventory: &inventory,
        name_label: Some(NAME_LABEL),
        owner: &state_id,
        module: &module,
        module_version: package::VERSION,
    };
    let instances = planned.plan.instances.iter();
    let configs = instances
        .filter_map(|one| emit::application(&planned.plan, one, &counted[&one.id], &context));
    cluster.preload(&configs.collect::<Vec<_>>());
    journal.commit(&planned.plan, None, now_ms())?;
    Ok(())
}

/// What a person can do with it from another terminal.
fn help(cluster: &Cluster, dir: &StateDir, spec: &Spec) {
    let (address, state) = (cluster.address(), dir.root().display());
    let node = spec.cluster.nodes.first().map_or("NODE", |node| node.name.as_str());
    output::talk(&format!(
        "\nEVERYTHING BELOW IS EMULATED: no figure of it is a measurement. From another terminal:\n  \
         berth status --state {state}\n  \
         berth apply -f SPEC --strategy NAME --state {state}\n  \
         berth rollback --state {state}\n  \
         curl -d '{{\"alive\": false}}' {address}/emulator/nodes/{node}      # and true again\n  \
         curl -d '{{\"fault\": \"crash\"}}' http://ENGINE:PORT/emulator/fault  # or hang, slow, leak, out_of_memory"
    ));
}
