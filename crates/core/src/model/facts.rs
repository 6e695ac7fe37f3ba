//! The architecture behind a GGUF header, as the memory model needs it.

use serde::{Deserialize, Serialize};

use super::gguf::{Gguf, TensorInfo, Value};
use crate::units::Bytes;

/// The architectures whose graphs the memory model knows, by llama.cpp's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// Llama 1 to 3, Mistral, SmolLM and their kin.
    Llama,
    /// Gemma 2.
    Gemma2,
    /// Gemma 3 and what is tuned from it, such as MedGemma.
    Gemma3,
    /// Phi 3.
    Phi3,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3, dense.
    Qwen3,
    /// Qwen 3 with experts.
    Qwen3Moe,
}

/// llama.cpp's names of the architectures that are known here.
const ARCHITECTURES: &[(&str, Architecture)] = &[
    ("llama", Architecture::Llama),
    ("gemma2", Architecture::Gemma2),
    ("gemma3", Architecture::Gemma3),
    ("phi3", Architecture::Phi3),
    ("qwen2", Architecture::Qwen2),
    ("qwen3", Architecture::Qwen3),
    ("qwen3moe", Architecture::Qwen3Moe),
];

/// What a model is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// Its architecture.
    pub architecture: Architecture,
    /// Its name in the file, if it has one.
    pub name: Option<String>,
    /// Its layers.
    pub layers: Vec<Layer>,
    /// Width of the residual stream.
    pub embedding_length: u64,
    /// Elements of a key of one head.
    pub key_length: u64,
    /// Elements of a value of one head.
    pub value_length: u64,
    /// Width of the feed-forward part; the widest where layers differ.
    pub feed_forward_length: u64,
    /// Tokens of the vocabulary.
    pub vocab_size: u64,
    /// Tokens whose text is longer than [`super::gguf::SHORT_TEXT`] bytes.
    pub long_tokens: u64,
    /// Merges of the tokenizer, where it has them.
    pub tokenizer_merges: u64,
    /// Longest context that the model was trained for, in tokens.
    pub context_length: u64,
    /// Tokens that a sliding layer looks back; 0 where there are none.
    pub sliding_window: u64,
    /// Experts, where there are any.
    pub experts: Option<Experts>,
    /// The tensors of the file.
    pub tensors: Vec<TensorInfo>,
    /// The length of the whole file.
    pub file_bytes: Bytes,
}

/// One transformer block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Attention heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Whether it attends only to the sliding window.
    pub is_sliding: bool,
}

/// The experts of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Experts {
    /// How many there are.
    pub count: u64,
    /// How many a token uses.
    pub used: u64,
    /// Width of one expert.
    pub feed_forward_length: u64,
}

/// Why a header can't be planned with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FactsError {
    /// The memory model doesn't know this architecture.
    #[error(
        "llama.cpp's memory for the architecture `{name}` is not modelled{}; known: {}",
        near.map(|near| format!(" (its closest known family is {near})")).unwrap_or_default(),
        ARCHITECTURES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    )]
    UnknownArchitecture {
        /// The architecture's name in the file.
        name: String,
        /// The known one with the most similar name.
        near: Option<&'static str>,
    },
    /// The model comes in several files.
    #[error("this is one of {0} parts: merge them first with `llama-gguf-split --merge`")]
    Split(u64),
    /// A key that every model of the architecture has.
    #[error("its header has no usable `{0}`")]
    Missing(String),
    /// A value that no model has.
    #[error("its header says `{key}` = {value}, beyond anything sensible")]
    OutOfRange {
        /// The key.
        key: String,
        /// The value.
        value: u64,
    },
}

/// Bounds on what a header may claim: far beyond every model there is, and small enough that no
/// product of them surprises.
const MAX_LAYERS: u64 = 1 << 10;
const MAX_WIDTH: u64 = 1 << 20;
const MAX_HEADS: u64 = 1 << 12;
/// Each expert that a token uses is an operation in the graph.
const MAX_EXPERTS_USED: u64 = 128;
const MAX_VOCAB: u64 = 1 << 24;
const MAX_CONTEXT: u64 = 1 << 31;

impl ModelFacts {
    /// Reads the facts out of a header.
    ///
    /// # Errors
    /// Where the architecture isn't known, or where the header lacks what it needs.
    pub fn from_gguf(gguf: Gguf) -> Result<Self, FactsError> {
        let arch_name = gguf.text("general.architecture").unwrap_or_default();
        let Some((_, architecture)) = ARCHITECTURES.iter().find(|(name, _)| *name == arch_name)
        else {
            return Err(FactsError::UnknownArchitecture {
                name: arch_name.to_owned(),
                near: nearest_architecture(arch_name),
            });
        };
        if let Some(parts) = gguf.int("split.count").filter(|parts| *parts > 1) {
            return Err(FactsError::Split(parts));
        }
        let keys = Keys { gguf: &gguf, arch: arch_name };
        let layer_count = keys.needed("block_count", MAX_LAYERS)?;
        let embedding_length = keys.needed("embedding_length", MAX_WIDTH)?;
        let heads = keys.per_layer("attention.head_count", layer_count, MAX_HEADS, None)?;
        let kv_heads =
            keys.per_layer("attention.head_count_kv", layer_count, MAX_HEADS, Some(&heads))?;
        let first_heads = heads.first().copied().filter(|heads| *heads > 0);
        let head_dim = first_heads.map_or(0, |heads| embedding_length / heads);
        let (sliding_window, sliding) = keys.sliding(*architecture, layer_count)?;
        let feed_forward =
            keys.per_layer("feed_forward_length", layer_count, MAX_WIDTH, Some(&[0]))?;
        let layers = (0..layer_count as usize)
            .map(|i| Layer { heads: heads[i], kv_heads: kv_heads[i], is_sliding: sliding[i] })
            .collect();
        Ok(Self {
            architecture: *architecture,
            name: gguf.text("general.name").map(str::to_owned),
            layers,
            embedding_length,
            key_length: keys.optional("attention.key_length", MAX_WIDTH)?.unwrap_or(head_dim),
            value_length: keys.optional("attention.value_length", MAX_WIDTH)?.unwrap_or(head_dim),
            feed_forward_length: feed_forward.into_iter().max().unwrap_or(0),
            vocab_size: keys.vocab_size()?,
            long_tokens: match gguf.metadata.get("tokenizer.ggml.tokens") {
                Some(Value::Texts { long, .. }) => *long,
                _ => 0,
            },
            tokenizer_merges: gguf.array_len("tokenizer.ggml.merges").unwrap_or(0),
            context_length: keys.needed("context_length", MAX_CONTEXT)?,
            sliding_window,
            experts: keys.experts()?,
            file_bytes: Bytes(gguf.file_len),
            tensors: gguf.tensors,
        })
    }

    /// Whether the file has a tensor of this name.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.tensors.iter().any(|tensor| tensor.name == name)
    }
}

fn nearest_architecture(name: &str) -> Option<&'static str> {
    let known = ARCHITECTURES.iter().map(|(known, _)| *known);
    crate::spec::error::nearest(name, known)
}

/// The keys of one architecture.
struct Keys<'a> {
    gguf: &'a Gguf,
    arch: &'a str,
}

impl Keys<'_> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    fn optional(&self, key: &str, max: u64) -> Result<Option<u64>, FactsError> {
        let key = self.full(key);
        match self.gguf.int(&key) {
            Some(value) if value > max => Err(FactsError::OutOfRange { key, value }),
            value => Ok(value),
        }
    }

    fn needed(&self, key: &str, max: u64) -> Result<u64, FactsError> {
        match self.optional(key, max)? {
            Some(value) if value > 0 => Ok(value),
            _ => Err(FactsError::Missing(self.full(key))),
        }
    }

    /// A value for each layer: one for all, an array, or the `default` (one for all or an array).
    fn per_layer(
        &self,
        key: &str,
        layers: u64,
        max: u64,
        default: Option<&[u64]>,
    ) -> Result<Vec<u64>, FactsError> {
        let full = self.full(key);
        let values = match (self.gguf.metadata.get(&full), default) {
            (Some(Value::Int(value)), _) => vec![*value],
            (Some(Value::Ints(values)), _) => values.clone(),
            (None, Some(default)) => default.to_vec(),
            _ => return Err(FactsError::Missing(full)),
        };
        if let Some(value) = values.iter().copied().find(|value| *value > max) {
            return Err(FactsError::OutOfRange { key: full, value });
        }
        match values.as_slice() {
            [one] => Ok(vec![*one; layers as usize]),
            all if all.len() as u64 >= layers => Ok(all[..layers as usize].to_vec()),
            _ => Err(FactsError::Missing(full)),
        }
    }

    /// The sliding window and which layers have it: of each period all but the last
    /// (`src/models/gemma2.cpp`, `gemma3.cpp`; other architectures here ignore the keys).
    fn sliding(
        &self,
        architecture: Architecture,
        layers: u64,
    ) -> Result<(u64, Vec<bool>), FactsError> {
        let none = (0, vec![false; layers as usize]);
        let (default_window, default_period) = match architecture {
            Architecture::Gemma2 => (4096, 2),
            Architecture::Gemma3 => (0, 6),
            _ => return Ok(none),
        };
        let window =
            self.optional("attention.sliding_window", MAX_CONTEXT)?.unwrap_or(default_window);
        if window == 0 && architecture != Architecture::Gemma2 {
            return Ok(none);
        }
        // llama.cpp ignores a pattern that is an array here.
        let key = self.full("attention.sliding_window_pattern");
        let period = self.gguf.int(&key).unwrap_or(default_period);
        Ok((window, periodic(period, layers)))
    }

    fn vocab_size(&self) -> Result<u64, FactsError> {
        let embedding = self.gguf.tensor("token_embd.weight").map(|tensor| tensor.ne(1));
        let size = embedding.filter(|size| *size > 0);
        match size.ok_or_else(|| FactsError::Missing("token_embd.weight".to_owned()))? {
            value if value > MAX_VOCAB => {
                Err(FactsError::OutOfRange { key: "token_embd.weight".to_owned(), value })
            }
            value => Ok(value),
        }
    }

    fn experts(&self) -> Result<Option<Experts>, FactsError> {
        let count = self.optional("expert_count", MAX_HEADS)?.unwrap_or(0);
        if count == 0 {
            return Ok(None);
        }
        Ok(Some(Experts {
            count,
            used: self.needed("expert_used_count", count.min(MAX_EXPERTS_USED))?,
            feed_forward_length: self.needed("expert_feed_forward_length", MAX_WIDTH)?,
        }))
    }
}

fn periodic(period: u64, layers: u64) -> Vec<bool> {
    (0..layers).map(|layer| period == 0 || layer % period < period - 1).collect()
}
