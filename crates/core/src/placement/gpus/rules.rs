//! Failure domains while a cluster is filled: how many of which model each has.

use std::collections::{BTreeMap, BTreeSet};

use super::prepared::Prepared;
use crate::inventory::Node;
use crate::spec::{Deployment, Domain};

/// Instances of models in domains, as far as any rule asks for them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    domains: BTreeSet<Domain>,
    /// By domain, its name and model.
    counts: BTreeMap<(Domain, String, String), u32>,
}

impl Rules {
    /// Counts what the rules of some deployments ask for.
    pub(crate) fn new(wanted: &[Prepared<'_>]) -> Self {
        let domains = wanted.iter().flat_map(|one| one.deployment.domains()).cloned().collect();
        Self { domains, counts: BTreeMap::new() }
    }

    /// The labels of a node by which domains are told apart.
    pub(super) fn labels<'a>(&self, node: &'a Node) -> Vec<Option<&'a str>> {
        let labels = self.domains.iter().filter(|domain| **domain != Domain::Node);
        labels.map(|domain| domain.of(node)).collect()
    }

    fn count(&self, domain: &Domain, node: &Node, model: &str) -> u32 {
        let key = domain.of(node).map(|name| (domain.clone(), name.to_owned(), model.to_owned()));
        key.and_then(|key| self.counts.get(&key)).copied().unwrap_or(0)
    }

    /// Notes one more instance of a model.
    pub(crate) fn add(&mut self, model: &str, node: &Node) {
        for domain in &self.domains {
            if let Some(name) = domain.of(node) {
                let key = (domain.clone(), name.to_owned(), model.to_owned());
                *self.counts.entry(key).or_default() += 1;
            }
        }
    }

    /// Instances of a deployment's model in the domain that it is spread over.
    pub(super) fn around(&self, one: &Deployment, node: &Node) -> u32 {
        let spread = one.spread.as_ref();
        spread.map_or(0, |spread| self.count(&spread.over, node, &one.model))
    }

    /// What one more instance on a node would break.
    pub(crate) fn broken(&self, one: &Deployment, node: &Node) -> Option<String> {
        if let Some(spread) = &one.spread
            && self.around(one, node) >= spread.most
        {
            let (most, over) = (spread.most, &spread.over);
            return Some(format!("every {over} has its {most} of {} already", one.model));
        }
        let beside = one.beside.as_ref()?;
        let is_alone = self.count(&beside.over, node, &beside.model) == 0;
        is_alone.then(|| format!("there is no {} on a {} with room", beside.model, beside.over))
    }

    /// How many models must have a place before a deployment can have one.
    pub(super) fn depth(&self, wanted: &[Prepared<'_>], index: usize) -> usize {
        let (mut depth, mut at) = (0, wanted[index].deployment);
        while let Some(beside) = at.beside.as_ref().filter(|_| depth < wanted.len()) {
            depth += 1;
            let partner = wanted.iter().find(|one| one.deployment.model == beside.model);
            let Some(partner) = partner else { break };
            at = partner.deployment;
        }
        depth
    }
}
