//! What every command does first: read the spec, find the models, look at the machine, plan.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;

use berth_cluster::local::{self, StateDir};
use berth_control::Journal;
use berth_control::ray::{Processes, observe_processes};
use berth_core::adjust::Adjustment;
use berth_core::memory::vllm::{Calibration, Engine};
use berth_core::model::known;
use berth_core::perf::Speeds;
use berth_core::placement::{self, Found, LocatedModel, Planned};
use berth_core::spec::error::nearest;
use berth_core::spec::{
    Backend, Deployment, EngineKind, GatewaySpec, RaySpec, Spec, Strategy, unknown_domain,
};
use berth_core::strategy::{Cluster, compare};
use berth_core::{Inventory, Plan};
use berth_engines::binary;
use berth_engines::source::{self, ConfigSourceError, Hub};

use crate::args::PlanArgs;
use crate::cmd::calibrate;
use crate::failure::Failure;
use crate::output;

/// Opens the state folder.
pub(crate) fn state_dir(path: &Path) -> Result<StateDir, Failure> {
    StateDir::open(path).map_err(|error| {
        let text = format!("the state folder {} can't be used", path.display());
        Failure::new(anyhow::Error::new(error).context(text)).hint("--state names another one")
    })
}

/// Looks at where the plan in force runs: at this machine, or at a Ray cluster.
pub(crate) fn inventory(journal: &Journal) -> Result<Inventory, Failure> {
    let current = journal.current()?.map(|journalled| journalled.plan);
    match current.as_ref().and_then(|plan| plan.ray.as_ref()) {
        Some(ray) => on_ray(ray, journal, current.as_ref()),
        None => local::observe(&journal.state_id()?).map_err(Failure::new),
    }
}

/// The same as it is seen, one's own instances included, with the processes of those.
pub(crate) fn with_processes(
    journal: &Journal,
    known: &mut Processes,
) -> Result<Inventory, Failure> {
    let (state_id, current) = (journal.state_id()?, journal.current()?);
    match current.as_ref().and_then(|journalled| journalled.plan.ray.as_ref()) {
        Some(ray) => Ok(observe_processes(ray, &state_id, known)?),
        None => local::observe(&state_id).map_err(Failure::new),
    }
}

/// Looks at a Ray cluster; what one's own instances hold is none of others'.
fn on_ray(ray: &RaySpec, journal: &Journal, current: Option<&Plan>) -> Result<Inventory, Failure> {
    let (inventory, _) = berth_control::ray::observe(ray, &journal.state_id()?)?;
    Ok(match current {
        Some(current) => inventory.without(&berth_control::watch::as_it_runs(current, journal)?),
        None => inventory,
    })
}

/// Reads the spec.
pub(crate) fn spec(file: &Path) -> Result<Spec, Failure> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        let what = format!("the spec {} can't be read", file.display());
        let failure = Failure::bad_spec(anyhow::Error::new(error).context(what));
        failure.hint("name it with -f; examples/two-models.toml is one to start from")
    })?;
    Ok(Spec::parse(&file.display().to_string(), &text)?)
}

/// The spec with a strategy laid over it.
pub(crate) fn with_strategy(spec: Spec, strategy: Option<&str>) -> Result<Spec, Failure> {
    let Some(name) = strategy else { return Ok(spec) };
    strategy_of(&spec.strategies, name).map(|found| found.spec.clone())
}

/// The strategy of a name.
pub(crate) fn strategy_of<'a>(
    strategies: &'a [Strategy],
    name: &str,
) -> Result<&'a Strategy, Failure> {
    if let Some(found) = strategies.iter().find(|one| one.name == name) {
        return Ok(found);
    }
    let names: Vec<&str> = strategies.iter().map(|one| one.name.as_str()).collect();
    let hint = match nearest(name, names.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if names.is_empty() => "add a section [strategies.NAME] to the spec".to_owned(),
        None => format!("there are: {}", names.join(", ")),
    };
    Err(Failure::bad_spec(anyhow::anyhow!("the spec has no strategy `{name}`")).hint(hint))
}

/// The folder that a spec's relative paths start at.
pub(crate) fn base(file: &Path) -> &Path {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Plans a spec on this machine, beside what runs; `listen` takes the place of the spec's address. Adjustments that are
/// in force stay, as long as the spec says what it said.
pub(crate) fn plan(
    state: &Path,
    args: &PlanArgs,
    listen: Option<SocketAddr>,
    journal: &Journal,
) -> Result<Planned, Failure> {
    plan_adjusted(state, args, listen, journal, &adjustments(journal)?)
}

/// The adjustments in force, without those that could not start.
fn adjustments(journal: &Journal) -> Result<Vec<Adjustment>, Failure> {
    let Some(current) = journal.current()?.map(|journalled| journalled.plan) else {
        return Ok(Vec::new());
    };
    let rollbacks = journal.rollbacks()?;
    let went_back: Vec<&str> = rollbacks.values().map(|one| one.deployment.as_str()).collect();
    let is_in_force = |one: &Adjustment| !went_back.contains(&one.deployment.as_str());
    Ok(current.adjustments.into_iter().filter(is_in_force).collect())
}

/// The spec as it is written, with the strategy that is asked for.
pub(crate) fn written(state: &Path, args: &PlanArgs) -> Result<Spec, Failure> {
    chosen(state, args, spec(&args.file)?)
}

/// Plans a spec with adjustments laid over it.
pub(crate) fn plan_adjusted(
    state: &Path,
    args: &PlanArgs,
    listen: Option<SocketAddr>,
    journal: &Journal,
    adjustments: &[Adjustment],
) -> Result<Planned, Failure> {
    let mut spec = written(state, args)?.adjusted(adjustments);
    let current = journal.current()?.map(|journalled| journalled.plan);
    // A rehearsal's state is for its emulated machines, whatever the spec says.
    let rehearsal =
        current.as_ref().and_then(|plan| plan.ray.as_ref()).filter(|ray| ray.is_emulated);
    if let Some(ray) = rehearsal {
        (spec.cluster.backend, spec.cluster.ray) = (Backend::Ray, ray.clone());
    }
    let is_ray = spec.cluster.backend == Backend::Ray;
    if !spec.cluster.nodes.is_empty() && !is_ray {
        return Err(Failure::bad_spec(anyhow::anyhow!(
            "the machines of this spec are planned for; nothing can be started on them from here"
        ))
        .hint(
            "`berth plan` shows what would run on them; without [[cluster.nodes]] it is this machine, with \
             backend = \"ray\" a Ray cluster's",
        ));
    }
    let can_start = |one: &&Deployment| match one.engine {
        EngineKind::LlamaServer => true,
        EngineKind::Vllm | EngineKind::Ollama => is_ray,
    };
    if let Some(one) = spec.deployments.iter().find(|one| !can_start(one)) {
        let text = format!(
            "{} can't be started on this machine alone, which {} asks for",
            one.engine.as_str(),
            one.name
        );
        return Err(Failure::bad_spec(anyhow::anyhow!(text)).hint(
            "on a Ray cluster it can: backend = \"ray\" in [cluster] (docs/ray.md); on machines that are written \
             down as [[cluster.nodes]] it can be planned",
        ));
    }
    if let Some(listen) = listen {
        if !listen.ip().is_loopback() {
            return Err(Failure::bad_spec(anyhow::anyhow!("--listen {listen} is not on loopback"))
                .hint("set listen and allow_remote in [gateway] of the spec"));
        }
        spec.gateway.listen = listen;
    }
    let base = base(&args.file);
    files_of_the_gateway(&mut spec.gateway, base)?;
    if is_ray {
        return plan_on_ray(state, args, &spec, journal);
    }
    let folder = std::path::absolute(base).map_err(Failure::new)?.to_string_lossy().into_owned();
    let binaries = binaries(&spec, base)?;
    let models = models(&spec.deployments, base)?;
    let found = Found { folder, binaries, models };
    let inventory = inventory(journal)?;
    refuse_to_move(current.as_ref(), None)?;
    let mut planned =
        placement::plan(&spec, &inventory, &found, current.as_ref()).map_err(Failure::bad_spec)?;
    planned.plan.strategy.clone_from(&args.strategy);
    check(&planned, &spec, &inventory)?;
    Ok(planned)
}

/// The gateway's files, from wherever berth is started.
pub(crate) fn files_of_the_gateway(gateway: &mut GatewaySpec, base: &Path) -> Result<(), Failure> {
    let tls = gateway.tls.iter_mut().flat_map(|tls| [&mut tls.certificate, &mut tls.key]);
    for file in gateway.keys.iter_mut().chain(tls) {
        let path = std::path::absolute(base.join(&*file)).map_err(Failure::new)?;
        *file = path.to_string_lossy().into_owned();
    }
    Ok(())
}

/// The spec with the strategy that is asked for: one of its own, or on machines that are written down one that
/// berth finds.
fn chosen(state: &Path, args: &PlanArgs, spec: Spec) -> Result<Spec, Failure> {
    let own = |name: &str| spec.strategies.iter().any(|one| one.name == name);
    match args.strategy.as_deref() {
        Some(name) if !own(name) && !spec.cluster.nodes.is_empty() => {
            Ok(Planning::new(state, &args.file, spec)?.strategy(name)?.spec)
        }
        name => with_strategy(spec, name),
    }
}

/// vLLM knows repositories and folders; a name of berth's own is none of these.
fn refuse_short_names(spec: &Spec) -> Result<(), Failure> {
    for one in spec.deployments.iter().filter(|one| one.engine == EngineKind::Vllm) {
        let source = one.source.to_string();
        let Some(known) = known::find(&source).filter(|known| known.name == source) else {
            continue;
        };
        let error = anyhow::anyhow!(
            "{}: vLLM can't load `{source}`: only berth knows it by that name",
            one.name
        );
        let repositories = known.repos.join("\" or \"");
        return Err(Failure::bad_spec(error).hint(format!(
            "write source = \"{repositories}\", or a folder that every machine has"
        )));
    }
    Ok(())
}

/// Plans a spec on the machines of its Ray cluster. Programs are where the machines have them, which isn't
/// seen from here.
fn plan_on_ray(
    state: &Path,
    args: &PlanArgs,
    spec: &Spec,
    journal: &Journal,
) -> Result<Planned, Failure> {
    if !spec.cluster.ray.is_emulated {
        refuse_short_names(spec)?;
    }
    let models = models(&spec.deployments, base(&args.file))?;
    let found = on_machines(models);
    let current = journal.current()?.map(|journalled| journalled.plan);
    refuse_to_move(current.as_ref(), Some(&spec.cluster.ray))?;
    let inventory = on_ray(&spec.cluster.ray, journal, current.as_ref())?;
    let mut names = BTreeSet::new();
    if let Some(twice) = inventory.nodes.iter().find(|node| !names.insert(&node.name)) {
        let error = anyhow::anyhow!("two machines of the cluster are called {}", twice.name);
        let hint = "set name_label in [cluster.ray] to a label that tells them apart; `berth doctor` says more";
        return Err(Failure::bad_spec(error).hint(hint));
    }
    if let Some(message) = unknown_domain(&spec.deployments, &inventory.nodes) {
        let hint = "give the node the label (`ray start --labels`), or leave the rule out";
        return Err(Failure::bad_spec(anyhow::anyhow!(message)).hint(hint));
    }
    let calibration = calibrate::with_builtin(state)?;
    let engine = Engine { calibration: &calibration, ..Engine::of_version(&spec.vllm_version) };
    let mut planned = placement::plan_cluster(spec, &inventory, &found, &engine, current.as_ref())
        .map_err(Failure::bad_spec)?;
    planned.plan.strategy.clone_from(&args.strategy);
    check(&planned, spec, &inventory)?;
    Ok(planned)
}

/// Models for machines whose disks aren't seen from here: engines start in the root folder, and programs are
/// looked for there.
fn on_machines(models: BTreeMap<String, LocatedModel>) -> Found {
    Found { folder: "/".to_owned(), binaries: BTreeMap::new(), models }
}

/// What runs here under a plan can't be looked after under a plan for somewhere else.
pub(crate) fn refuse_to_move(current: Option<&Plan>, ray: Option<&RaySpec>) -> Result<(), Failure> {
    let place = |ray: Option<&RaySpec>| {
        ray.map_or("this machine".to_owned(), |ray| format!("the Ray cluster at {}", ray.address))
    };
    let Some(current) = current.filter(|plan| !plan.instances.is_empty()) else { return Ok(()) };
    let (before, now) = (place(current.ray.as_ref()), place(ray));
    if before == now {
        return Ok(());
    }
    let error =
        anyhow::anyhow!("this state folder has a plan for {before}, and this one is for {now}");
    Err(Failure::new(error).hint("`berth down` first, or name another folder with --state"))
}

/// A spec for machines that are planned for, with all that planning needs.
pub(crate) struct Planning {
    pub(crate) spec: Spec,
    found: Found,
    calibration: Calibration,
    speeds: Speeds,
}

impl Planning {
    pub(crate) fn new(state: &Path, file: &Path, spec: Spec) -> Result<Self, Failure> {
        if spec.cluster.nodes.is_empty() {
            let error = anyhow::anyhow!("the spec has no machines to plan for");
            return Err(Failure::bad_spec(error).hint(
                "add some, as in\n    [[cluster.nodes]]\n    names = \"node-[0-15]\"\n    \
                 gpu = \"A10\"\n    gpus = 4",
            ));
        }
        let mut deployments = spec.deployments.clone();
        deployments.extend(spec.running.iter().map(|running| running.deployment.clone()));
        deployments.extend(spec.strategies.iter().flat_map(|one| one.spec.deployments.clone()));
        let models = models(&deployments, base(file))?;
        let calibration = calibrate::with_builtin(state)?;
        let speeds = calibrate::speeds(state)?;
        Ok(Self { spec, found: on_machines(models), calibration, speeds })
    }

    /// The plan of a strategy, for machines as they are written down.
    pub(crate) fn plan(&self, spec: &Spec) -> Result<(Planned, Inventory), Failure> {
        let inventory = Inventory { nodes: spec.cluster.nodes.clone(), ..Inventory::default() };
        Ok((self.plan_on(spec, &inventory)?, inventory))
    }

    /// The same for machines that were looked at.
    pub(crate) fn plan_on(&self, spec: &Spec, inventory: &Inventory) -> Result<Planned, Failure> {
        let engine = self.cluster().engine;
        placement::plan_cluster(spec, inventory, &self.found, &engine, None)
            .map_err(Failure::bad_spec)
    }

    /// The models that were found.
    pub(crate) fn models(&self) -> impl Iterator<Item = &LocatedModel> {
        self.found.models.values()
    }

    /// What strategies are tried on.
    pub(crate) fn cluster(&self) -> Cluster<'_> {
        let version = &self.spec.vllm_version;
        let engine = Engine { calibration: &self.calibration, ..Engine::of_version(version) };
        Cluster { nodes: &[], found: &self.found, engine, speeds: &self.speeds }
    }

    /// The spec's own strategy of a name, or one that is found.
    pub(crate) fn strategy(&self, name: &str) -> Result<Strategy, Failure> {
        // The spec's own need no search.
        if let Some(own) = self.spec.strategies.iter().find(|one| one.name == name) {
            return Ok(own.clone());
        }
        strategy_of(&compare::all(&self.spec, &self.cluster()), name).cloned()
    }

    /// Adds the models that a found strategy says only the names of.
    pub(crate) fn assume(&mut self, spec: &Spec) {
        self.found.assume(&spec.deployments);
    }
}

/// Every plan that says it fits passes the independent checker first.
fn check(planned: &Planned, spec: &Spec, inventory: &Inventory) -> Result<(), Failure> {
    if planned.report.verdict == berth_core::report::PlanVerdict::Impossible {
        return Ok(());
    }
    let violations = placement::check(&planned.plan, spec, inventory);
    if violations.is_empty() {
        return Ok(());
    }
    let texts: Vec<String> = violations.iter().map(ToString::to_string).collect();
    let error = anyhow::anyhow!("the checker refuses this plan: {}", texts.join("; "));
    Err(Failure::new(error).hint("this is a bug in berth; nothing was changed"))
}

pub(crate) fn binaries(spec: &Spec, base: &Path) -> Result<BTreeMap<EngineKind, String>, Failure> {
    let is_used = |engine: &EngineKind| spec.deployments.iter().any(|one| one.engine == *engine);
    let find = |(engine, name): (&EngineKind, &String)| {
        let path = binary::find(name, base)?;
        Ok((*engine, path.to_string_lossy().into_owned()))
    };
    spec.binaries.iter().filter(|(engine, _)| is_used(engine)).map(find).collect()
}

/// Finds and reads each distinct model once.
fn models(
    deployments: &[Deployment],
    base: &Path,
) -> Result<BTreeMap<String, LocatedModel>, Failure> {
    let hub = Hub::from_env();
    let mut models = BTreeMap::new();
    for deployment in deployments {
        if let Entry::Vacant(place) = models.entry(deployment.weights()) {
            place.insert(model(deployment, base, &hub)?);
        }
    }
    Ok(models)
}

fn model(deployment: &Deployment, base: &Path, hub: &Hub) -> Result<LocatedModel, Failure> {
    if let Some(assumed) = placement::facts::assumed(deployment) {
        return Ok(assumed);
    }
    if deployment.engine == EngineKind::Vllm {
        return Ok(transformer(deployment, base, hub)?);
    }
    let mut progress = |got: u64, all: Option<u64>| {
        let of = all.map_or_else(String::new, |all| format!(" of {}", berth_core::Bytes(all)));
        output::progress(&format!("{}: {}{of}", deployment.name, berth_core::Bytes(got)));
    };
    let located = source::locate(&deployment.source, base, hub, &mut progress);
    output::end_progress();
    Ok(located?)
}

/// A folder beside the spec comes before a name that berth or the hub knows.
fn transformer(
    deployment: &Deployment,
    base: &Path,
    hub: &Hub,
) -> Result<LocatedModel, ConfigSourceError> {
    let name = deployment.source.to_string();
    let folder = base.join(&name);
    let name = match folder.join("config.json").exists() {
        true => folder.to_string_lossy().into_owned(),
        false => name,
    };
    let found = source::transformer(&name, hub)?;
    if let Some(warning) = &found.warning {
        output::talk(&format!("warning: {}: {warning}", found.name));
    }
    Ok(LocatedModel::transformer(name, found.transformer))
}

/// The plan under which nothing runs.
pub(crate) fn nothing(journal: &Journal) -> Result<Option<Plan>, Failure> {
    let current = journal.current()?.map(|journalled| journalled.plan);
    Ok(current.map(|current| Plan {
        ray: current.ray.clone(),
        ..Plan::nothing(current.gateway.clone(), Some(current.digest()))
    }))
}
