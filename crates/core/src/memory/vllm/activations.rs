//! The passes that profile, warm up and serve, as allocations.
//!
//! What a pass leaves in the allocator's cache stays with the process: that, and not the profile's
//! peak, is what a neighbour feels. Orders follow `vllm/model_executor/models` and the sampler.

use super::caching_allocator::{Allocator, BlockId};
use super::compiled::{Attention, Compiled};
use super::loading::{MAX_SPLIT, casts_inputs};
use super::version::EngineFacts;
use super::{Card, CompileCache, VllmArgs, graphs, weights};
use crate::model::hf_config::{Family, Transformer};

/// Image tokens of Gemma 3, and the most images a request may have by default.
const IMAGE_TOKENS: u64 = 256;
const MAX_IMAGES: u64 = 999;
/// Prompt log-probabilities come in pieces of this many rows.
const LOGPROB_ROWS: u64 = 1024;
/// Rows from which the Triton sampler is used.
const TRITON_ROWS: u64 = 8;

/// What is written over to empty the second-level cache before a kernel is timed: as much as an
/// H200's; no card before it has more.
const FLUSH: u64 = 60 << 20;

/// cuBLAS' workspace, one for each stream (ATen's defaults).
pub fn cublas_workspace(card: Card) -> u64 {
    if card.is_hopper() { 32 << 20 } else { 8_519_680 }
}

/// One rank's model, running.
pub struct Passes<'a> {
    /// The model.
    pub model: &'a Transformer,
    /// Its arguments.
    pub args: &'a VllmArgs,
    /// What the version does.
    pub facts: EngineFacts,
    /// What kernels depend on.
    pub card: Card,
    /// Whether compiled code is there from an earlier start.
    pub compile_cache: CompileCache,
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
        card: Card,
        allocator: Allocator,
    ) -> Self {
        Self {
            model,
            args,
            facts,
            card,
            compile_cache: CompileCache::Cold,
            is_last: true,
            allocator,
            has_cublas: facts.makes_workspace_first,
            has_expert_workspace: false,
            has_top_k: false,
        }
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
            self.allocate(cublas_workspace(self.card));
        }
    }

    fn product(&mut self, rows: u64, inputs: u64, outputs: u64) -> BlockId {
        let cast = match self.args.quantization {
            Some(how) if casts_inputs(how, self.card) => Some(self.allocate(rows * inputs)),
            _ => None,
        };
        let product = self.allocate(rows * outputs * self.args.dtype_bytes);
        if self.args.quantization.is_none() {
            self.cublas();
        }
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
        if !self.args.eager {
            return self.compiled_forward(rows);
        }
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

    fn compiled_forward(&mut self, rows: u64) -> BlockId {
        self.cublas();
        let (model, args, card) = (self.model, self.args, self.card);
        let compiled = Compiled { model, args, card };
        if model.experts.is_some() {
            let unit = rows * model.hidden * args.dtype_bytes;
            let out = self.experts(rows, unit);
            self.release(out);
        }
        compiled.pass(rows, Attention::Elsewhere, &mut self.allocator);
        self.allocate(rows * model.hidden * args.dtype_bytes)
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
        let first_residual = self.allocate(unit);
        let normed = self.gemma_norm(rows, unit);
        let attended = self.attention(rows);
        self.release(normed);
        let after_attention = self.gemma_norm(rows, unit);
        self.release(attended);
        let new_residual = self.allocate(unit);
        let normed = self.gemma_norm(rows, unit);
        self.release(after_attention);
        self.release(first_residual);
        let out = self.feed_forward(rows, unit);
        self.release(normed);
        let after_feed_forward = self.gemma_norm(rows, unit);
        self.release(out);
        self.release(hidden);
        self.release(residual);
        (after_feed_forward, new_residual)
    }

    /// Gemma's norm in PyTorch's own operations (`GemmaRMSNorm.forward_native`): each is a new tensor in fp32.
    fn gemma_norm(&mut self, rows: u64, unit: u64) -> BlockId {
        let in_fp32 = rows * self.model.hidden * 4;
        let widened = self.allocate(in_fp32);
        self.touch(in_fp32);
        let scaled = self.allocate(in_fp32);
        self.release(widened);
        let weighted = self.allocate(in_fp32);
        self.release(scaled);
        let normed = self.allocate(unit);
        self.release(weighted);
        normed
    }

    fn attention(&mut self, rows: u64) -> BlockId {
        let queries = weights::rank_heads(self.model, self.args) * self.model.head_dim;
        let keys = weights::rank_kv_heads(self.model, self.args) * self.model.head_dim;
        let projected = self.product(rows, self.model.hidden, queries + 2 * keys);
        let context = self.allocate(rows * queries * self.args.dtype_bytes);
        let out = self.product(rows, queries, self.model.hidden);
        let out = self.reduce(rows, out);
        self.release(context);
        self.release(projected);
        out
    }

    /// Ranks add their parts up out of place.
    fn reduce(&mut self, rows: u64, part: BlockId) -> BlockId {
        if self.args.tensor_parallel == 1 {
            return part;
        }
        let sum = self.allocate(rows * self.model.hidden * self.args.dtype_bytes);
        self.release(part);
        sum
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
        let out = self.reduce(rows, out);
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
        let vocab = weights::padded_vocab(self.model);
        let element = self.args.dtype_bytes;
        let own = self.allocate(rows * vocab / self.args.tensor_parallel * element);
        self.cublas();
        if self.args.tensor_parallel == 1 {
            return own;
        }
        // What is gathered is put in order in a copy (`cuda_communicator.py`).
        let gathered = self.allocate(rows * vocab * element);
        let ordered = self.allocate(rows * vocab * element);
        self.release(gathered);
        self.release(own);
        ordered
    }

    /// Triton's top-k and top-p: a row of the vocabulary in fp32 for each program, kept.
    fn top_k(&mut self, rows: u64) {
        if rows < TRITON_ROWS || std::mem::replace(&mut self.has_top_k, true) {
            return;
        }
        let all = self.card.multiprocessors;
        let programs = rows.min(all).next_power_of_two().min(all);
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
        self.allocator.max_split = if self.facts.profiles_unsplit { MAX_SPLIT } else { u64::MAX };
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
                let in_fp32 = self.allocate(sequences * self.model.vocab * 4);
                self.top_k(sequences);
                self.release(in_fp32);
            }
            self.release(logits);
            self.release(rows);
        }
        self.release(hidden);
        let peak = self.allocator.peak_allocated.saturating_sub(before);
        self.allocator.max_split = u64::MAX;
        let is_small = tokens < 8192;
        if self.args.eager && self.model.qkv_bias && self.args.quantization.is_none() && is_small {
            // Measured with Qwen 2.5 alone, at 2,048 tokens and not at 8,192, cause not found: one projection's segment
            // stays.
            let inner = self.model.intermediate / self.args.tensor_parallel;
            self.allocate(tokens * 2 * inner * self.args.dtype_bytes);
        }
        if self.args.eager || self.compile_cache == CompileCache::Warm {
            return peak;
        }
        peak.max(self.compiling(is_first))
    }

    /// What compiling holds at its peak. Inductor times each kernel that it might fuse, on tensors made
    /// up for it: of the first piece, where tokens come as numbers, the embedding and two of the hidden
    /// states; of every stage, the rotary table and what the first layer's norms and rotation read and
    /// write.
    fn compiling(&self, is_first: bool) -> u64 {
        let (model, args) = (self.model, self.args);
        let table = model.rope_rows.iter().max().copied().unwrap_or(0);
        let queries = weights::rank_heads(model, args) * model.head_dim;
        let keys = weights::rank_kv_heads(model, args) * model.head_dim;
        let projected = queries + 2 * keys;
        let read_and_written = args.batched_tokens * (projected + 2 * queries + 2 * keys);
        let rotation = (table * model.head_dim + read_and_written) * args.dtype_bytes + FLUSH;
        if !is_first || args.with_vision {
            return rotation;
        }
        let hidden = args.batched_tokens * model.hidden * args.dtype_bytes;
        let states = if args.tensor_parallel > 1 { hidden + FLUSH } else { 2 * hidden };
        rotation.max(weights::embedding(model, args) + states)
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
        let captured = graphs::capture_sizes(self.args, self.facts, self.card);
        let captured = captured.last().copied().unwrap_or(0);
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

    /// Load of any order. Tensors of a batch that is longer than all before find no cached segment that is large
    /// enough, and what was cached stays: what is left behind depends on the order that lengths come in, and has no
    /// bound but the steps of a segment's size. Reckoned is a batch that is nearly full before a full one, which is
    /// the most that two can leave, and what was measured (data/vllm-growth.jsonl).
    ///
    /// Between pipeline stages each has as many batches under way as there are stages, whose hidden states and
    /// residuals, received and sent, are tensors of their own: a bound, since it depends on who waits for whom.
    pub fn serve(&mut self) {
        const STATES: usize = 4;
        let stages = self.args.stages();
        let under_way = if stages > 1 { STATES * stages } else { 0 };
        let state = self.args.batched_tokens * self.model.hidden * self.args.dtype_bytes;
        let states: Vec<BlockId> = (0..under_way).map(|_| self.allocate(state)).collect();
        let all = self.args.batched_tokens;
        for tokens in [all - all / 16, all] {
            let hidden = self.forward(tokens);
            if self.is_last {
                let logits = self.logits(self.args.sequences.min(tokens));
                self.release(logits);
            }
            self.release(hidden);
        }
        for state in states {
            self.release(state);
        }
        self.split_attention();
    }

    /// FlashAttention 3's partial results in fp32: with graphs, batches no larger than what is captured are split in as
    /// many parts as a graph may need, prompts among them too (`flash_attn.py`, `max_num_splits`; 0.26). Four lengths
    /// are reckoned, each longer than the last.
    fn split_attention(&mut self) {
        const SPLITS: u64 = 32;
        const EIGHTHS: [u64; 4] = [5, 6, 7, 8];
        if self.args.eager || !self.card.is_hopper() {
            return;
        }
        let captured = graphs::capture_sizes(self.args, self.facts, self.card);
        let most = captured.last().copied().unwrap_or(0);
        let heads = weights::rank_heads(self.model, self.args);
        for tokens in EIGHTHS.map(|part| part * most / 8) {
            self.touch(SPLITS * heads * tokens * self.model.head_dim * 4);
        }
    }
}
