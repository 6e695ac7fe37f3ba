//! How fast an instance is: a roofline, and what it is off by.
//!
//! Decoding a step of `B` requests reads the weights and the requests' keys and values once, and does
//! two operations a parameter and request; a prompt does them for all its tokens. Ranks add up their
//! parts over the link twice a layer. Pipeline stages work on different requests at the same time.
//!
//! Against 225 published measurements of vLLM the formula is 34 to 57 % off before it is fitted to a
//! machine, and 9 to 14 % afterwards: so an answer has a band, and says which of the two it is.
//!
//! - [`fit`](mod@fit): from a load test to the constants

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::gpu::GpuKind;
use crate::spec::Demand;

pub mod fit;

/// What the formula is fitted with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constants {
    /// The share of the bandwidth that decoding gets.
    pub bandwidth: f64,
    /// The share of the arithmetic that prompts get.
    pub arithmetic: f64,
    /// Seconds of each step apart from that.
    pub step: f64,
    /// Seconds that each all-reduce takes to begin.
    pub all_reduce: f64,
    /// How far off it may be, as a share.
    pub band: f64,
}

impl Constants {
    /// Nothing was measured: usual shares, and the error that they have.
    pub const UNCALIBRATED: Self =
        Self { bandwidth: 0.8, arithmetic: 0.45, step: 0.0015, all_reduce: 35e-6, band: 0.5 };
}

/// What was fitted, by kind of GPU; for the others nothing was.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Speeds {
    kinds: BTreeMap<String, Constants>,
}

impl Speeds {
    /// The constants of a kind of GPU.
    pub fn of(&self, kind: &GpuKind) -> Constants {
        self.kinds.get(&kind.name).copied().unwrap_or(Constants::UNCALIBRATED)
    }

    /// Whether a kind of GPU was measured.
    pub fn is_calibrated(&self, kind: &GpuKind) -> bool {
        self.kinds.contains_key(&kind.name)
    }

    /// Keeps what was fitted for a kind.
    pub fn set(&mut self, kind: &GpuKind, constants: Constants) {
        self.kinds.insert(kind.name.clone(), constants);
    }

    /// What can't be, where somebody has edited the file.
    pub fn problem(&self) -> Option<String> {
        let is_share = |share: f64| (0.01..=2.0).contains(&share);
        let is_time = |seconds: f64| (0.0..=10.0).contains(&seconds);
        let bad = self.kinds.iter().find(|(_, one)| {
            !is_share(one.bandwidth)
                || !is_share(one.arithmetic)
                || !is_time(one.step)
                || !is_time(one.all_reduce)
                || !(0.0..=1.0).contains(&one.band)
        });
        bad.map(|(kind, _)| format!("the constants of {kind} are beyond anything sensible"))
    }
}

/// What speed depends on of an instance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workload<'a> {
    /// The kind of its GPUs.
    pub kind: &'a GpuKind,
    /// `tensor_parallel_size`.
    pub ranks: f64,
    /// `pipeline_parallel_size`.
    pub stages: f64,
    /// Bytes of weights that a step reads on all GPUs together.
    pub weight_bytes: f64,
    /// Parameters that a token uses.
    pub active_parameters: f64,
    /// Layers.
    pub layers: f64,
    /// Width of the residual stream.
    pub hidden: f64,
    /// Bytes of the cache for one token, on all GPUs together.
    pub cache_bytes: f64,
    /// Tokens that the cache holds.
    pub cache_tokens: f64,
    /// Requests at once that the engine allows.
    pub sequences: f64,
    /// The share of its GPUs' time that it gets beside others.
    pub share: f64,
}

/// A figure with its band.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Estimate {
    /// The least.
    pub low: f64,
    /// The likely.
    pub mid: f64,
    /// The most.
    pub high: f64,
}

impl Estimate {
    fn around(mid: f64, band: f64) -> Self {
        Self { low: mid * (1.0 - band), mid, high: mid * (1.0 + band) }
    }

    /// Several instances together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { low: self.low + other.low, mid: self.mid + other.mid, high: self.high + other.high }
    }
}

/// What an instance does under full load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Speed {
    /// Requests that are worked on at once.
    pub batch: f64,
    /// Tokens of answers a second, all requests together.
    pub tokens_per_second: Estimate,
    /// Requests a second.
    pub requests_per_second: f64,
    /// Seconds from a request to its first token, with nobody before it.
    pub first_token: f64,
    /// Seconds a token of one request alone.
    pub token_alone: f64,
    /// Seconds a token of one request among all.
    pub token_loaded: f64,
}

impl Workload<'_> {
    fn all_reduces(&self, tokens: f64, constants: &Constants) -> f64 {
        if self.ranks <= 1.0 {
            return 0.0;
        }
        let bytes = tokens * self.hidden * 2.0 * 2.0 * (self.ranks - 1.0) / self.ranks;
        2.0 * self.layers * (constants.all_reduce + bytes / (self.kind.link_gb_s * 1e9))
    }

    /// Seconds of a decoding step through all stages.
    fn step(&self, batch: f64, context: f64, constants: &Constants) -> f64 {
        let bytes = self.weight_bytes + batch * context * self.cache_bytes;
        let reading = bytes / (self.ranks * self.kind.bandwidth_gb_s * 1e9 * constants.bandwidth);
        let flops = 2.0 * self.active_parameters * batch;
        let computing = flops / (self.ranks * self.kind.tflops_16bit * 1e12 * constants.arithmetic);
        reading.max(computing) + constants.step + self.all_reduces(batch, constants)
    }

    /// Seconds of a prompt through all stages.
    fn prefill(&self, tokens: f64, constants: &Constants) -> f64 {
        let flops = 2.0 * self.active_parameters * tokens;
        let rate = self.ranks * self.kind.tflops_16bit * 1e12 * constants.arithmetic;
        flops / rate + constants.step + self.all_reduces(tokens, constants)
    }

    /// Seconds a token of one request among `batch`, prompts of others in between.
    fn token(&self, batch: f64, demand: &Demand, constants: &Constants) -> f64 {
        let (prompt, answer) = (f64::from(demand.prompt_tokens), f64::from(demand.answer_tokens));
        // Stages work on different parts of the batch at once, as far as there are requests for all.
        let each = batch / self.stages.min(batch.max(1.0));
        let step = self.step(each, prompt + answer / 2.0, constants);
        (step + each * self.prefill(prompt, constants) / answer.max(1.0)) / self.share
    }

    /// What it does when there is always a request waiting.
    pub fn speed(&self, demand: &Demand, constants: &Constants) -> Speed {
        let (prompt, answer) = (f64::from(demand.prompt_tokens), f64::from(demand.answer_tokens));
        let context = prompt + answer / 2.0;
        let answer = answer.max(1.0);
        let held = self.cache_tokens / (prompt + answer);
        // Where not even one request fits, it is not served.
        let most = self.sequences.min(held).floor();
        let prefill = self.prefill(prompt, constants);
        let token = |batch: f64| self.token(batch, demand, constants);
        let within = |batch: f64| demand.token_ms.is_none_or(|most| token(batch) * 1e3 <= most);
        let batch = largest(most, within);
        let rate = if batch < 1.0 { 0.0 } else { batch / token(batch) };
        Speed {
            batch,
            tokens_per_second: Estimate::around(rate, constants.band),
            requests_per_second: rate / answer,
            first_token: prefill / self.share,
            token_alone: self.step(1.0, context, constants) / self.share,
            token_loaded: token(batch.max(1.0)),
        }
    }
}

/// The largest whole batch up to `most` that is within the target; zero where none is.
fn largest(most: f64, within: impl Fn(f64) -> bool) -> f64 {
    let (mut good, mut bad) = (0.0, most + 1.0);
    while bad - good > 1.0 {
        let middle = f64::midpoint(good, bad).floor();
        if within(middle) { good = middle } else { bad = middle }
    }
    good
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

    use super::*;

    const DEMAND: Demand = Demand {
        requests_per_second: 1.0,
        prompt_tokens: 1000,
        answer_tokens: 250,
        token_ms: None,
    };

    pub(super) fn gemma_27b(ranks: f64, stages: f64) -> Workload<'static> {
        Workload {
            kind: GpuKind::find("A10").unwrap(),
            ranks,
            stages,
            weight_bytes: 54.9e9,
            active_parameters: 27.4e9,
            layers: 62.0,
            hidden: 5376.0,
            cache_bytes: 508e3,
            cache_tokens: 50_000.0,
            sequences: 256.0,
            share: 1.0,
        }
    }

    /// Published: 27 ms a token for Llama 2 7B on an A10 (lmdeploy issue 210), 50 tokens/s for QwQ 32B
    /// on 4 A100 (vLLM issue 16300).
    #[test]
    fn a_token_alone_is_within_the_band_of_what_was_published() {
        let base = gemma_27b(1.0, 1.0);
        let llama = Workload {
            weight_bytes: 13.5e9,
            active_parameters: 6.7e9,
            layers: 32.0,
            hidden: 4096.0,
            ..base
        };
        let a100 = GpuKind::find("A100-80GB").unwrap();
        let qwq = Workload {
            kind: a100,
            ranks: 4.0,
            weight_bytes: 65.5e9,
            active_parameters: 32.8e9,
            layers: 64.0,
            hidden: 5120.0,
            ..base
        };
        for (workload, published) in [(llama, 0.027), (qwq, 0.020)] {
            let found = workload.speed(&DEMAND, &Constants::UNCALIBRATED).token_alone;
            assert!((found / published - 1.0).abs() < 0.5, "{found} instead of {published}");
        }
    }

    #[test]
    fn more_of_anything_helps_and_less_hurts() {
        let speed = |workload: Workload<'_>| workload.speed(&DEMAND, &Constants::UNCALIBRATED);
        let whole = speed(gemma_27b(4.0, 1.0));
        let halves = [
            Workload { cache_tokens: 25_000.0, ..gemma_27b(4.0, 1.0) },
            Workload { share: 0.5, ..gemma_27b(4.0, 1.0) },
            gemma_27b(2.0, 1.0),
        ];
        for half in halves {
            assert!(speed(half).tokens_per_second.mid < whole.tokens_per_second.mid);
        }
        let pipelined = speed(gemma_27b(1.0, 4.0));
        assert!(pipelined.token_alone > 2.0 * whole.token_alone, "stages follow each other");
        assert!(pipelined.tokens_per_second.mid > 0.5 * whole.tokens_per_second.mid);
        let none = speed(Workload { cache_tokens: 100.0, ..gemma_27b(4.0, 1.0) });
        assert_eq!((none.batch, none.tokens_per_second.mid), (0.0, 0.0));
        let slow = Demand { token_ms: Some(1.0), ..DEMAND };
        assert_eq!(gemma_27b(4.0, 1.0).speed(&slow, &Constants::UNCALIBRATED).batch, 0.0);
    }
}
