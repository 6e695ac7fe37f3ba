//! The tensors of one rank, in the order in which vLLM makes them (`vllm/model_executor/models`).

use super::VllmArgs;
use super::quantization::{ExpertWeights, Linear};
use crate::model::hf_config::{Family, Quantization, Transformer};

/// Rows of the vocabulary are padded to this (`vocab_parallel_embedding.py`).
const VOCAB_STEP: u64 = 64;
/// SigLIP's feed-forward parts are quantised only where their width divides by this (`siglip.py`).
const SIGLIP_STEP: u64 = 64;

/// A part of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A tensor of so many bytes.
    Tensor(u64),
    /// A linear layer.
    Linear(Linear),
    /// A layer's experts.
    Experts(ExpertWeights),
}

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

fn linear(args: &VllmArgs, inputs: u64, outputs: u64, bias: bool) -> Part {
    let (element, quantization) = (args.dtype_bytes, args.quantization);
    Part::Linear(Linear { inputs, outputs, bias, element, quantization })
}

/// A linear layer that no checkpoint quantises; on-line quantisation does.
fn plain_linear(args: &VllmArgs, inputs: u64, outputs: u64, bias: bool) -> Part {
    let quantization = args.quantization.filter(is_online);
    Part::Linear(Linear { inputs, outputs, bias, element: args.dtype_bytes, quantization })
}

fn is_online(quantization: &Quantization) -> bool {
    matches!(quantization, Quantization::Fp8 { online: true, .. })
}

/// The parts of a layer, up to its rotary table and after it. Of a model with experts not every layer
/// need have them.
pub fn layer(model: &Transformer, args: &VllmArgs, with_experts: bool) -> Vec<Part> {
    let (hidden, element) = (model.hidden, args.dtype_bytes);
    let queries = rank_heads(model, args) * model.head_dim;
    let keys = rank_kv_heads(model, args) * model.head_dim;
    let mut parts = vec![
        linear(args, hidden, queries + 2 * keys, model.qkv_bias),
        linear(args, queries, hidden, model.output_bias),
    ];
    if model.qk_norm {
        parts.extend([Part::Tensor(model.head_dim * element); 2]);
    }
    match &model.experts {
        Some(experts) if with_experts => {
            let inner = experts.intermediate / args.tensor_parallel;
            let (count, quantization) = (experts.count, args.quantization);
            parts.push(plain_linear(args, hidden, count, false));
            parts.push(Part::Experts(ExpertWeights {
                count,
                hidden,
                inner,
                element,
                quantization,
            }));
        }
        _ => {
            let inner = model.intermediate / args.tensor_parallel;
            parts.push(linear(args, hidden, 2 * inner, false));
            parts.push(linear(args, inner, hidden, false));
        }
    }
    let norms = if model.family == Family::Gemma3 { 4 } else { 2 };
    parts.extend(std::iter::repeat_n(Part::Tensor(hidden * element), norms));
    // Scales of a quantised cache are there whether it is quantised or not.
    parts.extend([Part::Tensor(4); 4]);
    parts
}

/// The parts of the vision tower and its projector. `limit_mm_per_prompt` can take them away.
pub fn vision(model: &Transformer, args: &VllmArgs) -> Vec<Part> {
    let Some(vision) = &model.vision else { return Vec::new() };
    let (hidden, element) = (vision.hidden, args.dtype_bytes);
    let ranks = if args.whole_encoder { 1 } else { args.tensor_parallel };
    let (heads, inner) = (hidden / ranks, vision.intermediate / ranks);
    let tensor = |elements: u64| Part::Tensor(elements * element);
    let feed_forward = |inputs: u64, outputs: u64| {
        let divides =
            hidden.is_multiple_of(SIGLIP_STEP) && vision.intermediate.is_multiple_of(SIGLIP_STEP);
        match divides {
            true => plain_linear(args, inputs, outputs, true),
            false => {
                Part::Linear(Linear { inputs, outputs, bias: true, element, quantization: None })
            }
        }
    };
    let mut parts = vec![
        tensor(vision.patch_elements * hidden),
        tensor(hidden),
        tensor(vision.patches * hidden),
    ];
    for _ in 0..vision.layers {
        parts.push(plain_linear(args, hidden, 3 * heads, true));
        parts.push(plain_linear(args, heads, hidden, true));
        parts.push(feed_forward(hidden, inner));
        parts.push(feed_forward(inner, hidden));
        parts.extend([tensor(hidden); 4]);
    }
    parts.extend([tensor(hidden), tensor(hidden), tensor(hidden * model.hidden), tensor(hidden)]);
    parts
}
