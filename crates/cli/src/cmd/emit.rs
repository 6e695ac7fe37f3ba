//! `berth plan --emit`: a plan in other programs' words.

use std::path::Path;
use std::process::ExitCode;

use berth_cluster::ray::package;
use berth_core::emit::{commands, kuberay, ray, ray_serve_llm, systemd};
use berth_core::placement::Planned;
use berth_core::report::PlanVerdict;
use berth_core::spec::Spec;
use berth_core::strategy::compare;
use berth_core::{Inventory, Plan};

use super::plan;
use crate::args::{ComparingArgs, Emit};
use crate::failure::Failure;
use crate::output;
use crate::prepare::Planning;

/// Whose applications these are, when they are put by hand.
const OWNER: &str = "by hand";
/// An image that the person has to make: Ray's, with the engines and the module.
const IMAGE: &str = "REGISTRY/ray-with-engines:2.60.0";

pub(crate) fn run(
    state: &Path,
    spec: Spec,
    how: Emit,
    args: &ComparingArgs,
) -> Result<ExitCode, Failure> {
    let mut planning = Planning::new(state, &args.plan.file, spec)?;
    let strategy = match args.plan.strategy.as_deref() {
        Some(name) => planning.strategy(name)?,
        None => compare::as_written(&planning.spec),
    };
    planning.assume(&strategy.spec);
    let (planned, inventory) = planning.plan(&strategy.spec)?;
    if planned.report.verdict == PlanVerdict::Impossible {
        let reasons = planned.report.models.iter().flat_map(|model| &model.reasons);
        output::talk(&format!("error: {} does not fit", strategy.name));
        reasons.for_each(|reason| output::talk(&format!("  {reason}")));
        output::talk("hint: `berth plan --strategy` says more, `--compare` what does fit");
        return Ok(plan::exit_code(&planned));
    }
    let text = text(&planned, &inventory, &strategy.spec, how, args.module.as_deref())?;
    output::data(text.trim_end());
    Ok(ExitCode::SUCCESS)
}

fn text(
    planned: &Planned,
    inventory: &Inventory,
    spec: &Spec,
    how: Emit,
    module: Option<&Path>,
) -> Result<String, Failure> {
    let plan = &planned.plan;
    match how {
        Emit::Vllm => Ok(commands::commands(plan, inventory)),
        Emit::Systemd => Ok(systemd::units(plan, inventory)),
        Emit::RayServeLlm => {
            let config = ray_serve_llm::config(plan, &spec.deployments).map_err(|error| {
                Failure::new(error)
                    .hint("`--emit ray` can: each engine is a process of its own there")
            })?;
            yaml(&config)
        }
        Emit::Ray => {
            let label = spec.cluster.ray.name_label.as_deref().unwrap_or(ray::NAME_LABEL);
            let starts = ray::starts(inventory, label);
            let starts: String = starts.iter().map(|line| format!("#   {line}\n")).collect();
            Ok(format!(
                "# Plan {}, for Ray 2.60. The cluster:\n{starts}# The rest: serve deploy THIS_FILE, which takes away every application that is not in it.\n{}",
                plan.digest(),
                serve_config(plan, inventory, spec, module)?
            ))
        }
        Emit::Kuberay => {
            let config = serve_config(plan, inventory, spec, module)?;
            yaml(&kuberay::manifest(plan, inventory, &config, IMAGE))
        }
    }
}

fn serve_config(
    plan: &Plan,
    inventory: &Inventory,
    spec: &Spec,
    module: Option<&Path>,
) -> Result<String, Failure> {
    let module = match module {
        Some(folder) => {
            let folder = std::path::absolute(folder).map_err(Failure::new)?;
            package::write(&folder).map_err(|error| {
                let what = format!("the module can't be written to {}", folder.display());
                Failure::new(anyhow::Error::new(error).context(what))
            })?;
            output::talk(&format!(
                "the module is in {}; every node needs it there",
                folder.display()
            ));
            format!("local://{}", folder.display())
        }
        None => {
            output::talk(
                "note: the module is where `berth apply` puts it; --module FOLDER writes it out",
            );
            package::uri()
        }
    };
    let context = ray::Context {
        inventory,
        name_label: Some(spec.cluster.ray.name_label.as_deref().unwrap_or(ray::NAME_LABEL)),
        owner: OWNER,
        module: &module,
        module_version: package::VERSION,
    };
    yaml(&ray::config(plan, &context))
}

fn yaml(value: &serde_json::Value) -> Result<String, Failure> {
    serde_saphyr::to_string(value).map_err(|error| Failure::new(anyhow::anyhow!(error.to_string())))
}
