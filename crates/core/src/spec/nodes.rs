//! Machines as a spec writes them down, and rules that choose among machines.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use super::deployment::{NAMES, is_good_name};
use super::error::{Problems, nearest};
use super::raw::{RawNodeRule, RawNodes};
use crate::gpu::{self, GpuKind};
use crate::inventory::{Cpu, Device, DeviceId, DeviceKind, Node};
use crate::units::Bytes;

/// More machines than this, of all groups, are a slip of the pen.
pub const MAX_NODES: u64 = 65_536;
const MAX_GPUS: u32 = 16;
const MAX_DIGITS: usize = 12;

/// Which machines are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeRule {
    /// All.
    #[default]
    Any,
    /// By name or address.
    Named(Operand),
    /// By labels, all of which must hold.
    Labelled(BTreeMap<String, Operand>),
}

/// What a name or a label is compared with: `x`, `!x`, `in(x, y)`, `!in(x, y)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Operand {
    values: BTreeSet<String>,
    is_negated: bool,
}

impl Operand {
    fn parse(text: &str) -> Result<Self, String> {
        let (text, is_negated) = match text.trim().strip_prefix('!') {
            Some(rest) => (rest.trim(), true),
            None => (text.trim(), false),
        };
        let list = match text.strip_prefix("in(") {
            Some(rest) => rest.strip_suffix(')').ok_or("a closing bracket is missing")?,
            None => text,
        };
        let mut values = BTreeSet::new();
        for value in list.split(',').map(str::trim).filter(|value| !value.is_empty()) {
            values.extend(expand(value)?);
        }
        if values.is_empty() {
            return Err("there is no value in it".to_owned());
        }
        Ok(Self { values, is_negated })
    }

    /// A label that isn't there is nobody's value, as Ray has it.
    fn holds(&self, value: Option<&str>) -> bool {
        value.is_some_and(|value| self.values.contains(value)) != self.is_negated
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = if self.is_negated { "!" } else { "" };
        let values: Vec<&str> = self.values.iter().map(String::as_str).collect();
        match values.as_slice() {
            [one] => write!(f, "{not}{one}"),
            several => write!(f, "{not}in({})", several.join(", ")),
        }
    }
}

impl fmt::Display for NodeRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any node"),
            Self::Named(operand) => operand.fmt(f),
            Self::Labelled(labels) => {
                let all = labels.iter().map(|(label, operand)| format!("{label} = {operand}"));
                f.write_str(&all.collect::<Vec<_>>().join(" and "))
            }
        }
    }
}

impl NodeRule {
    /// Reads a rule.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(raw: &RawNodeRule) -> Result<Self, String> {
        match raw {
            RawNodeRule::Name(name) => Operand::parse(name).map(Self::Named),
            RawNodeRule::Names(names) => {
                let names: Vec<String> = names.clone();
                Operand::parse(&format!("in({})", names.join(","))).map(Self::Named)
            }
            RawNodeRule::Labels(labels) => {
                let parsed =
                    labels.iter().map(|(label, text)| Ok((label.clone(), Operand::parse(text)?)));
                parsed.collect::<Result<_, String>>().map(Self::Labelled)
            }
        }
    }

    /// Whether it means a machine.
    pub fn matches(&self, node: &Node) -> bool {
        match self {
            Self::Any => true,
            Self::Named(operand) => {
                let is_one = operand.values.contains(&node.name)
                    || [&node.address, &node.id]
                        .into_iter()
                        .flatten()
                        .any(|at| operand.values.contains(at));
                is_one != operand.is_negated
            }
            Self::Labelled(labels) => labels
                .iter()
                .all(|(label, operand)| operand.holds(node.labels.get(label).map(String::as_str))),
        }
    }

    /// These machines.
    pub fn of_names(names: impl IntoIterator<Item = String>) -> Self {
        Self::Named(Operand { values: names.into_iter().collect(), is_negated: false })
    }

    /// A label in it that no machine has.
    pub fn unknown_label(&self, nodes: &[Node]) -> Option<&str> {
        let Self::Labelled(labels) = self else { return None };
        let is_unknown =
            |label: &&String| !nodes.iter().any(|node| node.labels.contains_key(*label));
        labels.keys().find(is_unknown).map(String::as_str)
    }

    /// The names in it that no machine has.
    pub fn unknown<'a>(&'a self, nodes: &[Node]) -> Vec<&'a str> {
        let Self::Named(operand) = self else { return Vec::new() };
        let addresses = nodes.iter().filter_map(|node| node.address.as_deref());
        let there: BTreeSet<&str> =
            nodes.iter().map(|node| node.name.as_str()).chain(addresses).collect();
        operand.values.iter().map(String::as_str).filter(|name| !there.contains(name)).collect()
    }
}

/// `node-[0-15]` as sixteen names; a name without brackets as one.
fn expand(names: &str) -> Result<Vec<String>, String> {
    let Some((before, rest)) = names.split_once('[') else { return Ok(vec![names.to_owned()]) };
    let (range, after) = rest.split_once(']').ok_or("a closing bracket is missing")?;
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let number = |text: &str| {
        text.trim().parse::<u64>().map_err(|_| format!("`{range}` is no range, as in [0-15]"))
    };
    let (low, high) = (number(first)?, number(last)?);
    if first.len() > MAX_DIGITS {
        return Err(format!("`{range}` has more digits than any number of machines"));
    }
    if low > high || high - low >= MAX_NODES {
        return Err(format!("`{range}` is no range of up to {MAX_NODES} numbers"));
    }
    // Leading zeros stay: node-[00-15].
    let width = if first.trim().starts_with('0') { first.trim().len() } else { 1 };
    Ok((low..=high).map(|number| format!("{before}{number:0width$}{after}")).collect())
}

/// The machines that a spec plans for.
pub(super) fn planned(raw: Vec<RawNodes>, problems: &mut Problems<'_>) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    let mut taken = BTreeSet::new();
    for group in raw {
        let at = group.names.span();
        let names = expand(group.names.get_ref()).unwrap_or_else(|message| {
            problems.add(at.clone(), message);
            Vec::new()
        });
        if let Some(bad) = names.iter().find(|name| !is_good_name(name)) {
            problems.add_with_hint(at.clone(), format!("`{bad}` can't be a node's name"), NAMES);
        }
        if let Some(twice) = names.iter().find(|name| !taken.insert((*name).clone())) {
            problems.add(at.clone(), format!("there is a node `{twice}` already"));
        }
        if names.len() > 1 && group.address.is_some() {
            problems.add(at.clone(), "several nodes can't have one address: give each an entry");
        }
        if nodes.len() + names.len() > MAX_NODES as usize {
            problems.add(at, format!("these are more than {MAX_NODES} nodes"));
            break;
        }
        let devices = devices(&group, problems);
        nodes.extend(names.into_iter().map(|name| Node {
            name,
            devices: devices.clone(),
            address: group.address.clone(),
            labels: group.labels.clone(),
            ..Node::default()
        }));
    }
    nodes.sort_by(|a, b| natural(&a.name).cmp(&natural(&b.name)));
    nodes
}

/// Orders names as people do: `node-10` after `node-9`.
pub fn natural(name: &str) -> (&str, usize, &str) {
    let digits = name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let (stem, number) = name.split_at(digits);
    (stem, number.trim_start_matches('0').len(), number)
}

fn devices(group: &RawNodes, problems: &mut Problems<'_>) -> Vec<Device> {
    let mut devices = Vec::new();
    let device = |id: DeviceId, kind: DeviceKind, total: Bytes, used_by_others: Bytes| Device {
        id,
        kind,
        total,
        used_by_others,
        is_seen: false,
        processes: None,
        cpu: Cpu::default(),
    };
    if let Some(memory) = group.host_memory {
        devices.push(device(DeviceId::host(), DeviceKind::Host, memory, Bytes::ZERO));
    }
    let count =
        group.gpus.as_ref().map_or(u32::from(group.gpu.is_some()), |count| *count.get_ref());
    if let Some(at) = group.gpus.as_ref().filter(|count| *count.get_ref() > MAX_GPUS) {
        problems.add(at.span(), format!("a node has at most {MAX_GPUS} GPUs"));
    }
    let Some(named) = &group.gpu else {
        if let Some(at) = group.gpus.as_ref().filter(|count| *count.get_ref() > 0) {
            problems.add_with_hint(at.span(), "GPUs of which kind?", "add gpu = \"A10\"");
        }
        return devices;
    };
    let Some(kind) = GpuKind::find(named.get_ref()) else {
        let known = || gpu::kinds().iter().map(|kind| kind.name.as_str());
        let hint = match nearest(named.get_ref(), known()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known are {}", known().collect::<Vec<_>>().join(", ")),
        };
        let message = format!("`{}` is no kind of GPU that berth knows", named.get_ref());
        problems.add_with_hint(named.span(), message, hint);
        return devices;
    };
    let others = group.used_by_others.unwrap_or_default();
    devices.extend((0..count.min(MAX_GPUS)).map(|index| {
        let (id, name) = (DeviceId(format!("gpu:{index}")), kind.name.clone());
        device(id, DeviceKind::Gpu { index, name }, kind.cuda_total(), others)
    }));
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_become_names() {
        for (names, expected) in [
            ("a", Ok(vec!["a"])),
            ("n[8-10]x", Ok(vec!["n8x", "n9x", "n10x"])),
            ("n[08-09]", Ok(vec!["n08", "n09"])),
            ("n[3]", Ok(vec!["n3"])),
            ("n[3-1]", Err("`3-1` is no range of up to 65536 numbers")),
            ("n[a-b]", Err("`a-b` is no range, as in [0-15]")),
            ("n[1-2", Err("a closing bracket is missing")),
        ] {
            let expected = expected
                .map(|names| names.into_iter().map(str::to_owned).collect())
                .map_err(str::to_owned);
            assert_eq!(expand(names), expected, "{names}");
        }
    }

    #[test]
    fn rules_choose_nodes() {
        let node = Node {
            name: "n1".into(),
            address: Some("10.0.0.1".into()),
            labels: BTreeMap::from([("zone".into(), "a".into())]),
            ..Node::default()
        };
        let name = |text: &str| RawNodeRule::Name(text.into());
        let label = |key: &str, text: &str| {
            RawNodeRule::Labels(BTreeMap::from([(key.to_owned(), text.to_owned())]))
        };
        for (rule, expected) in [
            (name("n1"), true),
            (name("n[0-3]"), true),
            (name("!n1"), false),
            (name("10.0.0.1"), true),
            (name("in(n2, n1)"), true),
            (name("!in(n2, n3)"), true),
            (RawNodeRule::Names(vec!["n2".into(), "n1".into()]), true),
            (label("zone", "a"), true),
            (label("zone", "!a"), false),
            (label("zone", "in(b, a)"), true),
            (label("zone", "!in(a)"), false),
            (label("rack", "a"), false),
            (label("rack", "!a"), true),
        ] {
            assert_eq!(
                NodeRule::parse(&rule).map(|rule| rule.matches(&node)),
                Ok(expected),
                "{rule:?}"
            );
        }
        assert!(NodeRule::parse(&name("in(a")).is_err());
        assert!(NodeRule::parse(&name("!")).is_err());
    }
}
