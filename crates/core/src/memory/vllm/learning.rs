//! From what vLLM logged of a start to calibration. Only fitted terms are learnt; a derived one that
//! disagrees is shown, and stays.

use std::collections::BTreeMap;

use serde::Serialize;

use super::calibration::{Band, Entry, Parallel, Term};
use super::{Gpu, StageFit, VllmFit};
use crate::memory::TermKind;
use crate::model::hf_config::Transformer;

/// What vLLM logged of one start; GiB as they stand there, two decimals.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StartLog {
    /// vLLM's version, as in `0.26.0`.
    pub engine_version: Option<String>,
    /// `tensor_parallel_size`.
    pub tensor_parallel: Option<u64>,
    /// `pipeline_parallel_size`.
    pub stages: Option<u64>,
    /// "Free memory on device": free and total.
    pub free_and_total_gib: Option<(f64, f64)>,
    /// "Model loading took".
    pub weights_gib: Option<f64>,
    /// "peak activation".
    pub activation_peak_gib: Option<f64>,
    /// "non-torch memory", up to 0.26.
    pub non_torch_gib: Option<f64>,
    /// "consumed memory", from 0.27.
    pub consumed_gib: Option<f64>,
    /// "CUDAGraph memory".
    pub cuda_graphs_gib: Option<f64>,
    /// "Available KV cache memory".
    pub kv_cache_gib: Option<f64>,
    /// "GPU KV cache size".
    pub kv_cache_tokens: Option<u64>,
}

/// A figure that was logged, beside the model's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// What it is.
    pub name: &'static str,
    /// In GiB, or tokens.
    pub logged: f64,
    /// The model's.
    pub predicted: f64,
    /// Whether the model derives it or fits it.
    pub kind: TermKind,
    /// What is learnt from it.
    pub learnt: Option<Term>,
}

/// A context beyond this much more than the model's is taken for a neighbour's memory.
const NEIGHBOUR_GIB: f64 = 0.4;
/// The log's two decimals.
const ROUNDING_GIB: f64 = 0.005;
/// How far the weights may be off before a log is of something else.
const SAME_MODEL: f64 = 0.01;

/// What is learnt from a log.
#[derive(Clone, Debug, PartialEq)]
pub struct Lesson {
    /// Every figure beside the model's.
    pub compared: Vec<Compared>,
    /// What is new; none where all is known already or nothing was logged.
    pub entry: Option<Entry>,
    /// Why the log is not of this start, so that nothing is learnt.
    pub mismatch: Option<String>,
}

/// Compares a log with `fit`, the answer for the same start by what comes with berth, and learns what is
/// fitted.
pub fn learn(
    log: &StartLog,
    fit: &VllmFit,
    model: &Transformer,
    gpu: &Gpu,
    source: String,
) -> Lesson {
    let stage = fit.stages.iter().max_by_key(|stage| stage.served).cloned().unwrap_or_default();
    let mut lesson = Learning { terms: BTreeMap::new(), compared: derived(log, fit, &stage) };
    let is_parallel = log.tensor_parallel.unwrap_or(1) > 1 || log.stages.unwrap_or(1) > 1;
    let of = |term: &str| gib(stage.terms.get(term).0);
    // Over several GPUs it is the communicators that differ; one GPU has told the rest.
    let seen = log.free_and_total_gib.map(|(free, total)| total - free);
    let before = ["context", "communicators", "further_communicators", "all_reduce_buffers"];
    let before = before.map(of).iter().sum::<f64>();
    let own = seen.filter(|seen| *seen > 0.0 && *seen < before + NEIGHBOUR_GIB);
    match is_parallel {
        true => {
            let rest = before - of("communicators");
            lesson.fitted("context", own, before, Term::Communicators, rest);
        }
        false => lesson.fitted("context", own, before, Term::Context, 0.0),
    }
    let charged = of("non_torch") + of("communicators_charged");
    let segments = ["weights", "weight_segments", "sampler_state"].map(of).iter().sum::<f64>();
    let (term, rest) = match is_parallel {
        true => (Term::CommunicatorsCharged, of("non_torch")),
        false => (Term::NonTorch, 0.0),
    };
    match log.non_torch_gib {
        Some(_) => lesson.fitted("non-torch", log.non_torch_gib, charged, term, rest),
        // From 0.27 on it is logged with PyTorch's segments, the sampler's state included.
        None => {
            lesson.fitted("consumed", log.consumed_gib, segments + charged, term, rest + segments);
        }
    }
    let graphs = gib(stage.cuda_graphs.0);
    let logged = log.cuda_graphs_gib.filter(|_| graphs > 0.0);
    lesson.fitted("CUDA graphs", logged, graphs, Term::GraphsOffset, graphs);
    let mismatch = mismatch(log, fit, &stage, gpu);
    let entry = subject(log, model, gpu, source).filter(|_| mismatch.is_none());
    let Learning { terms, compared } = lesson;
    let entry = entry.map(|entry| Entry { terms, ..entry }).filter(|entry| !entry.terms.is_empty());
    Lesson { compared, entry, mismatch }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// What is gathered on the way.
struct Learning {
    terms: BTreeMap<Term, Band>,
    compared: Vec<Compared>,
}

impl Learning {
    /// A logged figure; what is left of it beyond `rest` is the term. One that the model meets to the
    /// log's rounding teaches nothing.
    fn fitted(
        &mut self,
        name: &'static str,
        logged: Option<f64>,
        predicted: f64,
        term: Term,
        rest: f64,
    ) {
        let Some(logged) = logged else { return };
        let is_news = (logged - predicted).abs() > ROUNDING_GIB;
        let learnt = is_news.then_some(term);
        if is_news {
            let mib = |gib: f64| gib * 1024.0;
            let value = logged - rest;
            let low = if term == Term::GraphsOffset { value } else { value.max(0.0) };
            let around = [low - ROUNDING_GIB, low, low + ROUNDING_GIB].map(mib);
            self.terms.insert(term, Band::Within(around[0], around[1], around[2]));
        }
        let kind = TermKind::Calibrated;
        self.compared.push(Compared { name, logged, predicted, kind, learnt });
    }
}

/// The figures that are derived, and those that follow from all others.
fn derived(log: &StartLog, fit: &VllmFit, stage: &StageFit) -> Vec<Compared> {
    let cache = stage.kv_cache as f64 / f64::from(1 << 30);
    let tokens = log.kv_cache_tokens.map(|tokens| tokens as f64);
    let figures = [
        ("weights", log.weights_gib, gib(stage.weights.0), TermKind::Exact),
        ("peak activation", log.activation_peak_gib, gib(stage.activation_peak.0), TermKind::Exact),
        ("KV cache", log.kv_cache_gib, cache, TermKind::Calibrated),
        ("KV cache tokens", tokens, fit.kv_cache_tokens as f64, TermKind::Calibrated),
    ];
    figures
        .into_iter()
        .filter_map(|(name, logged, predicted, kind)| {
            Some(Compared { name, logged: logged?, predicted, kind, learnt: None })
        })
        .collect()
}

/// Why a log is not of this start.
fn mismatch(log: &StartLog, fit: &VllmFit, stage: &StageFit, gpu: &Gpu) -> Option<String> {
    let weights = gib(stage.weights.0);
    let off = log
        .weights_gib
        .filter(|logged| (logged - weights).abs() > SAME_MODEL * weights + ROUNDING_GIB);
    if let Some(logged) = off {
        return Some(format!("it loaded {logged:.2} GiB of weights, the model has {weights:.2}"));
    }
    let (tensor, stages) = (log.tensor_parallel.unwrap_or(1), log.stages.unwrap_or(1));
    if stages != fit.stages.len() as u64 || tensor != fit.tensor_parallel {
        return Some(format!(
            "it ran with tensor_parallel_size {tensor} and pipeline_parallel_size {stages}, the flags say \
             {} and {}",
            fit.tensor_parallel,
            fit.stages.len()
        ));
    }
    let total = gib(gpu.total.0);
    let (free, logged_total) = log.free_and_total_gib?;
    if (logged_total - total).abs() > 0.02 * total || !(0.0..=logged_total).contains(&free) {
        return Some(format!("it ran on a GPU of {logged_total:.2} GiB, this kind has {total:.2}"));
    }
    let taken = [log.non_torch_gib, log.consumed_gib, log.cuda_graphs_gib];
    let absurd = taken.into_iter().flatten().find(|value| !(0.0..=total).contains(value));
    absurd.map(|value| format!("{value} GiB is more than there is"))
}

/// What an entry is for: this kind of GPU, version, family and layout.
fn subject(log: &StartLog, model: &Transformer, gpu: &Gpu, source: String) -> Option<Entry> {
    let (major, minor) = super::version::parse(log.engine_version.as_deref()?)?;
    let parallel = match (log.tensor_parallel.unwrap_or(1), log.stages.unwrap_or(1)) {
        (1, 1) => None,
        (1, _) => Some(Parallel::Pipeline),
        _ => Some(Parallel::Tensor),
    };
    Some(Entry {
        gpus: vec![gpu.kind?.name.clone()],
        engine_version: Some(format!("{major}.{minor}")),
        family: Some(model.family),
        parallel,
        source,
        ..Entry::default()
    })
}
