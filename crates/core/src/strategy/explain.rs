//! Why a model is where it is, why it isn't elsewhere, and what is in the way: one more instance of it
//! is tried on every node as the plan leaves it.

use serde::Serialize;

use super::evaluate::{Cluster, Laid, lay};
use crate::memory::vllm::tenancy::{SharedGpu, Sharing};
use crate::placement::PlanError;
use crate::placement::gpus::{Prepared, Rules, layout};
use crate::spec::Spec;
use crate::units::Bytes;

/// What is said of a deployment on a node, or on several that are alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The deployment.
    pub deployment: String,
    /// The nodes.
    pub nodes: Vec<String>,
    /// Whether it is there.
    pub is_here: bool,
    /// Why, or why not.
    pub text: String,
}

/// Explains a model, or what is on a node; nothing where there is neither of that name.
///
/// # Errors
/// Where nothing is known of a model.
pub fn explain(
    spec: &Spec,
    cluster: &Cluster<'_>,
    what: &str,
) -> Result<Vec<Explanation>, PlanError> {
    lay(cluster, spec, |laid| explain_laid(laid, what))
}

fn explain_laid(laid: &Laid<'_>, what: &str) -> Vec<Explanation> {
    let mut found: Vec<Explanation> = Vec::new();
    for (index, one) in laid.wanted.iter().enumerate() {
        let is_meant = one.deployment.model == what || one.deployment.name == what;
        for (at, node) in laid.nodes.iter().enumerate() {
            if !is_meant && node.name != what {
                continue;
            }
            let (is_here, text) = laid.why(index, one, at);
            let same = |known: &&mut Explanation| {
                known.deployment == one.deployment.name
                    && known.is_here == is_here
                    && known.text == text
            };
            match found.iter_mut().find(same) {
                Some(known) => known.nodes.push(node.name.clone()),
                None => found.push(Explanation {
                    deployment: one.deployment.name.clone(),
                    nodes: vec![node.name.clone()],
                    is_here,
                    text,
                }),
            }
        }
    }
    found
}

impl Laid<'_> {
    fn why(&self, index: usize, wanted: &Prepared<'_>, node: usize) -> (bool, String) {
        if let Some(seat) = self.layout.on(node).find(|one| one.deployment == index) {
            let gpus: Vec<String> = seat.range().map(|gpu| gpu.to_string()).collect();
            let bytes = seat.started.bytes.first().copied().unwrap_or_default();
            let why = match seat.is_kept {
                true => "it runs there as it is wanted, so it stays",
                false => "it is where most was free of the nodes that it may use",
            };
            return (true, format!("{why}: GPU {}, {bytes} of each", gpus.join(", ")));
        }
        let Prepared { deployment, .. } = wanted;
        if !deployment.nodes.matches(&self.nodes[node]) {
            return (false, format!("the spec keeps it to {}", deployment.nodes));
        }
        if let Some(broken) = self.rules().broken(deployment, &self.nodes[node]) {
            return (false, broken);
        }
        let placed = self.layout.seats.iter().filter(|one| one.deployment == index).count();
        match self.one_more(wanted, node) {
            Ok(()) if placed as u64 >= u64::from(deployment.replicas.max) => {
                (false, format!("it would start, but it has its {placed} instances elsewhere"))
            }
            Ok(()) => (false, "it would start there too".to_owned()),
            Err(message) => {
                let held = self.in_the_way(wanted, node);
                (false, format!("{message} In the way: {held}"))
            }
        }
    }

    /// How many of which model are in each failure domain.
    fn rules(&self) -> Rules {
        let mut rules = Rules::new(self.wanted);
        for seat in &self.layout.seats {
            rules.add(&self.wanted[seat.deployment].deployment.model, &self.nodes[seat.node]);
        }
        rules
    }

    /// Starts one more on a node as the plan leaves it, on the GPUs that are freest.
    fn one_more(&self, wanted: &Prepared<'_>, node: usize) -> Result<(), String> {
        let gpus = &self.gpus[node];
        let mut sharing = Sharing::new(gpus);
        for (index, gpu) in self.layout.nodes[node].likely.iter().enumerate() {
            for (name, bytes) in &gpu.engines {
                let mut held = vec![Bytes::ZERO; index];
                held.push(*bytes);
                sharing.hold(name, &held);
            }
        }
        let count = wanted.gpus_of(gpus.len());
        let free = sharing.free();
        let least = |first: &usize| free.get(*first..*first + count)?.iter().min().copied();
        let freest = wanted.windows(gpus.len()).into_iter();
        let freest = freest.max_by_key(|first| (least(first), std::cmp::Reverse(*first)));
        let Some(first) = freest else {
            return Err("it is kept to GPUs that this node doesn't have side by side.".to_owned());
        };
        let name = &wanted.deployment.name;
        let started = wanted.start(name, first, gpus, &mut sharing, &self.cluster.engine);
        let held: Bytes = self.layout.on(node).map(|seat| seat.started.host.0).sum();
        let needs = started.host.0;
        match layout::host(&self.nodes[node]).map(|host| host - held) {
            _ if !started.verdict.is_ready() => {
                Err(started.message.unwrap_or_else(|| started.verdict.as_str().to_owned()))
            }
            Some(left) if needs > left => {
                Err(format!("it takes {needs} of host memory, and {left} are left."))
            }
            _ => Ok(()),
        }
    }

    fn in_the_way(&self, wanted: &Prepared<'_>, node: usize) -> String {
        let held = |(index, gpu): (usize, &SharedGpu)| {
            let engines = gpu.engines.iter().map(|(name, bytes)| format!("{name} {bytes}"));
            let engines: Vec<String> = engines.collect();
            (!engines.is_empty()).then(|| format!("GPU {index}: {}", engines.join(" + ")))
        };
        let gpus = self.layout.nodes[node].likely.iter().enumerate();
        let all: Vec<String> = gpus.filter_map(held).collect();
        match all.is_empty() {
            true => format!("nothing but the size of {}", wanted.deployment.name),
            false => all.join("; "),
        }
    }
}
