//! What comes out of a strategy, and of all of them together.

use schemars::JsonSchema;
use serde::Serialize;

use super::words::Finding;
use crate::digest::Digest;
use crate::inventory::DeviceId;
use crate::perf::Estimate;
use crate::spec::Written;
use crate::units::Bytes;

/// All strategies side by side.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The plan of the one that is recommended.
    pub plan_digest: Option<Digest>,
    /// The one that is recommended; none where nothing fits.
    pub recommended: Option<String>,
    /// Why it is.
    pub reasons: Vec<Finding>,
    /// The next best.
    pub runner_up: Option<String>,
    /// What would make the next best win.
    pub runner_up_wins: Vec<Finding>,
    /// What runs today.
    pub today: Option<StrategyReport>,
    /// The strategies: those of the spec in its order, then those that were found.
    pub strategies: Vec<StrategyReport>,
}

impl Comparison {
    /// Whether all speeds in it were fitted.
    pub fn is_calibrated(&self) -> bool {
        !self.strategies.is_empty() && self.strategies.iter().all(|one| one.is_calibrated)
    }
}

/// Whether a strategy works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StrategyVerdict {
    /// Everything starts and stays, with what shall stay free to spare.
    Fits,
    /// It likely starts, but not at the pessimistic end of what is known, or with less than that.
    Tight,
    /// Something doesn't start, or has no place.
    Impossible,
}

/// What becomes of one strategy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StrategyReport {
    /// Its name.
    pub name: String,
    /// What it is, in a line.
    pub title: Option<String>,
    /// Whether berth found it, rather than somebody who wrote it into the spec.
    pub is_found: bool,
    /// Its text, to be put into the spec; none where it is there already.
    pub toml: Option<String>,
    /// Whether it works.
    pub verdict: StrategyVerdict,
    /// Why, in bytes, with the engines' own words.
    pub reasons: Vec<Finding>,
    /// What somebody else reckoned, and where that goes wrong.
    pub written: Option<WrittenBeside>,
    /// Every GPU.
    pub gpus: Vec<GpuReport>,
    /// The least that is left on any GPU that the strategy changes, and where.
    pub worst: Option<Worst>,
    /// Every model.
    pub models: Vec<ModelReport>,
    /// Whether the speeds were fitted to a load test on every kind of GPU; else they are a guess within
    /// their band.
    pub is_calibrated: bool,
    /// Instances that run today and are stopped or start anew.
    pub restarts: u32,
    /// Seconds until the last of them is back, one start after the other on each GPU. Not calibrated.
    pub restart_seconds: Estimate,
    /// What makes it more than a change of a number; none is the least.
    pub complexity: Vec<Finding>,
    /// The digest of what would run.
    pub plan_digest: Digest,
    /// What the integer program came to, where it was asked.
    pub solver: Option<SolverReport>,
}

/// The least that is left on a GPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Worst {
    /// The node.
    pub node: String,
    /// The GPU.
    pub gpu: DeviceId,
    /// What is left, starts included.
    pub headroom_bytes: Bytes,
    /// What is left at the pessimistic end.
    pub headroom_bytes_low: Bytes,
    /// What shall stay free of it.
    pub kept_free_bytes: Bytes,
}

/// A sum that was written down, and what it really is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WrittenBeside {
    /// What was written.
    pub written: Written,
    /// The node that it is about.
    pub node: String,
    /// What is left on all its GPUs together before the newcomer: the sum that was meant, in thousands of
    /// MiB, as sums over nvidia-smi's figures are.
    pub free_gb: f64,
    /// What is left on the emptiest of its GPUs: all that a model on one GPU can have.
    pub free_bytes_of_one_gpu: Bytes,
    /// What the newcomer needs on the GPU that it takes most of, alone on it; none where it can't
    /// start even alone.
    pub needed_bytes_of_one_gpu: Option<Bytes>,
    /// Where it goes wrong.
    pub finding: Finding,
}

/// One GPU under a strategy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GpuReport {
    /// The node.
    pub node: String,
    /// The GPU.
    pub gpu: DeviceId,
    /// All its memory, as CUDA sees it.
    pub total_bytes: Bytes,
    /// What all hold together after load.
    pub planned_bytes: Bytes,
    /// What is left at the fullest moment, starts included.
    pub headroom_bytes: Bytes,
    /// Each instance.
    pub instances: Vec<GpuShare>,
}

/// What an instance holds of a GPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GpuShare {
    /// The model.
    pub model: String,
    /// The instance.
    pub instance: String,
    /// Its bytes.
    pub bytes: Bytes,
}

/// A model under a strategy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelReport {
    /// Its name.
    pub name: String,
    /// Instances that have a place.
    pub instances: u32,
    /// Tokens that all their caches hold.
    pub kv_cache_tokens: u64,
    /// Requests of the longest length that they hold at once.
    pub max_concurrency: f64,
    /// The tokens of the instance with the smallest cache.
    pub smallest_kv_cache_tokens: u64,
    /// Tokens of answers a second under full load, all instances together.
    pub tokens_per_second: Estimate,
    /// The same as a part of today's.
    pub capacity: Option<f64>,
    /// Requests a second that were asked for and can't be served.
    pub unserved_requests_per_second: f64,
}

/// What the integer program came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SolverReport {
    /// GPUs that are taken.
    pub objective: f64,
    /// GPUs that are needed whatever one does: proven.
    pub bound: f64,
    /// How far the objective may be above the best there is, as a part of it.
    pub gap: f64,
    /// Milliseconds that it took; measured by who asked.
    pub ms: f64,
}
