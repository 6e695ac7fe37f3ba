//! `berth doctor`: what is wrong before anything is tried.

use std::path::Path;
use std::process::ExitCode;

use berth_cluster::ray::config::{self, Flaw};
use berth_cluster::ray::doctor::{self, Severity};
use berth_cluster::ray::{Ray, token};
use berth_control::Journal;
use berth_core::spec::{Backend, Spec};

use crate::args::DoctorArgs;
use crate::failure::Failure;
use crate::{output, prepare};

pub(crate) fn run(state: &Path, args: &DoctorArgs) -> Result<ExitCode, Failure> {
    if let Some(file) = &args.serve_config {
        return serve_config(file);
    }
    let spec = prepare::spec(&args.file)?;
    match spec.cluster.backend {
        Backend::Ray => ray(state, &spec),
        Backend::Local => this_machine(state, &spec, &args.file),
    }
}

fn ray(state: &Path, spec: &Spec) -> Result<ExitCode, Failure> {
    let dir = prepare::state_dir(state)?;
    let state_id = Journal::open(&dir.journal())?.state_id()?;
    let ray = &spec.cluster.ray;
    let (inventory, serving) = berth_control::ray::observe(ray, &state_id)?;
    let client = Ray::new(&ray.address, token::read(ray)?);
    let seen = doctor::examine(&client, inventory, serving)?;
    let found = doctor::diagnose(&seen, &spec.deployments, ray.name_label.as_deref());
    let nodes = seen.inventory.nodes.len();
    let gpus = seen.inventory.nodes.iter().flat_map(|node| &node.devices);
    let gpus = gpus.filter(|device| device.is_gpu()).count();
    output::data(&format!(
        "Ray {} at {}: {nodes} nodes, {gpus} GPUs, {} applications",
        seen.version,
        ray.address,
        seen.serving.applications.len()
    ));
    for one in &found {
        let severity = match one.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        output::data(&format!("{severity}: {}", one.message));
        if let Some(hint) = &one.hint {
            output::data(&format!("  hint: {hint}"));
        }
    }
    Ok(outcome(found.iter().any(|one| one.severity == Severity::Error)))
}

fn outcome(is_ill: bool) -> ExitCode {
    if is_ill {
        return ExitCode::FAILURE;
    }
    output::data("nothing is in the way");
    ExitCode::SUCCESS
}

/// A Serve config, before somebody puts it.
fn serve_config(file: &Path) -> Result<ExitCode, Failure> {
    let unreadable = |error: anyhow::Error| {
        let what = format!("the Serve config {} can't be read", file.display());
        Failure::bad_spec(error.context(what))
            .hint("it is YAML or JSON, as `serve deploy` takes it")
    };
    let text = std::fs::read_to_string(file).map_err(|error| unreadable(error.into()))?;
    let config: serde_json::Value = serde_saphyr::from_str(&text)
        .map_err(|error| unreadable(anyhow::anyhow!(error.to_string())))?;
    let flaws = config::flaws(&config);
    for Flaw { at, message, hint } in &flaws {
        output::data(&format!("error: {at}: {message}\n  hint: {hint}"));
    }
    Ok(outcome(!flaws.is_empty()))
}

fn this_machine(state: &Path, spec: &Spec, file: &Path) -> Result<ExitCode, Failure> {
    let dir = prepare::state_dir(state)?;
    let journal = Journal::open(&dir.journal())?;
    let inventory = prepare::inventory(&journal)?;
    let binaries = prepare::binaries(spec, prepare::base(file))?;
    for (engine, path) in &binaries {
        output::data(&format!("{}: {path}", engine.as_str()));
    }
    for device in inventory.nodes.iter().flat_map(|node| &node.devices) {
        let (total, others) = (device.total, device.used_by_others);
        output::data(&format!("{}: {total}, others use {others}", device.id));
    }
    inventory.notes.iter().for_each(|note| output::data(&format!("warning: {note}")));
    Ok(outcome(false))
}
