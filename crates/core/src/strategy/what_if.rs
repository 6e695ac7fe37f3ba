//! What if: a spec with other machines, another kind of GPU, another model, or more demand.

use std::fmt;
use std::str::FromStr;

use crate::gpu::GpuKind;
use crate::inventory::{DeviceKind, Node};
use crate::spec::nodes::MAX_NODES;
use crate::spec::{NodeRule, Spec};

/// One change to a spec.
#[derive(Clone, Debug, PartialEq)]
pub enum WhatIf {
    /// So many more machines like the last one.
    Add(u32),
    /// A machine less.
    Lose(String),
    /// All GPUs of another kind.
    Gpu(String),
    /// All demand times so much.
    Demand(f64),
}

/// Why a change can't be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WhatIfError {
    /// It is none.
    #[error("`{0}` is no change; write add=4, lose=node-3, gpu=L40S or demand=2")]
    Unknown(String),
    /// No kind of GPU that is known.
    #[error("`{0}` is no kind of GPU that berth knows")]
    UnknownGpu(String),
    /// No such machine.
    #[error("there is no node `{0}` to lose")]
    UnknownNode(String),
    /// Demand that isn't there can't grow.
    #[error("no model has a demand: add demand = {{ requests_per_second = 1.0 }} to one")]
    NoDemand,
}

impl FromStr for WhatIf {
    type Err = WhatIfError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || WhatIfError::Unknown(text.to_owned());
        let (what, value) = text.split_once('=').ok_or_else(unknown)?;
        match what.trim() {
            "add" => {
                let count = value.trim().parse().ok();
                let count = count.filter(|count| u64::from(*count) <= MAX_NODES);
                count.map(Self::Add).ok_or_else(unknown)
            }
            "lose" => Ok(Self::Lose(value.trim().to_owned())),
            "gpu" => Ok(Self::Gpu(value.trim().to_owned())),
            "demand" => {
                let factor = value.trim().parse().ok();
                let factor = factor.filter(|factor| (0.0..1e6).contains(factor));
                factor.map(Self::Demand).ok_or_else(unknown)
            }
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for WhatIf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(count) => write!(f, "{count} more nodes"),
            Self::Lose(node) => write!(f, "without {node}"),
            Self::Gpu(kind) => write!(f, "every GPU a {kind}"),
            Self::Demand(factor) => write!(f, "{factor} times the demand"),
        }
    }
}

impl WhatIf {
    /// The spec with the change.
    ///
    /// # Errors
    /// Where it names what isn't there.
    pub fn apply(&self, spec: &Spec) -> Result<Spec, WhatIfError> {
        let mut spec = spec.clone();
        match self {
            Self::Add(count) => {
                // Nothing runs on what is added, whatever its name and labels.
                for running in &mut spec.running {
                    let rule = &running.deployment.nodes;
                    let names = spec.cluster.nodes.iter().filter(|node| rule.matches(node));
                    let names: Vec<String> = names.map(|node| node.name.clone()).collect();
                    running.deployment.nodes = NodeRule::of_names(names);
                }
                add(&mut spec.cluster.nodes, *count);
            }
            Self::Lose(name) => {
                let before = spec.cluster.nodes.len();
                spec.cluster.nodes.retain(|node| node.name != *name);
                if spec.cluster.nodes.len() == before {
                    return Err(WhatIfError::UnknownNode(name.clone()));
                }
            }
            Self::Gpu(name) => {
                let kind =
                    GpuKind::find(name).ok_or_else(|| WhatIfError::UnknownGpu(name.clone()))?;
                let devices = spec.cluster.nodes.iter_mut().flat_map(|node| &mut node.devices);
                for device in devices {
                    if let DeviceKind::Gpu { name, .. } = &mut device.kind {
                        name.clone_from(&kind.name);
                        device.total = kind.cuda_total();
                    }
                }
                // What is seen in use was seen on the other kind.
                spec.running.iter_mut().for_each(|running| running.observed = None);
            }
            Self::Demand(factor) => {
                let mut demands = spec.deployments.iter_mut().filter_map(|one| one.demand.as_mut());
                let first = demands.next().ok_or(WhatIfError::NoDemand)?;
                for demand in std::iter::once(first).chain(demands) {
                    demand.requests_per_second *= factor;
                }
            }
        }
        Ok(spec)
    }
}

fn add(nodes: &mut Vec<Node>, count: u32) {
    let Some(last) = nodes.last().cloned() else { return };
    let stem = last.name.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
    let number: u64 = last.name[stem.len()..].parse().unwrap_or(0);
    let new = (1..=u64::from(count)).map(|more| Node {
        name: format!("{stem}{}", number.saturating_add(more)),
        address: None,
        ..last.clone()
    });
    nodes.extend(new.collect::<Vec<_>>());
}
