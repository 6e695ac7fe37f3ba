//! What every command does first: read the spec, find the models, look at the machine, plan.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use berth_cluster::local::{self, StateDir};
use berth_control::Journal;
use berth_core::placement::{self, Found, LocatedModel, Planned};
use berth_core::spec::{EngineKind, Spec};
use berth_core::{Inventory, Plan};
use berth_engines::binary;
use berth_engines::source::{self, Hub};

use crate::failure::Failure;
use crate::output;

/// Opens the state folder.
pub(crate) fn state_dir(path: &Path) -> Result<StateDir, Failure> {
    StateDir::open(path).map_err(|error| {
        let text = format!("the state folder {} can't be used", path.display());
        Failure::new(anyhow::Error::new(error).context(text)).hint("--state names another one")
    })
}

/// Looks at this machine.
pub(crate) fn inventory(journal: &Journal) -> Result<Inventory, Failure> {
    local::observe(&journal.state_id()?).map_err(Failure::new)
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

/// Plans a spec on this machine, beside what runs; `listen` takes the place of the spec's address.
pub(crate) fn plan(
    file: &Path,
    listen: Option<SocketAddr>,
    journal: &Journal,
) -> Result<Planned, Failure> {
    let mut spec = spec(file)?;
    if let Some(listen) = listen {
        if !listen.ip().is_loopback() {
            return Err(Failure::bad_spec(anyhow::anyhow!("--listen {listen} is not on loopback"))
                .hint("set listen and allow_remote in [gateway] of the spec"));
        }
        spec.gateway.listen = listen;
    }
    let base = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    let base = base.unwrap_or(Path::new("."));
    let folder = std::path::absolute(base).map_err(Failure::new)?.to_string_lossy().into_owned();
    let binaries = binaries(&spec, base)?;
    let models = models(&spec, base)?;
    let found = Found { folder, binaries, models };
    let inventory = inventory(journal)?;
    let current = journal.current()?.map(|journalled| journalled.plan);
    let planned =
        placement::plan(&spec, &inventory, &found, current.as_ref()).map_err(Failure::bad_spec)?;
    check(&planned, &spec, &inventory)?;
    Ok(planned)
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

fn binaries(spec: &Spec, base: &Path) -> Result<BTreeMap<EngineKind, String>, Failure> {
    let find = |(engine, name): (&EngineKind, &String)| {
        let path = binary::find(name, base)?;
        Ok((*engine, path.to_string_lossy().into_owned()))
    };
    spec.binaries.iter().map(find).collect()
}

fn models(spec: &Spec, base: &Path) -> Result<BTreeMap<String, LocatedModel>, Failure> {
    let hub = Hub::from_env();
    let mut models = BTreeMap::new();
    for model in &spec.deployments {
        let mut progress = |got: u64, all: Option<u64>| {
            let of = all.map_or_else(String::new, |all| format!(" of {}", berth_core::Bytes(all)));
            output::progress(&format!("{}: {}{of}", model.name, berth_core::Bytes(got)));
        };
        let located = source::locate(&model.source, base, &hub, &mut progress);
        output::end_progress();
        models.insert(model.name.clone(), located?);
    }
    Ok(models)
}

/// The plan under which nothing runs.
pub(crate) fn nothing(journal: &Journal) -> Result<Option<Plan>, Failure> {
    let current = journal.current()?.map(|journalled| journalled.plan);
    Ok(current.map(|current| Plan::nothing(current.gateway.clone(), Some(current.digest()))))
}
