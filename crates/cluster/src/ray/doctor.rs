//! What is wrong with a cluster before anything is tried on it.

use std::collections::{BTreeMap, BTreeSet};

use berth_core::inventory::{Inventory, Node};
use berth_core::spec::Deployment;
use berth_core::spec::error::nearest;
use serde_json::Value;

use super::client::{Ray, RayError};
use super::config::{self, Flaw};
use super::serve::{AppStatus, Serving};

/// The version that this was written against.
const RAY: (u64, u64) = (2, 60);

/// What a doctor looks at.
#[derive(Clone, Debug, Default)]
pub struct Examined {
    /// Ray's version.
    pub version: String,
    /// The nodes, as Ray's state API has them.
    pub nodes: Value,
    /// The actors that hold GPUs, or wait for them.
    pub actors: Value,
    /// The nodes.
    pub inventory: Inventory,
    /// What Serve runs.
    pub serving: Serving,
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It won't work.
    Error,
    /// It may go wrong.
    Warning,
    /// Good to know.
    Note,
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// How bad it is.
    pub severity: Severity,
    /// What.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

fn found(severity: Severity, message: String, hint: &str) -> Found {
    let hint = Some(hint.to_owned()).filter(|hint| !hint.is_empty());
    Found { severity, message, hint }
}

/// Reads what a doctor looks at beside nodes and applications.
///
/// # Errors
/// Where Ray can't be asked.
pub fn examine(ray: &Ray, inventory: Inventory, serving: Serving) -> Result<Examined, RayError> {
    let version = ray.get("/api/version")?["ray_version"].as_str().unwrap_or("unknown").to_owned();
    let nodes = ray.get("/api/v0/nodes?detail=true&limit=10000")?;
    let actors = ray.get("/api/v0/actors?detail=true&limit=10000").unwrap_or_default();
    Ok(Examined { version, nodes, actors, inventory, serving })
}

/// Everything that is wrong, the worst first.
pub fn diagnose(
    seen: &Examined,
    deployments: &[Deployment],
    name_label: Option<&str>,
) -> Vec<Found> {
    let mut all = Vec::new();
    version(seen, &mut all);
    names(seen, name_label, &mut all);
    rules(seen, deployments, &mut all);
    applications(seen, &mut all);
    holders(seen, &mut all);
    all.extend(seen.inventory.notes.iter().map(|note| found(Severity::Warning, note.clone(), "")));
    all.sort_by_key(|one| one.severity);
    all
}

fn version(seen: &Examined, all: &mut Vec<Found>) {
    let mut numbers = seen.version.split('.').map(|part| part.parse::<u64>().unwrap_or(0));
    let this = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if this < RAY {
        let message =
            format!("Ray {} is older than 2.60, which berth was written against", seen.version);
        all.push(found(
            Severity::Error,
            message,
            "update Ray on all nodes: pip install \"ray[default,serve]==2.60.0\"",
        ));
    } else if this > RAY {
        let message =
            format!("Ray {} is newer than 2.60, which berth was tried with", seen.version);
        all.push(found(Severity::Warning, message, ""));
    }
}

fn names(seen: &Examined, label: Option<&str>, all: &mut Vec<Found>) {
    let nodes = &seen.inventory.nodes;
    if nodes.is_empty() {
        all.push(found(
            Severity::Error,
            "no node is alive".to_owned(),
            "start one with `ray start`",
        ));
    }
    let mut by_name: BTreeMap<&str, usize> = BTreeMap::new();
    nodes.iter().for_each(|node| *by_name.entry(&node.name).or_default() += 1);
    for (name, count) in by_name.into_iter().filter(|(_, count)| *count > 1) {
        let message = format!("{count} nodes are called {name}");
        all.push(found(
            Severity::Error,
            message,
            "set name_label in [cluster.ray] to a label that tells them apart",
        ));
    }
    match label {
        None => all.push(found(
            Severity::Warning,
            "nodes are known by their addresses, and instances are pinned by Ray's ids, which change when a \
             node comes back: an instance of it then restarts only while a berth is about"
                .to_owned(),
            "start nodes with --labels machine=NAME, and set name_label = \"machine\" in [cluster.ray]",
        )),
        Some(label) => {
            let without = nodes.iter().filter(|node| !node.labels.contains_key(label));
            for node in without {
                let message = format!("{} has no label `{label}`, which shall name nodes", node.name);
                let hint = format!("start it with --labels {label}=NAME");
                all.push(found(Severity::Error, message, &hint));
            }
        }
    }
}

/// Labels that the spec asks for and no node has: missing, misspelt, or written as a resource.
fn rules(seen: &Examined, deployments: &[Deployment], all: &mut Vec<Found>) {
    let nodes = &seen.inventory.nodes;
    let known: BTreeSet<&str> =
        nodes.iter().flat_map(|node| node.labels.keys().map(String::as_str)).collect();
    for one in deployments {
        if let Some(label) = one.nodes.unknown_label(nodes) {
            let message = format!("{} asks for a label `{label}`, which no node has", one.name);
            let hint = match (
                holder_of_resource(seen, label),
                nearest(label, known.iter().copied()),
            ) {
                (Some(node), _) => format!(
                    "{node} has a *resource* of that name, which no selector sees: `ray start --labels` instead"
                ),
                (None, Some(near)) => format!("did you mean `{near}`?"),
                (None, None) => "give nodes the label: `ray start --labels`".to_owned(),
            };
            all.push(found(Severity::Error, message, &hint));
        } else if !nodes.iter().any(|node| one.nodes.matches(node)) {
            let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
            let message = format!("no node is {}, where {} may run", one.nodes, one.name);
            all.push(found(Severity::Error, message, &format!("there are: {}", names.join(", "))));
        }
    }
    if let Some(message) = berth_core::spec::unknown_domain(deployments, nodes) {
        all.push(found(Severity::Error, message, "give the node the label: `ray start --labels`"));
    }
}

fn listed(answer: &Value) -> impl Iterator<Item = &Value> {
    answer["data"]["result"]["result"].as_array().into_iter().flatten()
}

fn name_of<'a>(nodes: &'a [Node], id: &str) -> Option<&'a str> {
    let node = nodes.iter().find(|node| node.id.as_deref() == Some(id))?;
    Some(&node.name)
}

fn holder_of_resource<'a>(seen: &'a Examined, label: &str) -> Option<&'a str> {
    let mut with = listed(&seen.nodes).filter(|node| !node["resources_total"][label].is_null());
    name_of(&seen.inventory.nodes, with.next()?["node_id"].as_str()?)
}

fn applications(seen: &Examined, all: &mut Vec<Found>) {
    for (name, app) in &seen.serving.applications {
        let mut flaws: Vec<Flaw> = Vec::new();
        if let Some(config) = &app.config {
            config::application_flaws(config, &mut flaws);
        }
        all.extend(flaws.into_iter().map(|flaw| {
            found(Severity::Error, format!("application {}: {}", flaw.at, flaw.message), &flaw.hint)
        }));
        let last = app.message.lines().last().unwrap_or_default();
        match app.status {
            AppStatus::DeployFailed => {
                let message = format!("application {name} could not be deployed: {last}");
                all.push(found(Severity::Error, message, ""));
            }
            AppStatus::Unhealthy => {
                all.push(found(
                    Severity::Warning,
                    format!("application {name} is not well: {last}"),
                    "",
                ));
            }
            _ => {}
        }
    }
}

/// Actors that hold GPUs beside Serve's, and those that wait for some.
fn holders(seen: &Examined, all: &mut Vec<Found>) {
    for actor in listed(&seen.actors) {
        let gpus = actor["required_resources"]["GPU"].as_f64().unwrap_or(0.0);
        let name = actor["name"].as_str().filter(|name| !name.is_empty());
        let name = name.or(actor["class_name"].as_str()).unwrap_or("an actor");
        let node = actor["node_id"].as_str().and_then(|id| name_of(&seen.inventory.nodes, id));
        match actor["state"].as_str() {
            Some("ALIVE") if gpus > 0.0 && !name.starts_with("SERVE_REPLICA::berth-") => {
                let message = format!("{name} holds {gpus} GPUs of {}", node.unwrap_or("a node"));
                all.push(found(Severity::Note, message, ""));
            }
            Some("PENDING_CREATION") => {
                let asks = &actor["required_resources"];
                let selector = &actor["label_selector"];
                let message = format!("{name} waits for a node with {asks} and labels {selector}");
                all.push(found(
                    Severity::Warning,
                    message,
                    "Ray would wait for ever; look for a typo in the selector",
                ));
            }
            _ => {}
        }
    }
}
