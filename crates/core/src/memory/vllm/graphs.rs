//! Captured CUDA graphs. Their number follows from the arguments, their size is calibrated.

use super::{VllmArgs, calibration};
use crate::model::hf_config::Transformer;

/// The batch sizes that are captured (`vllm/config/compilation.py`).
pub fn capture_sizes(args: &VllmArgs) -> Vec<u64> {
    let top = args.sequences.saturating_mul(2).min(512).min(args.batched_tokens);
    let small = [1, 2, 4].into_iter().filter(|size| *size <= top);
    let medium = (8..(top + 1).min(256)).step_by(8);
    small.chain(medium).chain((256..=top).step_by(16)).collect()
}

/// Bytes of a stage's graphs: for pieces at every size, and whole for decoding at those up to the
/// number of sequences.
pub fn bytes(model: &Transformer, args: &VllmArgs, layers: usize) -> u64 {
    if args.eager {
        return 0;
    }
    let sizes = capture_sizes(args);
    let whole = sizes.iter().filter(|size| **size <= args.sequences).count();
    let graphs = (sizes.len() + whole) as u64;
    let widest = sizes.last().copied().unwrap_or(0);
    let inner = 3 * (model.intermediate / args.tensor_parallel);
    let heads = (model.heads + 2 * model.kv_heads) / args.tensor_parallel * model.head_dim;
    let activations = widest * (inner + 3 * model.hidden + heads) * args.dtype_bytes;
    layers as u64 * graphs * calibration::GRAPH_LAYER + calibration::GRAPH_POOL_LAYERS * activations
}
