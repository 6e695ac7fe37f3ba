//! The passes that profile, warm up and serve, as allocations.
//!
//! What a pass leaves in the allocator's cache stays with the process: that, and not the profile's
//! peak, is what a neighbour feels. Orders follow `vllm/model_executor/models` and the sampler.

use super::caching_allocator::{Allocator, BlockId};
use super::version::EngineFacts;
use super::{VllmArgs, calibration, graphs, weights};
use crate::model::hf_config::{Family, Quantization, Transformer};

/// Image tokens of Gemma 3, and the most images a request may have by default.
const IMAGE_TOKENS: u64 = 256;
const MAX_IMAGES: u64 = 999;
/// Prompt log-probabilities come in pieces of this many rows.
const LOGPROB_ROWS: u64 = 1024;
/// Rows from which the Triton sampler is used.
const TRITON_ROWS: u64 = 8;

/// One rank's model, running.
pub struct Passes<'a> {
    /// The model.
    pub model: &'a Transformer,
    /// Its arguments.
    pub args: &'a VllmArgs,
    /// What the version does.
    pub facts: EngineFacts,
    /// Whether this stage makes the logits.
    pub is_last: bool,
    /// Memory of the process.
    pub allocator: Allocator,
    has_cublas: bool,
    has_expert_workspace: bool,
    has_top_k: bool,
}

impl<'a> Passes<'a> {
    /// A model that is loaded into `allocator`.
    pub fn new(
        model: &'a Transformer,
        args: &'a VllmArgs,
        facts: EngineFacts,
        is_last: bool,
        allocator: Allocator,
    ) -> Self {
        let (has_cublas, has_expert_workspace, has_top_k) = (false, false, false);
        Self { model, args, facts, is_last, allocator, has_cublas, has_expert_workspace, has_top_k }
    }

    fn allocate(&mut self, bytes: u64) -> BlockId {
        self.allocator.allocate(bytes)
    }

    fn release(&mut self, block: BlockId) {
        self.allocator.release(block);
    }

    /// Memory that is free again at once, and raises the peak.
    fn touch(&mut self, bytes: u64) {
        let block = self.allocate(bytes);
        self.release(block);
    }

    /// cuBLAS' workspace comes with the first product in 16 bits.
    fn cublas(&mut self) {
        if !std::mem::replace(&mut self.has_cublas, true) {
            self.allocate(calibration::CUBLAS_WORKSPACE);
        }
    }

    fn product(&mut self, rows: u64, inputs: u64, outputs: u64) -> BlockId {
        let cast = match self.args.quantization {
            Some(Quantization::Fp8 { .. }) => Some(self.allocate(rows * inputs)),
            Some(_) => None,
            None => {
                self.cublas();
                None
            }
        };
        let product = self.allocate(rows * outputs * self.args.dtype_bytes);
        if let Some(cast) = cast {
            self.release(cast);
        }
        product
    }

    /// Two layers over `rows` tokens; gives the hidden states.
    ///
    /// Gemma's norms return new tensors, so that what came before stays alive through a layer; the
    /// others' work in place. Llama drops the first product of its feed-forward part before the last.
    fn forward(&mut self, rows: u64) -> BlockId {
        let unit = rows * self.model.hidden * self.args.dtype_bytes;
        let mut hidden = self.allocate(unit);
        let mut residual = self.allocate(unit);
        for _ in 0..2 {
            (hidden, residual) = match self.model.family {
                Family::Gemma3 => self.gemma_layer(rows, unit, hidden, residual),
                _ => (self.plain_layer(rows, unit, hidden), residual),
            };
        }
        self.release(residual);
        hidden
    }

    fn plain_layer(&mut self, rows: u64, unit: u64, hidden: BlockId) -> BlockId {
        let attended = self.attention(rows);
        let out = self.feed_forward(rows, unit);
        self.release(attended);
        self.release(hidden);
        out
    }

    fn gemma_layer(
        &mut self,
        rows: u64,
        unit: u64,
        hidden: BlockId,
        residual: BlockId,
    ) -> (BlockId, BlockId) {
        let (normed, first_residual) = (self.allocate(unit), self.allocate(unit));
        let attended = self.attention(rows);
        self.release(normed);
        let after_attention = self.allocate(unit);
        self.release(attended);
        let (normed, new_residual) = (self.allocate(unit), self.allocate(unit));
        self.release(after_attention);
        self.release(first_residual);
        let out = self.feed_forward(rows, unit);
        self.release(normed);
        let after_feed_forward = self.allocate(unit);
        self.release(out);
        self.release(hidden);
        self.release(residual);
        (after_feed_forward, new_residual)
    }

    fn attention(&mut self, rows: u64) -> BlockId {
        let queries = weights::rank_heads(self.model, self.args) * self.model.head_dim;
        let keys = weights::rank_kv_heads(self.model, self.args) * self.model.head_dim;
        let projected = self.product(rows, self.model.hidden, queries + 2 * keys);
        let context = self.allocate(rows * queries * self.args.dtype_bytes);
        let out = self.product(rows, queries, self.model.hidden);
        self.release(context);
        self.release(projected);
        out
    }

    fn feed_forward(&mut self, rows: u64, unit: u64) -> BlockId {
        if self.model.experts.is_some() {
            return self.experts(rows, unit);
        }
        let inner = self.model.intermediate / self.args.tensor_parallel;
        let up = self.product(rows, self.model.hidden, 2 * inner);
        let activated = self.allocate(rows * inner * self.args.dtype_bytes);
        let drops_early = matches!(self.model.family, Family::Llama | Family::Mistral);
        if drops_early {
            self.release(up);
        }
        let out = self.product(rows, inner, self.model.hidden);
        self.release(activated);
        if !drops_early {
            self.release(up);
        }
        out
    }

    /// The experts' workspace is made once, for the most tokens, and kept.
    fn experts(&mut self, rows: u64, unit: u64) -> BlockId {
        let Some(experts) = &self.model.experts else { return self.allocate(unit) };
        let (count, used) = (experts.count, experts.used);
        let inner = experts.intermediate / self.args.tensor_parallel;
        let routing = self.allocate(rows * count * 4);
        if !std::mem::replace(&mut self.has_expert_workspace, true) {
            let hidden = self.model.hidden;
            let width = inner.max(hidden) + (2 * inner).max(hidden);
            self.allocate(rows * used * width * self.args.dtype_bytes);
        }
        let out = self.allocate(unit);
        self.release(routing);
        out
    }

    fn logits(&mut self, rows: u64) -> BlockId {
        self.cublas();
        let vocab = weights::padded_vocab(self.model);
        let element = self.args.dtype_bytes;
        let own = self.allocate(rows * vocab / self.args.tensor_parallel * element);
        if self.args.tensor_parallel == 1 {
            return own;
        }
        let gathered = self.allocate(rows * vocab * element);
        self.release(own);
        gathered
    }

    /// Triton's top-k and top-p: a row of the vocabulary in fp32 for each program, kept.
    fn top_k(&mut self, rows: u64) {
        if rows < TRITON_ROWS || std::mem::replace(&mut self.has_top_k, true) {
            return;
        }
        let programs = rows.min(calibration::MULTIPROCESSORS).next_power_of_two();
        let programs = programs.min(calibration::MULTIPROCESSORS);
        self.allocate(programs * self.model.vocab * 4);
    }

    /// The older sampler: logits, probabilities and noise in fp32 at once.
    fn sample_v1(&mut self, rows: u64) {
        self.top_k(rows);
        let blocks = [rows * self.model.vocab * 4; 3].map(|bytes| self.allocate(bytes));
        for block in blocks {
            self.release(block);
        }
    }

    /// The profiling pass; gives the growth of torch's peak, which the log calls peak activation.
    pub fn profile(&mut self, is_first: bool) -> u64 {
        let before = self.allocator.allocated;
        self.allocator.peak_allocated = before;
        if self.facts.profiles_encoder && self.args.with_vision && is_first {
            self.touch(self.encoder_peak());
        }
        let (tokens, sequences) = (self.args.batched_tokens, self.args.sequences);
        let hidden = self.forward(tokens);
        if self.is_last {
            let rows = self.allocate(sequences * self.model.hidden * self.args.dtype_bytes);
            let logits = self.logits(sequences);
            if self.facts.is_v1_runner {
                self.sample_v1(sequences);
            } else if self.facts.profiles_sampler {
                let raw = self.allocate(sequences * self.model.vocab * self.args.dtype_bytes);
                self.top_k(sequences);
                self.release(raw);
            }
            self.release(logits);
            self.release(rows);
        }
        self.release(hidden);
        let peak = self.allocator.peak_allocated.saturating_sub(before);
        if self.args.eager || self.args.with_vision {
            return peak;
        }
        // Compiled: a copy of the embedding and two of the hidden states (calibrated: the cause was
        // not found in the source; five rows).
        let states = 2 * tokens * self.model.hidden * self.args.dtype_bytes;
        peak.max(weights::embedding(self.model, self.args) + states)
    }

    /// The vision tower over the largest batch of images. Not measured.
    fn encoder_peak(&self) -> u64 {
        let Some(vision) = &self.model.vision else { return 0 };
        let by_length = (self.args.max_model_len / IMAGE_TOKENS).clamp(1, MAX_IMAGES);
        let images = self.args.batched_tokens / IMAGE_TOKENS;
        let images = images.min(self.args.sequences.saturating_mul(by_length)).max(1);
        let width = 2 * vision.intermediate / self.args.tensor_parallel + 4 * vision.hidden;
        let tower =
            images.saturating_mul(vision.patches).saturating_mul(width * self.args.dtype_bytes);
        tower.saturating_add(images * IMAGE_TOKENS * self.model.hidden * self.args.dtype_bytes)
    }

    /// The warm-up before an engine is ready: a prefill of two tokens a request with every sampling
    /// feature on, then one step. Sizes that were captured run in the graphs' own memory.
    pub fn warm_up(&mut self, requests: u64) {
        if self.facts.is_v1_runner {
            return self.warm_up_v1();
        }
        let captured = graphs::capture_sizes(self.args).last().copied().unwrap_or(0);
        let captured = if self.args.eager { 0 } else { captured };
        for tokens in [2 * requests, requests] {
            let hidden = if tokens > captured { self.forward(tokens) } else { self.allocate(1) };
            if self.is_last {
                let rows = self.allocate(requests * self.model.hidden * self.args.dtype_bytes);
                let logits = self.logits(requests);
                let raw = self.allocate(requests * self.model.vocab * self.args.dtype_bytes);
                self.top_k(requests);
                self.release(raw);
                self.release(logits);
                if tokens > requests {
                    let prompt = self.logits(tokens.min(LOGPROB_ROWS));
                    self.release(prompt);
                }
                self.release(rows);
            }
            self.release(hidden);
        }
    }

    fn warm_up_v1(&mut self) {
        let tokens = self.args.sequences.min(self.args.batched_tokens);
        let hidden = self.forward(tokens);
        if self.is_last {
            let logits = self.logits(tokens);
            self.sample_v1(tokens);
            self.release(logits);
        }
        self.release(hidden);
    }

    /// A full batch under load.
    pub fn serve(&mut self) {
        let hidden = self.forward(self.args.batched_tokens);
        if self.is_last {
            let logits = self.logits(self.args.sequences);
            self.release(logits);
        }
        self.release(hidden);
    }
}
