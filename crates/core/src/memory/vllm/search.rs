//! From what is wanted to the arguments that give it, by searching the model: each probe is a whole
//! [`fit`], some tens of microseconds.

use std::ops::RangeInclusive;

use serde::Serialize;
use serde_json::{Value, json};

use super::args::DEFAULT_UTILIZATION;
use super::{Engine, Gpu, VllmFit, blocks_for, fit};
use crate::memory::Verdict;
use crate::model::hf_config::Transformer;
use crate::units::Bytes;

/// Layouts are tried for no more GPUs than this: beyond, they are the same again.
const MOST_GPUS: u64 = 32;
/// Fractions are searched in steps of this.
const STEPS: u64 = 1000;

/// A model on GPUs, for which arguments are sought. The arguments given stay as they are, but for the
/// one that is sought.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The model.
    pub model: &'a Transformer,
    /// Its arguments, by vLLM's own names.
    pub args: &'a Value,
    /// The GPUs that it may use; the fullest stands for all in [`layouts`](Self::layouts).
    pub gpus: &'a [Gpu],
    /// The engine.
    pub engine: Engine<'a>,
}

/// An argument's value and what it gives.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Found<T> {
    /// The value.
    pub value: T,
    /// The answer with it.
    pub fit: VllmFit,
}

/// A way to lay a model out, and what becomes of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Layout {
    /// `tensor_parallel_size`.
    pub tensor_parallel_size: u64,
    /// `pipeline_parallel_size`.
    pub pipeline_parallel_size: u64,
    /// `quantization`; none where weights stay as they are.
    pub quantization: Option<&'static str>,
    /// `gpu_memory_utilization`, where it wasn't given and had to be found.
    pub gpu_memory_utilization: Option<f64>,
    /// The answer.
    pub fit: VllmFit,
}

impl Question<'_> {
    /// The arguments with some of them replaced.
    pub fn args_with(&self, changes: &[(&str, Value)]) -> Value {
        let mut args = if self.args.is_object() { self.args.clone() } else { json!({}) };
        for (name, value) in changes {
            args[*name] = value.clone();
        }
        args
    }

    /// The answer with some arguments replaced.
    pub fn with(&self, changes: &[(&str, Value)]) -> VllmFit {
        fit(self.model, &self.args_with(changes), self.gpus, &self.engine)
    }

    fn at(&self, step: u64) -> VllmFit {
        self.with(&[("gpu_memory_utilization", json!(share(step)))])
    }

    /// The smallest `gpu_memory_utilization` whose cache holds `requests` requests of `tokens` tokens
    /// at once. Where no `max_model_len` is given, it is `tokens`.
    pub fn smallest_utilization(&self, requests: u64, tokens: u64) -> Option<Found<f64>> {
        let args = match self.args["max_model_len"].is_null() {
            true => self.args_with(&[("max_model_len", json!(tokens))]),
            false => self.args.clone(),
        };
        let sized = Question { args: &args, ..*self };
        let each = blocks_for(self.model, &args, self.gpus.first()?, &self.engine, tokens)?;
        let enough = |fit: &VllmFit| {
            fit.verdict.is_ready() && fit.kv_cache_blocks >= each.saturating_mul(requests)
        };
        let steps = sized.starting_steps()?;
        let last = *steps.end();
        let step = partition_point(steps, |step| !enough(&sized.at(step)));
        (step <= last).then(|| Found { value: share(step), fit: sized.at(step) })
    }

    /// The steps of `gpu_memory_utilization` that start: below, too little is left for the cache;
    /// above, more is asked for than there is.
    fn starting_steps(&self) -> Option<RangeInclusive<u64>> {
        let is_too_little = |step: u64| {
            let verdict = self.at(step).verdict;
            matches!(verdict, Verdict::NoMemoryForKvCache | Verdict::MaxModelLenTooLong)
        };
        let first = partition_point(1..=STEPS, is_too_little);
        let last = partition_point(first..=STEPS, |step| self.at(step).verdict.is_ready()) - 1;
        (first <= last).then_some(first..=last)
    }

    /// The `gpu_memory_utilization` that starts and is nearest to the one given.
    pub fn nearest_utilization(&self) -> Option<f64> {
        let given = self.args["gpu_memory_utilization"].as_f64().unwrap_or(DEFAULT_UTILIZATION);
        let steps = self.starting_steps()?;
        let step = ((given * STEPS as f64) as u64).clamp(*steps.start(), *steps.end());
        Some(share(step))
    }

    /// The largest `gpu_memory_utilization` with which `bytes` stay free on every GPU, whatever the
    /// engine does.
    pub fn largest_utilization_leaving(&self, bytes: Bytes) -> Option<Found<f64>> {
        let leaves = |fit: &VllmFit| {
            let most = fit.stages.iter().map(|stage| stage.peak).max().unwrap_or_default();
            let full = |gpu: &Gpu| gpu.used_by_others + most + bytes <= gpu.total;
            fit.verdict.is_ready() && self.gpus.iter().all(full)
        };
        let steps = self.starting_steps()?;
        let first = *steps.start();
        let step = partition_point(steps, |step| leaves(&self.at(step))) - 1;
        (step >= first).then(|| Found { value: share(step), fit: self.at(step) })
    }

    /// The largest `max_model_len` that starts, up to the model's own.
    pub fn largest_length(&self) -> Option<Found<u64>> {
        let of = |length: u64| self.with(&[("max_model_len", json!(length))]);
        let starts = |length: u64| of(length).verdict.is_ready();
        let length = partition_point(1..=self.model.max_position, starts) - 1;
        (length > 0).then(|| Found { value: length, fit: of(length) })
    }

    /// Every way to spread and quantise the model over up to `gpus` of these GPUs, those that start
    /// first, with most tokens first.
    pub fn layouts(&self, gpus: u64) -> Vec<Layout> {
        let methods: &[Option<&str>] = match self.model.quantization {
            None => &[None, Some("fp8")],
            Some(_) => &[None],
        };
        let gpus = gpus.min(MOST_GPUS);
        let fullest: Vec<Gpu> = self
            .gpus
            .iter()
            .min_by_key(|gpu| gpu.total - gpu.used_by_others)
            .copied()
            .into_iter()
            .collect();
        // What can't be divided is shown for a few GPUs, where people try it.
        let is_worth_it = |ranks: &u64| *ranks <= 8 || self.model.heads.is_multiple_of(*ranks);
        let mut layouts = Vec::new();
        for tensor_parallel_size in (1..=gpus).filter(is_worth_it) {
            let stages = (gpus / tensor_parallel_size).min(self.model.layers() as u64);
            for pipeline_parallel_size in 1..=stages {
                for quantization in methods {
                    let mut changes = vec![
                        ("tensor_parallel_size", json!(tensor_parallel_size)),
                        ("pipeline_parallel_size", json!(pipeline_parallel_size)),
                    ];
                    changes.extend(quantization.map(|method| ("quantization", json!(method))));
                    let one = Question { gpus: &fullest, ..*self };
                    let mut utilization = None;
                    if self.args["gpu_memory_utilization"].is_null() {
                        let args = one.args_with(&changes);
                        utilization = Question { args: &args, ..one }.nearest_utilization();
                    }
                    changes
                        .extend(utilization.map(|share| ("gpu_memory_utilization", json!(share))));
                    let fit = one.with(&changes);
                    layouts.push(Layout {
                        tensor_parallel_size,
                        pipeline_parallel_size,
                        quantization: *quantization,
                        gpu_memory_utilization: utilization,
                        fit,
                    });
                }
            }
        }
        layouts.sort_by_key(|layout| {
            (!layout.fit.verdict.is_ready(), std::cmp::Reverse(layout.fit.kv_cache_tokens))
        });
        layouts
    }
}

/// A step as the fraction that it is.
fn share(step: u64) -> f64 {
    step as f64 / STEPS as f64
}

/// The first value for which `holds` doesn't hold, where it holds up to there and not beyond; one after
/// the last where it holds for all.
fn partition_point(values: RangeInclusive<u64>, holds: impl Fn(u64) -> bool) -> u64 {
    let (mut first, mut end) = (*values.start(), *values.end() + 1);
    while first < end {
        let middle = first + (end - first) / 2;
        if holds(middle) { first = middle + 1 } else { end = middle }
    }
    first
}
