//! Building a model: the order of its allocations, and a peak above what stays.

use super::caching_allocator::Allocator;
use super::{VllmArgs, weights};
use crate::model::hf_config::{Family, Quantization, Transformer};

/// While it loads, vLLM keeps blocks from this size on whole (`gpu_worker.py`, 0.26).
const MAX_SPLIT: u64 = 20 << 20;

/// What loading left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Bytes of tensors: "Model loading took".
    pub weights: u64,
    /// Bytes of segments.
    pub segments: u64,
    /// The most bytes of segments on the way.
    pub peak: u64,
}

/// Whether every pipeline stage has the embedding, the last norm and the head (`gemma3.py`,
/// `qwen3_moe.py`).
fn embeds_everywhere(model: &Transformer) -> bool {
    matches!(model.family, Family::Gemma3 | Family::Qwen3Moe)
}

/// Replays the construction of one pipeline stage.
pub fn load(
    model: &Transformer,
    args: &VllmArgs,
    stage: usize,
    allocator: &mut Allocator,
) -> Loaded {
    let (is_first, is_last) = (stage == 0, stage + 1 == args.stages());
    let everywhere = embeds_everywhere(model);
    let embedding = weights::embedding(model, args);
    allocator.max_split = MAX_SPLIT;
    if args.with_vision && is_first {
        for bytes in weights::vision(model, args) {
            allocator.allocate(bytes);
        }
    }
    if is_first || everywhere || (is_last && model.tied) {
        allocator.allocate(embedding);
    }
    let layers = args.stage_layers(stage);
    let mut tables = vec![false; model.rope_rows.len()];
    for layer in layers.clone() {
        for bytes in weights::layer(model, args, layer) {
            allocator.allocate(bytes);
        }
        let table = if tables.len() == 1 { 0 } else { usize::from(model.full_attention[layer]) };
        if let Some(built @ false) = tables.get_mut(table) {
            *built = true;
            build_rope_table(model, args, model.rope_rows[table], allocator);
        }
    }
    if is_last || everywhere {
        allocator.allocate(model.hidden * args.dtype_bytes);
        // A tied model has a second head for a moment.
        let head = allocator.allocate(embedding);
        if model.tied {
            allocator.release(head);
        }
    }
    convert_largest(model, args, layers.start, allocator);
    let peak = allocator.peak_reserved;
    allocator.empty_cache();
    allocator.max_split = u64::MAX;
    allocator.peak_allocated = allocator.allocated;
    allocator.peak_reserved = allocator.reserved;
    Loaded { weights: allocator.allocated, segments: allocator.reserved, peak }
}

/// Frequencies, cosines, sines and both together exist in fp32 before the table is cast; with
/// linear scaling there is one more.
fn build_rope_table(model: &Transformer, args: &VllmArgs, rows: u64, allocator: &mut Allocator) {
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

/// A quantised model has its largest tensor twice while it is converted.
fn convert_largest(model: &Transformer, args: &VllmArgs, layer: usize, allocator: &mut Allocator) {
    let Some(quantization) = args.quantization else { return };
    let largest = weights::layer(model, args, layer).into_iter().max().unwrap_or(0);
    let factor = if matches!(quantization, Quantization::Fp8 { .. }) { 2 } else { 1 };
    let block = allocator.allocate(largest * factor);
    allocator.release(block);
}
