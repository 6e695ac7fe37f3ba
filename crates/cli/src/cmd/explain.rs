//! `berth explain`: why something is where it is, and not elsewhere.

use std::path::Path;
use std::process::ExitCode;

use berth_core::spec::error::nearest;
use berth_core::strategy::explain::{Explanation, explain};

use crate::args::ExplainArgs;
use crate::failure::Failure;
use crate::output;
use crate::prepare::{self, Planning};

pub(crate) fn run(state: &Path, args: &ExplainArgs) -> Result<ExitCode, Failure> {
    let spec = prepare::spec(&args.plan.file)?;
    let mut planning = Planning::new(state, &args.plan.file, spec)?;
    let spec = match args.plan.strategy.as_deref() {
        Some(name) => planning.strategy(name)?.spec,
        None => planning.spec.clone(),
    };
    planning.assume(&spec);
    let found = explain(&spec, &planning.cluster(), &args.what).map_err(Failure::bad_spec)?;
    if found.is_empty() {
        let deployments = spec.deployments.iter().map(|one| one.name.as_str());
        let names = deployments.chain(spec.cluster.nodes.iter().map(|node| node.name.as_str()));
        let hint = match nearest(&args.what, names) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "name a model, a deployment or a node of the spec".to_owned(),
        };
        let error = anyhow::anyhow!("the plan has no `{}`", args.what);
        return Err(Failure::bad_spec(error).hint(hint));
    }
    match args.plan.json {
        true => output::json(&found)?,
        false => found.iter().for_each(|one| output::data(&line(one))),
    }
    Ok(ExitCode::SUCCESS)
}

fn line(one: &Explanation) -> String {
    let nodes = match one.nodes.as_slice() {
        [first, .., last] => format!("{first} .. {last} ({})", one.nodes.len()),
        few => few.join(", "),
    };
    let is = if one.is_here { "is on" } else { "is not on" };
    format!("{} {is} {nodes}: {}", one.deployment, one.text)
}
