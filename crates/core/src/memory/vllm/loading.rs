//! Building a model: the order of its allocations, and a peak above what stays.

use super::caching_allocator::Allocator;
use super::quantization::{self, Linear};
use super::version::EngineFacts;
use super::weights::Part;
use super::{Card, VllmArgs, weights};
use crate::model::hf_config::{Family, Quantization, Transformer};

/// While it loads, vLLM keeps blocks from this size on whole (`gpu_worker.py`, 0.26).
pub const MAX_SPLIT: u64 = 20 << 20;

/// What loading left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Bytes of tensors: "Model loading took".
    pub weights: u64,
    /// Bytes of segments.
    pub segments: u64,
    /// The same with the runner's buffers.
    pub with_state: u64,
    /// The most bytes of segments on the way.
    pub peak: u64,
    /// Bytes of segments that were given back once all was there.
    pub given_back: u64,
    /// Pinned host memory that the segments' contents take while vLLM sleeps: PyTorch's allocator of pinned memory
    /// rounds each up to a power of two (`CachingHostAllocator`).
    pub pinned: u64,
}

/// Whether every pipeline stage has the embedding, the last norm and the head (`gemma3.py`,
/// `qwen3_moe.py`).
fn embeds_everywhere(model: &Transformer) -> bool {
    matches!(model.family, Family::Gemma3 | Family::Qwen3Moe)
}

/// A model on its way into memory.
struct Loader<'a> {
    model: &'a Transformer,
    args: &'a VllmArgs,
    card: Card,
    allocator: &'a mut Allocator,
    /// Linear layers that are converted once all is there.
    to_convert: Vec<(Linear, quantization::Loaded)>,
    /// The most that converting a layer's experts takes.
    experts: u64,
}

/// Replays the construction of one pipeline stage, with the buffers of the runner (`state`) at its end.
pub fn load(
    model: &Transformer,
    args: &VllmArgs,
    facts: EngineFacts,
    card: Card,
    (stage, state): (usize, &[u64]),
    allocator: &mut Allocator,
) -> Loaded {
    let (is_first, is_last) = (stage == 0, stage + 1 == args.stages());
    let everywhere = embeds_everywhere(model);
    let embedding = weights::embedding(model, args);
    let before = allocator.allocated;
    allocator.max_split = MAX_SPLIT;
    let mut loader = Loader { model, args, card, allocator, to_convert: Vec::new(), experts: 0 };
    if args.with_vision && (is_first || facts.has_vision_everywhere) {
        loader.parts(&weights::vision(model, args));
    }
    if is_first || everywhere || (is_last && model.tied) {
        loader.allocator.allocate(embedding);
    }
    loader.layers(stage);
    if is_last || everywhere {
        loader.allocator.allocate(model.hidden * args.dtype_bytes);
        // A tied model has a second head for a moment.
        let head = loader.allocator.allocate(embedding);
        if model.tied {
            loader.allocator.release(head);
        }
    }
    loader.convert();
    let (weights, peak) = (allocator.allocated - before, allocator.peak_reserved);
    let mut given_back = 0;
    if !args.can_sleep {
        given_back = give_back(allocator);
    }
    let segments = allocator.reserved;
    for bytes in state {
        allocator.allocate(*bytes);
    }
    let with_state = allocator.reserved;
    let mut pinned = 0;
    if args.can_sleep {
        // Both are in the pool that sleeps, which is tidied once all is there.
        given_back = give_back(allocator);
        pinned = allocator.segments().map(u64::next_power_of_two).fold(0, u64::saturating_add);
        allocator.close_pool();
    }
    allocator.max_split = u64::MAX;
    allocator.peak_allocated = allocator.allocated;
    allocator.peak_reserved = allocator.reserved;
    let segments = segments + allocator.reserved - with_state;
    Loaded { weights, segments, with_state: allocator.reserved, peak, given_back, pinned }
}

/// Empties the cache; says how many bytes went back to the device.
fn give_back(allocator: &mut Allocator) -> u64 {
    let before = allocator.reserved;
    allocator.empty_cache();
    before - allocator.reserved
}

impl Loader<'_> {
    fn layers(&mut self, stage: usize) {
        let model = self.model;
        let mut tables = vec![false; model.rope_rows.len()];
        let kinds = [false, true].map(|experts| weights::layer(model, self.args, experts));
        for layer in self.args.stage_layers(stage) {
            self.parts(&kinds[usize::from(model.has_experts(layer))]);
            let table =
                if tables.len() == 1 { 0 } else { usize::from(model.full_attention[layer]) };
            if let Some(built @ false) = tables.get_mut(table) {
                *built = true;
                self.build_rope_table(model.rope_rows[table]);
            }
        }
    }

    fn parts(&mut self, parts: &[Part]) {
        for part in parts {
            match part {
                Part::Tensor(bytes) => {
                    self.allocator.allocate(*bytes);
                }
                Part::Linear(linear) => {
                    let loaded = linear.construct(self.card, self.allocator);
                    if linear.quantization.is_some() {
                        self.to_convert.push((*linear, loaded));
                    }
                }
                Part::Experts(experts) => {
                    for bytes in experts.tensors(self.card) {
                        self.allocator.allocate(bytes);
                    }
                    self.experts = self.experts.max(experts.conversion());
                }
            }
        }
    }

    /// Frequencies, cosines, sines and both together exist in fp32 before the table is cast; with
    /// linear scaling there is one more.
    fn build_rope_table(&mut self, rows: u64) {
        let (model, args) = (self.model, self.args);
        let allocator = &mut self.allocator;
        let half = rows * (model.head_dim / 2) * 4;
        let mut sizes = vec![half, half, half, 2 * half];
        if rows > model.max_position {
            sizes.push(2 * half);
        }
        let mut held: Vec<_> = sizes.into_iter().map(|bytes| allocator.allocate(bytes)).collect();
        let last = held.pop();
        for block in held {
            allocator.release(block);
        }
        allocator.allocate(rows * model.head_dim * args.dtype_bytes);
        if let Some(last) = last {
            allocator.release(last);
        }
    }

    fn convert(&mut self) {
        for (linear, loaded) in std::mem::take(&mut self.to_convert) {
            linear.convert(self.card, loaded, self.allocator);
        }
        if self.experts > 0 {
            let block = self.allocator.allocate(self.experts);
            self.allocator.release(block);
        }
    }
}

/// Whether a quantisation leaves activations as they are.
pub fn casts_inputs(quantization: Quantization, card: Card) -> bool {
    match quantization {
        Quantization::Fp8 { .. } => card.compute_capability >= (8, 9),
        Quantization::Int8 => true,
        Quantization::Integer { .. } => false,
    }
}
