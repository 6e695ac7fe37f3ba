//! The tensors of one rank, in the order in which vLLM makes them (`vllm/model_executor/models`).

use super::VllmArgs;
use crate::model::hf_config::{Family, Quantization, Transformer};

/// Rows of the vocabulary are padded to this (`vocab_parallel_embedding.py`).
const VOCAB_STEP: u64 = 64;

/// The vocabulary with its padding.
pub fn padded_vocab(model: &Transformer) -> u64 {
    model.vocab.next_multiple_of(VOCAB_STEP)
}

/// Bytes of the embedding on a rank; the output head has as many.
pub fn embedding(model: &Transformer, args: &VllmArgs) -> u64 {
    padded_vocab(model) / args.tensor_parallel * model.hidden * args.dtype_bytes
}

/// Key and value heads on a rank: at least one, then repeated.
pub fn rank_kv_heads(model: &Transformer, args: &VllmArgs) -> u64 {
    (model.kv_heads / args.tensor_parallel).max(1)
}

/// Query heads on a rank.
pub fn rank_heads(model: &Transformer, args: &VllmArgs) -> u64 {
    model.heads / args.tensor_parallel
}

/// One linear layer of `inputs` and `outputs` on this rank.
fn linear(args: &VllmArgs, inputs: u64, outputs: u64, bias: bool, tensors: &mut Vec<u64>) {
    let weights = inputs * outputs;
    match args.quantization {
        None => tensors.push(weights * args.dtype_bytes),
        Some(Quantization::Fp8 { block }) => {
            let scales = block
                .map_or(1, |(rows, columns)| outputs.div_ceil(rows) * inputs.div_ceil(columns));
            tensors.extend([weights, 4 * scales]);
        }
        Some(Quantization::Int4 { group, zero_points }) => {
            let groups = if group > 0 { inputs.div_ceil(group) } else { 1 };
            let zeros = if zero_points { groups * outputs / 2 } else { 512 };
            tensors.extend([weights / 2, groups * outputs * args.dtype_bytes, zeros, 2112]);
        }
    }
    if bias {
        tensors.push(outputs * args.dtype_bytes);
    }
}

/// The tensors of layer `index`.
pub fn layer(model: &Transformer, args: &VllmArgs, index: usize) -> Vec<u64> {
    let (hidden, element) = (model.hidden, args.dtype_bytes);
    let queries = rank_heads(model, args) * model.head_dim;
    let keys = rank_kv_heads(model, args) * model.head_dim;
    let mut tensors = Vec::new();
    linear(args, hidden, queries + 2 * keys, model.qkv_bias, &mut tensors);
    linear(args, queries, hidden, model.output_bias, &mut tensors);
    if model.qk_norm {
        tensors.extend([model.head_dim * element; 2]);
    }
    match &model.experts {
        Some(experts) if experts.layers.get(index) == Some(&true) => {
            let inner = experts.intermediate / args.tensor_parallel;
            expert_tensors(args, experts.count, hidden, inner, &mut tensors);
        }
        _ => {
            let inner = model.intermediate / args.tensor_parallel;
            linear(args, hidden, 2 * inner, false, &mut tensors);
            linear(args, inner, hidden, false, &mut tensors);
        }
    }
    let norms = if model.family == Family::Gemma3 { 4 } else { 2 };
    tensors.extend(std::iter::repeat_n(hidden * element, norms));
    // Scales of a quantised cache are there whether it is quantised or not.
    tensors.extend([4; 4]);
    tensors
}

fn expert_tensors(args: &VllmArgs, count: u64, hidden: u64, inner: u64, tensors: &mut Vec<u64>) {
    tensors.push(count * hidden * args.dtype_bytes);
    let (up, down) = (count * 2 * inner * hidden, count * inner * hidden);
    match args.quantization {
        None => tensors.extend([up * args.dtype_bytes, down * args.dtype_bytes]),
        Some(Quantization::Fp8 { .. }) => tensors.extend([up, down, count * 4, count * 4]),
        Some(Quantization::Int4 { group, .. }) => {
            let group = group.max(1);
            let scales =
                |width: u64, inputs: u64| count * width * inputs.div_ceil(group) * args.dtype_bytes;
            tensors.extend([up / 2, scales(2 * inner, hidden), down / 2, scales(hidden, inner)]);
        }
    }
}

/// The tensors of the vision tower and its projector.
pub fn vision(model: &Transformer, args: &VllmArgs) -> Vec<u64> {
    let Some(vision) = &model.vision else { return Vec::new() };
    let (hidden, element) = (vision.hidden, args.dtype_bytes);
    let (heads, inner) =
        (hidden / args.tensor_parallel, vision.intermediate / args.tensor_parallel);
    let mut tensors = vec![vision.patch_elements * hidden, hidden, vision.patches * hidden];
    for _ in 0..vision.layers {
        tensors.extend([hidden * 3 * heads, 3 * heads, heads * hidden, hidden]);
        tensors.extend([hidden * inner, inner, inner * hidden, hidden]);
        tensors.extend([hidden; 4]);
    }
    tensors.extend([hidden, hidden, hidden * model.hidden, hidden]);
    tensors.into_iter().map(|elements| elements * element).collect()
}
