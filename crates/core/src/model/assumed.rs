//! A GGUF that isn't here: what llama.cpp's converter would make of a known transformer.
//!
//! `convert_hf_to_gguf.py` of b10435. Types are uniform: matrices in one type, norms and biases in 32
//! bits; mixtures such as Q4_K_M choose a type for each tensor and are not assumed.

use super::facts::{Architecture, Experts, Layer, ModelFacts};
use super::hf_config::{Family, Transformer};
use super::{GgmlType, TensorInfo};
use crate::units::Bytes;

/// Gemma's tokenizer has fewer tokens than its embedding has rows, and the converter drops the rest.
const GEMMA_TOKENS: u64 = 262_144;
/// Tokens, scores and merges of the header, roughly: the file is longer than its tensors by that.
const HEADER: Bytes = Bytes::mib(16);

/// Whether whole files come in this type.
pub fn is_uniform(tensor_type: GgmlType) -> bool {
    ["q8_0", "f16", "bf16"].contains(&tensor_type.name())
}

/// The facts of such a file, without a vision tower, which is a file of its own.
pub fn as_gguf(model: &Transformer, tensor_type: GgmlType) -> ModelFacts {
    let vocab = match model.family {
        Family::Gemma3 => model.vocab.min(GEMMA_TOKENS),
        _ => model.vocab,
    };
    let mut file = File { tensor_type, tensors: Vec::new() };
    file.matrix("token_embd", &[model.hidden, vocab]);
    for layer in 0..model.layers() {
        file.layer(model, layer);
    }
    file.plain("output_norm.weight", &[model.hidden]);
    if !model.tied {
        file.matrix("output", &[model.hidden, vocab]);
    }
    let bytes: Bytes = file.tensors.iter().map(|tensor| Bytes(tensor.bytes)).sum();
    let is_sliding = |full: &bool| model.sliding_window > 0 && !*full;
    let layers = model.full_attention.iter().map(|full| Layer {
        heads: model.heads,
        kv_heads: model.kv_heads,
        is_sliding: is_sliding(full),
    });
    ModelFacts {
        architecture: architecture(model.family),
        name: None,
        layers: layers.collect(),
        embedding_length: model.hidden,
        key_length: model.head_dim,
        value_length: model.head_dim,
        feed_forward_length: model.intermediate,
        vocab_size: vocab,
        long_tokens: 0,
        tokenizer_merges: 0,
        context_length: model.max_position,
        sliding_window: if model.family == Family::Gemma3 { model.sliding_window } else { 0 },
        experts: model.experts.as_ref().map(|experts| Experts {
            count: experts.count,
            used: experts.used,
            feed_forward_length: experts.intermediate,
        }),
        tensors: file.tensors,
        file_bytes: bytes + HEADER,
    }
}

fn architecture(family: Family) -> Architecture {
    match family {
        Family::Gemma3 => Architecture::Gemma3,
        Family::Llama | Family::Mistral => Architecture::Llama,
        Family::Qwen2 => Architecture::Qwen2,
        Family::Qwen3 => Architecture::Qwen3,
        Family::Qwen3Moe => Architecture::Qwen3Moe,
    }
}

/// The tensors of a file as they are added.
struct File {
    tensor_type: GgmlType,
    tensors: Vec<TensorInfo>,
}

impl File {
    fn add(&mut self, name: String, dims: &[u64], ty: GgmlType) {
        let rows: u64 = dims.iter().skip(1).product();
        let row = dims.first().and_then(|width| ty.row_bytes(*width)).unwrap_or(0);
        let bytes = row.saturating_mul(rows);
        let last = self.tensors.last();
        let offset = last.map_or(0, |last| last.offset + last.bytes.next_multiple_of(32));
        self.tensors.push(TensorInfo { name, dims: dims.to_vec(), ty, offset, bytes });
    }

    fn matrix(&mut self, name: &str, dims: &[u64]) {
        self.add(format!("{name}.weight"), dims, self.tensor_type);
    }

    fn plain(&mut self, name: &str, dims: &[u64]) {
        self.add(name.to_owned(), dims, GgmlType::F32);
    }

    fn layer(&mut self, model: &Transformer, layer: usize) {
        let (hidden, dim) = (model.hidden, model.head_dim);
        let (queries, keys) = (model.heads * dim, model.kv_heads * dim);
        let part = |name: &str| format!("blk.{layer}.{name}");
        let norm = |name: &str| format!("blk.{layer}.{name}.weight");
        self.plain(&norm("attn_norm"), &[hidden]);
        for (name, width) in [("attn_q", queries), ("attn_k", keys), ("attn_v", keys)] {
            self.matrix(&part(name), &[hidden, width]);
            if model.qkv_bias {
                self.plain(&format!("blk.{layer}.{name}.bias"), &[width]);
            }
        }
        self.matrix(&part("attn_output"), &[queries, hidden]);
        if model.qk_norm {
            self.plain(&norm("attn_q_norm"), &[dim]);
            self.plain(&norm("attn_k_norm"), &[dim]);
        }
        self.plain(&norm("ffn_norm"), &[hidden]);
        if model.family == Family::Gemma3 {
            self.plain(&norm("post_attention_norm"), &[hidden]);
            self.plain(&norm("post_ffw_norm"), &[hidden]);
        }
        match model.experts.as_ref().filter(|_| model.has_experts(layer)) {
            Some(experts) => {
                let (count, inner) = (experts.count, experts.intermediate);
                self.plain(&norm("ffn_gate_inp"), &[hidden, count]);
                self.matrix(&part("ffn_gate_exps"), &[hidden, inner, count]);
                self.matrix(&part("ffn_up_exps"), &[hidden, inner, count]);
                self.matrix(&part("ffn_down_exps"), &[inner, hidden, count]);
            }
            None => {
                let inner = model.intermediate;
                self.matrix(&part("ffn_gate"), &[hidden, inner]);
                self.matrix(&part("ffn_up"), &[hidden, inner]);
                self.matrix(&part("ffn_down"), &[inner, hidden]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

    use std::collections::BTreeMap;

    use super::*;
    use crate::model::known;

    /// A real file's header has the same tensors with the same shapes.
    #[test]
    fn tensors_are_those_of_a_real_file() {
        let real = include_str!("../../../../data/models/gemma-3-270m-q4_k_m.json");
        let real: ModelFacts = serde_json::from_str(real).unwrap();
        let config = &known::find("gemma-3-270m").unwrap().config;
        let assumed = as_gguf(
            &Transformer::from_config(config).unwrap(),
            GgmlType::from_name("q8_0").unwrap(),
        );
        let shapes = |facts: &ModelFacts| -> BTreeMap<String, Vec<u64>> {
            facts.tensors.iter().map(|one| (one.name.clone(), one.dims.clone())).collect()
        };
        assert_eq!(shapes(&assumed), shapes(&real));
        assert_eq!(assumed.layers, real.layers);
        let rest = |facts: &ModelFacts| {
            (facts.key_length, facts.vocab_size, facts.sliding_window, facts.context_length)
        };
        assert_eq!(rest(&assumed), rest(&real));
    }
}
