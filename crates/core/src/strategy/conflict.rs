//! When something has no place: the smallest set of requirements that can't hold together, and the
//! single changes that would each make room, the least first. Every one is tried on the memory model.

use serde::Serialize;
use serde_json::json;

use super::evaluate::{Cluster, gpus, lay, nodes};
use crate::placement::gpus::prepare;
use crate::placement::gpus::prepared::arguments;
use crate::placement::{Facts, PlanError};
use crate::spec::{Deployment, NodeRule, Spec};

/// What can't hold together, and what would help.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Conflict {
    /// Requirements of which each is needed for the conflict.
    pub cannot_hold: Vec<String>,
    /// Changes of which each makes room for all.
    pub relaxations: Vec<String>,
}

/// Something that the spec asks for, and how it is without it.
#[derive(Clone, Debug, PartialEq)]
enum Requirement {
    /// A deployment has to run at all.
    Run(String),
    /// It is kept to some nodes.
    Nodes(String),
    /// It is kept to some devices.
    Devices(String),
    /// It is spread over failure domains.
    Spread(String),
    /// It is kept together with another.
    Beside(String),
    /// It has so many instances at least.
    Replicas(String),
}

impl Requirement {
    fn say(&self, spec: &Spec) -> String {
        let of = |name: &String| spec.deployments.iter().find(|one| one.name == *name);
        match self {
            Self::Run(name) => {
                let flags = of(name).map(|one| arguments(&one.flags).to_string());
                format!("{name} runs with {}", flags.unwrap_or_default())
            }
            Self::Nodes(name) => {
                let rule = of(name).map(|one| one.nodes.to_string());
                format!("{name} is kept to {}", rule.unwrap_or_default())
            }
            Self::Devices(name) => {
                let devices = of(name).map(|one| &one.devices).into_iter().flatten();
                let devices: Vec<String> = devices.map(ToString::to_string).collect();
                format!("{name} is kept to {}", devices.join(", "))
            }
            Self::Spread(name) => {
                let spread = of(name).and_then(|one| one.spread.as_ref());
                let says = spread.map(|one| format!("at most {} on one {}", one.most, one.over));
                format!("{name} has {}", says.unwrap_or_default())
            }
            Self::Beside(name) => {
                let beside = of(name).and_then(|one| one.beside.as_ref());
                let says = beside.map(|one| format!("on a {} with {}", one.over, one.model));
                format!("{name} is {}", says.unwrap_or_default())
            }
            Self::Replicas(name) => {
                let least = of(name).map_or(0, |one| one.replicas.min);
                format!("{name} has {least} instances at least")
            }
        }
    }

    /// How to do without it.
    fn without(&self) -> String {
        match self {
            Self::Run(name) => format!("leave {name} out"),
            Self::Nodes(name) => format!("let {name} run on any node"),
            Self::Devices(name) => format!("let {name} run on any GPU"),
            Self::Spread(name) => format!("let more of {name} be in one failure domain"),
            Self::Beside(name) => format!("let {name} be without what it is beside"),
            Self::Replicas(name) => format!("be content with one instance of {name}"),
        }
    }

    fn relax(&self, spec: &mut Spec) {
        let (Self::Run(name)
        | Self::Nodes(name)
        | Self::Devices(name)
        | Self::Spread(name)
        | Self::Beside(name)
        | Self::Replicas(name)) = self;
        if matches!(self, Self::Run(_)) {
            spec.deployments.retain(|one| one.name != *name);
        }
        for one in spec.deployments.iter_mut().filter(|one| one.name == *name) {
            match self {
                Self::Nodes(_) => one.nodes = NodeRule::Any,
                Self::Devices(_) => one.devices.clear(),
                Self::Spread(_) => one.spread = None,
                Self::Beside(_) => one.beside = None,
                Self::Replicas(_) => one.replicas.min = 1,
                Self::Run(_) => {}
            }
        }
    }
}

fn requirements(spec: &Spec) -> Vec<Requirement> {
    let mut all = Vec::new();
    for Deployment { name, nodes, devices, replicas, spread, beside, .. } in &spec.deployments {
        // The cheapest to do without come first.
        if !devices.is_empty() {
            all.push(Requirement::Devices(name.clone()));
        }
        if spread.as_ref().is_some_and(|spread| spread.most < u32::MAX) {
            all.push(Requirement::Spread(name.clone()));
        }
        if beside.is_some() {
            all.push(Requirement::Beside(name.clone()));
        }
        if *nodes != NodeRule::Any {
            all.push(Requirement::Nodes(name.clone()));
        }
        if replicas.min > 1 {
            all.push(Requirement::Replicas(name.clone()));
        }
    }
    all.extend(spec.deployments.iter().map(|one| Requirement::Run(one.name.clone())));
    all
}

/// Whether everything has a place.
fn fits(spec: &Spec, cluster: &Cluster<'_>) -> Result<bool, PlanError> {
    lay(cluster, spec, |laid| laid.layout.missing.is_empty())
}

/// What is in each other's way in a spec; nothing where everything has a place.
///
/// # Errors
/// Where nothing is known of a model.
pub fn conflict(spec: &Spec, cluster: &Cluster<'_>) -> Result<Conflict, PlanError> {
    if fits(spec, cluster)? {
        return Ok(Conflict::default());
    }
    let all = requirements(spec);
    let without = |left_out: &[&Requirement]| {
        let mut relaxed = spec.clone();
        left_out.iter().for_each(|one| one.relax(&mut relaxed));
        fits(&relaxed, cluster)
    };
    // What the conflict doesn't need is left out, one after the other.
    let mut needless: Vec<&Requirement> = Vec::new();
    for one in all.iter().rev() {
        let more: Vec<&Requirement> = needless.iter().copied().chain([one]).collect();
        if !without(&more)? {
            needless = more;
        }
    }
    let core = all.iter().filter(|one| !needless.contains(one));
    let mut relaxations = Vec::new();
    for one in &all {
        if without(&[one])? {
            relaxations.push(one.without());
        }
    }
    let mut smaller = smaller_fractions(spec, cluster)?;
    smaller.extend(relaxations);
    Ok(Conflict { cannot_hold: core.map(|one| one.say(spec)).collect(), relaxations: smaller })
}

/// Deployments whose fraction could be smaller, so that all would fit.
fn smaller_fractions(spec: &Spec, cluster: &Cluster<'_>) -> Result<Vec<String>, PlanError> {
    let mut changes = Vec::new();
    let nodes = nodes(cluster, spec);
    let gpus = gpus(nodes);
    for (index, one) in spec.deployments.iter().enumerate() {
        let Some(located) = cluster.found.model(one) else { continue };
        let Facts::Transformer(model) = &located.facts else { continue };
        let args = arguments(&one.flags);
        let count = prepare(one, cluster.found)?.gpus_of(1);
        let mut possible = nodes.iter().zip(&gpus).filter(|(node, _)| one.nodes.matches(node));
        let Some(here) = possible.find_map(|(_, gpus)| gpus.get(..count)) else { continue };
        let tokens = args["max_model_len"].as_u64().unwrap_or(model.max_position);
        let question = cluster.question(model, &args, here);
        let Some(least) = question.smallest_utilization(1, tokens) else { continue };
        let mut smaller = spec.clone();
        let mut changed = args.clone();
        changed["gpu_memory_utilization"] = json!(least.value);
        if let Ok(flags) = serde_json::from_value(changed) {
            smaller.deployments[index].flags = flags;
        }
        if args["gpu_memory_utilization"] != json!(least.value) && fits(&smaller, cluster)? {
            changes.push(format!(
                "{} with gpu_memory_utilization = {} (one request of {tokens} tokens)",
                one.name, least.value
            ));
        }
    }
    Ok(changes)
}
