//! A sum that somebody wrote down, beside what is really there.

use std::collections::BTreeSet;

use super::evaluate::Laid;
use super::report::WrittenBeside;
use super::words::Finding;
use crate::memory::vllm::Gpu;
use crate::memory::vllm::search::Question;
use crate::memory::vllm::tenancy::{SharedGpu, Sharing};
use crate::placement::Facts;
use crate::placement::gpus::{Prepared, prepared::arguments};
use crate::spec::Written;
use crate::units::Bytes;

impl Laid<'_> {
    /// A sum that was written down beside what is really there, before the newcomer.
    pub(super) fn beside(&self, written: Written) -> Option<WrittenBeside> {
        let runs: BTreeSet<&str> =
            self.running.iter().map(|(running, _)| running.deployment.model.as_str()).collect();
        let newcomer =
            self.wanted.iter().find(|one| !runs.contains(one.deployment.model.as_str()))?;
        let node = self.nodes.iter().position(|node| newcomer.deployment.nodes.matches(node))?;
        let gpus = &self.layout.nodes[node].likely;
        let models = self.models_of_instances();
        let is_newcomer =
            |name: &str| models.get(name) == Some(&newcomer.deployment.model.as_str());
        let residents = |gpu: &SharedGpu| -> Bytes {
            let engines = gpu.engines.iter();
            let others = engines.filter(|(name, _)| !is_newcomer(name));
            others.map(|(_, bytes)| *bytes).sum::<Bytes>() + gpu.foreign
        };
        let free: Vec<Bytes> = gpus.iter().map(|gpu| gpu.total - residents(gpu)).collect();
        let free_gb = free.iter().map(|bytes| bytes.as_mib() / 1000.0).sum();
        let one = free.iter().copied().max().unwrap_or_default();
        let needed = self.needs(newcomer, node);
        let missing = &self.layout.missing;
        let is_placed = !missing
            .iter()
            .any(|one| self.wanted[one.deployment].deployment.model == newcomer.deployment.model);
        let reckoned = written.free_gb.or(written.margin_gb).unwrap_or_default();
        let refused = missing
            .iter()
            .find(|one| self.wanted[one.deployment].deployment.model != newcomer.deployment.model);
        let finding = match refused {
            Some(refused) => Finding::SumRestsOnRefused {
                deployment: self.wanted[refused.deployment].deployment.name.clone(),
                verdict: refused.verdict.as_str(),
            },
            None if is_placed => Finding::SumHolds { written_gb: reckoned, gb: free_gb },
            None => Finding::SummedUp { written_gb: reckoned, gpus: free.len(), one, needed },
        };
        Some(WrittenBeside {
            written,
            node: self.nodes[node].name.clone(),
            free_gb,
            free_bytes_of_one_gpu: one,
            needed_bytes_of_one_gpu: needed,
            finding,
        })
    }

    /// What a deployment needs of each GPU of an empty node to serve one request of its longest
    /// length.
    fn needs(&self, wanted: &Prepared<'_>, node: usize) -> Option<Bytes> {
        let gpus = &self.gpus[node];
        let count = wanted.gpus_of(gpus.len());
        let empty: Vec<Gpu> = gpus.iter().map(|gpu| gpu.with_others(Bytes::ZERO)).collect();
        if let Facts::Transformer(model) = &wanted.located.facts {
            let args = arguments(&wanted.deployment.flags);
            let here = empty.get(..count)?;
            let engine = self.cluster.engine;
            let question = Question { model, args: &args, gpus: here, engine };
            let tokens = args["max_model_len"].as_u64().unwrap_or(model.max_position);
            let found = question.smallest_utilization(1, tokens)?;
            return found.fit.stages.iter().map(|stage| stage.peak).max();
        }
        let mut sharing = Sharing::new(&empty);
        let name = &wanted.deployment.name;
        let started = wanted.start(name, 0, &empty, &mut sharing, &self.cluster.engine);
        started.bytes.into_iter().max()
    }
}
