//! The GPUs that a strategy changes, with what they hold before and after.

use crate::strategy::report::{Comparison, GpuReport, StrategyReport};

/// A GPU before and after, and the nodes on which the same happens.
pub(super) struct Change<'a> {
    pub(super) nodes: Vec<&'a str>,
    pub(super) before: Option<&'a GpuReport>,
    pub(super) after: &'a GpuReport,
}

/// What a strategy changes of today's GPUs; nodes that are alike are one.
pub(super) fn changes<'a>(compared: &'a Comparison, one: &'a StrategyReport) -> Vec<Change<'a>> {
    let today = compared.today.as_ref();
    let mut changes: Vec<Change<'a>> = Vec::new();
    for after in &one.gpus {
        let is_it = |gpu: &&GpuReport| gpu.node == after.node && gpu.gpu == after.gpu;
        let before = today.and_then(|today| today.gpus.iter().find(is_it));
        if before.is_some_and(|before| shares(before) == shares(after)) {
            continue;
        }
        let same = |known: &&mut Change<'_>| {
            known.after.gpu == after.gpu
                && shares(known.after) == shares(after)
                && known.before.map(shares) == before.map(shares)
        };
        match changes.iter_mut().find(same) {
            Some(known) => known.nodes.push(&after.node),
            None => changes.push(Change { nodes: vec![&after.node], before, after }),
        }
    }
    changes
}

/// What is on a GPU, whatever the instances are called.
fn shares(gpu: &GpuReport) -> Vec<(&str, u64)> {
    gpu.instances.iter().map(|share| (share.model.as_str(), share.bytes.0)).collect()
}

impl Change<'_> {
    /// The nodes as a person names them, and the GPU.
    pub(super) fn place(&self) -> String {
        match self.nodes.as_slice() {
            [one] => format!("{one} {}", self.after.gpu),
            several => format!(
                "{} .. {} ({}) {}",
                several[0],
                several[several.len() - 1],
                several.len(),
                self.after.gpu
            ),
        }
    }
}
