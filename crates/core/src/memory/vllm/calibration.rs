//! What is fitted, as data with its source, each figure with a band.
//!
//! An entry says for which GPUs, versions, families and layouts it holds. Where several do, later and
//! so more special ones replace single terms of earlier ones; a user's own come last. No entry can
//! touch a term that is derived.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::communicators::Transport;
use super::version::{self, Version};
use crate::model::hf_config::{Family, Transformer};

/// Everything that is fitted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Calibration {
    /// The entries, the most general first.
    pub entries: Vec<Entry>,
}

/// What was measured, and where it holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Kinds of GPU; empty for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<String>,
    /// A version's first two numbers; all where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_version: Option<String>,
    /// A family of models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// For which layouts over several GPUs it holds; for all, one GPU included, where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel: Option<Parallel>,
    /// How the GPUs are linked; for all where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    /// Only models with experts, or only those without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<bool>,
    /// What was measured.
    pub source: String,
    /// Figures in MiB, by name.
    pub terms: BTreeMap<Term, Band>,
}

/// How a model is spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parallel {
    /// Each layer over several GPUs.
    Tensor,
    /// Layers one after the other.
    Pipeline,
    /// Either.
    Any,
}

/// What can be fitted. All else is derived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Term {
    /// The CUDA context before the first snapshot: total less free.
    Context,
    /// What a context takes less where another process has one on the device already.
    ContextShared,
    /// Modules loaded between vLLM's snapshots: "non-torch memory".
    NonTorch,
    /// Kernels loaded after profiling.
    LateKernels,
    /// Kernels loaded by the first requests.
    FirstRequests,
    /// What is there beside torch's segments at the peak of loading, context excluded.
    WhileLoading,
    /// An executable graph.
    GraphExecutable,
    /// A layer in a graph of a whole pass.
    GraphLayer,
    /// NCCL's first communicator before the first snapshot, its kernels included.
    Communicators,
    /// Each of its communicators after the first.
    FurtherCommunicator,
    /// Links of the first pipeline stage to the next, made by the first pass.
    LinksFirst,
    /// Links of a stage to both neighbours.
    LinksMiddle,
    /// Links of the last stage to the one before.
    LinksLast,
    /// Workspaces of communicators that the profile counts.
    CommunicatorsCharged,
    /// What is left of a capture within the profile, where ranks add up.
    CaptureCharged,
    /// What compiling and capturing leave in the allocator's cache.
    AfterCapture,
    /// What graphs took beyond the model's figure; may be negative.
    GraphsOffset,
    /// Host memory of the API server.
    HostServer,
    /// Host memory of the engine's core.
    HostCore,
    /// Host memory of a worker.
    HostWorker,
    /// What compiling and capturing add to a worker's.
    HostGraphs,
    /// What images add to the API server's and the core's.
    HostImages,
    /// What images add to a worker's.
    HostWorkerImages,
}

impl Term {
    const COUNT: usize = Self::HostWorkerImages as usize + 1;
}

/// A figure in MiB and how far it may be off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Band {
    /// None.
    #[serde(skip)]
    #[default]
    Absent,
    /// One figure, measured on this very thing.
    Exactly(f64),
    /// Lowest, likeliest and highest.
    Within(f64, f64, f64),
}

/// Which end of the bands an answer is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Estimate {
    /// As little as can be.
    Low,
    /// The likeliest.
    #[default]
    Likely,
    /// As much as can be: what a plan uses.
    High,
}

impl Band {
    fn bytes(self, estimate: Estimate) -> i64 {
        let mib = match (self, estimate) {
            (Self::Absent, _) => 0.0,
            (Self::Exactly(mib), _)
            | (Self::Within(mib, _, _), Estimate::Low)
            | (Self::Within(_, mib, _), Estimate::Likely)
            | (Self::Within(_, _, mib), Estimate::High) => mib,
        };
        (mib * f64::from(1 << 20)) as i64
    }

    /// Whether it says less than a log with two decimals does.
    fn is_wide(self) -> bool {
        const ROUNDING_MIB: f64 = 11.0;
        matches!(self, Self::Within(low, _, high) if high - low > ROUNDING_MIB)
    }

    fn is_usable(self) -> bool {
        const MOST_MIB: f64 = 1e7;
        let is_figure = |mib: f64| mib.is_finite() && mib.abs() < MOST_MIB;
        match self {
            Self::Absent => true,
            Self::Exactly(mib) => is_figure(mib),
            Self::Within(low, likely, high) => {
                [low, likely, high].into_iter().all(is_figure) && low <= likely && likely <= high
            }
        }
    }
}

/// The fitted figures for one start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Constants<'a> {
    bands: [Band; Term::COUNT],
    sources: [&'a str; Term::COUNT],
    estimate: Estimate,
}

/// Terms of which a band means that the card or the layout was not measured.
const SETTLED_BY: [Term; 7] = [
    Term::Context,
    Term::NonTorch,
    Term::Communicators,
    Term::CommunicatorsCharged,
    Term::LinksFirst,
    Term::LinksMiddle,
    Term::LinksLast,
];
/// Terms that only a pipeline has.
const OF_PIPELINES: [Term; 3] = [Term::LinksFirst, Term::LinksMiddle, Term::LinksLast];

impl Constants<'_> {
    /// Bytes of a term; zero where there is none.
    pub fn get(&self, term: Term) -> u64 {
        self.signed(term).max(0).unsigned_abs()
    }

    /// Bytes of a term that can be negative.
    pub fn signed(&self, term: Term) -> i64 {
        self.bands[term as usize].bytes(self.estimate)
    }

    /// Where a term's figure is from.
    pub fn source(&self, term: Term) -> &str {
        self.sources[term as usize]
    }

    /// Whether this card and layout were measured, so that there is no band.
    pub fn is_measured(&self) -> bool {
        !SETTLED_BY.iter().any(|term| self.bands[*term as usize].is_wide())
    }
}

/// What an entry is looked up by.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The name of the kind of GPU, where it is known.
    pub gpu: Option<&'a str>,
    /// vLLM's version.
    pub version: Version,
    /// The model.
    pub model: &'a Transformer,
    /// GPUs a layer is spread over.
    pub tensor_parallel: u64,
    /// Pipeline stages.
    pub stages: usize,
    /// How the GPUs are linked.
    pub transport: Transport,
}

static BUILTIN: LazyLock<Calibration> = LazyLock::new(|| {
    // The data is part of the program; a test reads it.
    serde_json::from_str(include_str!("../../../data/vllm-calibration.json")).unwrap_or_default()
});

impl Calibration {
    /// What comes with berth.
    pub fn builtin() -> &'static Self {
        &BUILTIN
    }

    /// What comes with berth, then a user's own.
    #[must_use]
    pub fn with(mut own: Self) -> Self {
        let mut entries = BUILTIN.entries.clone();
        entries.append(&mut own.entries);
        Self { entries }
    }

    /// What is wrong with an entry, in words.
    pub fn problem(&self) -> Option<String> {
        self.entries.iter().find_map(|entry| {
            let version = entry.engine_version.as_deref();
            if let Some(text) = version.filter(|text| version::parse(text).is_none()) {
                return Some(format!("{}: `{text}` is no version", entry.source));
            }
            let bad = entry.terms.iter().find(|(_, band)| !band.is_usable())?;
            Some(format!(
                "{}: {:?} must be MiB, or lowest, likeliest and highest of them",
                entry.source, bad.0
            ))
        })
    }

    /// Adds an entry, or replaces the terms of the one that is for the same.
    pub fn add(&mut self, entry: Entry) {
        let same = |other: &&mut Entry| {
            other.gpus == entry.gpus
                && other.engine_version == entry.engine_version
                && other.family == entry.family
                && other.parallel == entry.parallel
                && other.transport == entry.transport
                && other.experts == entry.experts
        };
        match self.entries.iter_mut().find(same) {
            Some(known) => {
                known.terms.extend(entry.terms);
                known.source = entry.source;
            }
            None => self.entries.push(entry),
        }
    }

    /// The figures for a start.
    pub fn constants(&self, subject: &Subject<'_>, estimate: Estimate) -> Constants<'_> {
        let (bands, sources) = ([Band::Absent; Term::COUNT], ["no measurement"; Term::COUNT]);
        let mut constants = Constants { bands, sources, estimate };
        for entry in self.entries.iter().filter(|entry| entry.is_for(subject)) {
            for (term, band) in &entry.terms {
                constants.bands[*term as usize] = *band;
                constants.sources[*term as usize] = &entry.source;
            }
        }
        if subject.stages < 2 {
            for term in OF_PIPELINES {
                constants.bands[term as usize] = Band::Absent;
            }
        }
        constants
    }
}

impl Entry {
    fn is_for(&self, subject: &Subject<'_>) -> bool {
        let is_gpu = || subject.gpu.is_some_and(|name| self.gpus.iter().any(|gpu| gpu == name));
        let version = self.engine_version.as_deref().map(version::parse);
        let is_parallel = |parallel| match parallel {
            Parallel::Tensor => subject.tensor_parallel > 1,
            Parallel::Pipeline => subject.stages > 1 && subject.tensor_parallel == 1,
            Parallel::Any => subject.stages > 1 || subject.tensor_parallel > 1,
        };
        (self.gpus.is_empty() || is_gpu())
            && version.is_none_or(|version| version == Some(subject.version))
            && self.family.is_none_or(|family| family == subject.model.family)
            && self.parallel.is_none_or(is_parallel)
            && self.transport.is_none_or(|transport| transport == subject.transport)
            && self.experts.is_none_or(|experts| experts == subject.model.experts.is_some())
    }
}
