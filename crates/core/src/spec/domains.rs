//! Failure domains, and what is said of them: how instances are spread, what they are kept together
//! with.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::Serialize;
use toml::Spanned;

use super::NodeRule;
use super::deployment::{Deployment, Machines};
use super::error::{Problems, nearest};
use super::raw::{RawBeside, RawModel, RawSpread};
use crate::inventory::Node;

/// What fails together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Domain {
    /// A machine.
    Node,
    /// The machines that have the same value of a label.
    Label(String),
}

impl Domain {
    fn parse(text: &str) -> Self {
        if text == "node" { Self::Node } else { Self::Label(text.to_owned()) }
    }

    /// The one that a machine is in.
    pub fn of<'a>(&self, node: &'a Node) -> Option<&'a str> {
        match self {
            Self::Node => Some(&node.name),
            Self::Label(label) => node.labels.get(label).map(String::as_str),
        }
    }
}

impl std::fmt::Display for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node => f.write_str("node"),
            Self::Label(label) => f.write_str(label),
        }
    }
}

/// How a model's instances are spread: where fewest are comes first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// Over what.
    pub over: Domain,
    /// The most instances of the model in one.
    pub most: u32,
}

/// That instances are only where there is one of another model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Beside {
    /// The other model.
    pub model: String,
    /// Where they are together.
    pub over: Domain,
}

pub(super) fn spread(
    raw: &Spanned<RawSpread>,
    rule: &NodeRule,
    machines: Machines<'_>,
    problems: &mut Problems<'_>,
) -> Spread {
    let (over, most) = match raw.get_ref() {
        RawSpread::Over(over) => (over, None),
        RawSpread::Limited(limit) => (&limit.over, Some(limit.most)),
    };
    let over = Domain::parse(over);
    check_domain(&over, raw.span(), rule, machines, problems);
    if most == Some(0) {
        let hint = "write most = 1 for one instance in each";
        problems.add_with_hint(raw.span(), "most = 0 would leave no place at all", hint);
    }
    Spread { over, most: most.unwrap_or(u32::MAX) }
}

pub(super) fn beside(
    raw: &Spanned<RawBeside>,
    rule: &NodeRule,
    machines: Machines<'_>,
    problems: &mut Problems<'_>,
) -> Beside {
    let (model, over) = match raw.get_ref() {
        RawBeside::Model(model) => (model.clone(), Domain::Node),
        RawBeside::Over(one) => (one.model.clone(), Domain::parse(&one.over)),
    };
    check_domain(&over, raw.span(), rule, machines, problems);
    Beside { model, over }
}

/// Every machine that may be used must be in a domain.
fn check_domain(
    domain: &Domain,
    at: Range<usize>,
    rule: &NodeRule,
    machines: Machines<'_>,
    problems: &mut Problems<'_>,
) {
    let nodes = machines.planned;
    if machines.are_seen_later {
        return;
    }
    if nodes.is_empty() {
        let hint = "write the machines down in [[cluster.nodes]], or leave it out";
        problems.add_with_hint(at, "this machine alone has nothing to choose between", hint);
        return;
    }
    let mut allowed = nodes.iter().filter(|node| rule.matches(node));
    let Some(without) = allowed.find(|node| domain.of(node).is_none()) else { return };
    let labels = nodes.iter().flat_map(|node| node.labels.keys().map(String::as_str));
    let labels: BTreeSet<&str> = labels.chain(["node"]).collect();
    let hint = match nearest(&domain.to_string(), labels.iter().copied()) {
        Some(near) if near != domain.to_string() => format!("did you mean `{near}`?"),
        _ => format!("give it one: labels = {{ {domain} = \"...\" }} in [[cluster.nodes]]"),
    };
    problems.add_with_hint(at, format!("{} has no label `{domain}`", without.name), hint);
}

/// What is wrong with the rules of deployments on machines that are seen only now: a label that one of them
/// lacks.
pub fn unknown_domain(deployments: &[Deployment], nodes: &[Node]) -> Option<String> {
    deployments.iter().find_map(|one| {
        one.domains().find_map(|domain| {
            let mut allowed = nodes.iter().filter(|node| one.nodes.matches(node));
            let without = allowed.find(|node| domain.of(node).is_none())?;
            Some(format!("{} asks for a label `{domain}`, which {} lacks", one.name, without.name))
        })
    })
}

/// What is kept beside another model needs that model, and not itself in the end.
pub(super) fn check_partners(
    models: &BTreeMap<Spanned<String>, RawModel>,
    problems: &mut Problems<'_>,
) {
    let mut partners: BTreeMap<&str, Vec<(&str, Range<usize>)>> = BTreeMap::new();
    for (name, model) in models {
        let all = std::iter::once(model).chain(model.deployments.values());
        for raw in all.filter_map(|model| model.beside.as_ref()) {
            let partner = match raw.get_ref() {
                RawBeside::Model(model) => model,
                RawBeside::Over(one) => &one.model,
            };
            partners.entry(name.get_ref()).or_default().push((partner, raw.span()));
        }
    }
    for (name, beside) in &partners {
        for (partner, at) in beside {
            let names = models.keys().map(|name| name.get_ref().as_str());
            if !models.contains_key(*partner) {
                let hint = match nearest(partner, names.clone()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("there are: {}", names.collect::<Vec<_>>().join(", ")),
                };
                problems.add_with_hint(at.clone(), format!("there is no model `{partner}`"), hint);
            } else if leads_to(partner, name, &partners) {
                let hint = "one of the two is enough: the other comes first";
                let message = format!("`{name}` would wait for itself beside `{partner}`");
                problems.add_with_hint(at.clone(), message, hint);
            }
        }
    }
}

fn leads_to(from: &str, to: &str, partners: &BTreeMap<&str, Vec<(&str, Range<usize>)>>) -> bool {
    let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(model) = open.pop() {
        if model == to {
            return true;
        }
        if seen.insert(model) {
            open.extend(partners.get(model).into_iter().flatten().map(|(partner, _)| *partner));
        }
    }
    false
}
