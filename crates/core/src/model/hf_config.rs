//! A transformer as its `config.json` describes it, for vLLM.
//!
//! Configs are sparse: what they leave out comes from each family's class in transformers (5.x), so
//! the defaults here are data with that source. What is not known is an error that names the
//! closest family, never a guess.

use serde::{Deserialize, Serialize};
use serde_json::Value;

mod quantization;
mod rope;

pub use quantization::{Fp8Scales, IntegerFormat, Quantization};
use quantization::{has_fp8_cache, quantization};
use rope::{Scaling, rope_rows};

/// The families whose memory in vLLM is modelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Gemma 3, text only or with vision; MedGemma.
    Gemma3,
    /// Llama 2 and 3.x.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3, dense.
    Qwen3,
    /// Qwen 3 with experts.
    Qwen3Moe,
}

/// What a model is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Transformer {
    /// Its family.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Layers; `true` for those that attend to everything.
    pub full_attention: Vec<bool>,
    /// Attention heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Elements of a head.
    pub head_dim: u64,
    /// Width of the feed-forward part.
    pub intermediate: u64,
    /// Tokens of the vocabulary.
    pub vocab: u64,
    /// Longest context, in tokens.
    pub max_position: u64,
    /// Whether the output head is the embedding.
    pub tied: bool,
    /// Whether query, key and value have a bias, and the output of attention.
    pub qkv_bias: bool,
    /// Whether attention's output has a bias.
    pub output_bias: bool,
    /// Whether queries and keys are normed.
    pub qk_norm: bool,
    /// Rows of each distinct table of rotary embeddings: one for sliding layers, one for the others.
    pub rope_rows: Vec<u64>,
    /// Tokens that sliding layers look back.
    pub sliding_window: u64,
    /// Experts, in the layers that have them.
    pub experts: Option<Experts>,
    /// The vision tower.
    pub vision: Option<Vision>,
    /// Quantised weights.
    pub quantization: Option<Quantization>,
    /// Whether the checkpoint asks for a cache in 8-bit floats.
    pub fp8_cache: bool,
}

/// The experts of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Experts {
    /// How many a layer has.
    pub count: u64,
    /// How many a token uses.
    pub used: u64,
    /// Width of one.
    pub intermediate: u64,
    /// The layers that have them.
    pub layers: Vec<bool>,
}

/// A SigLIP tower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vision {
    /// Width.
    pub hidden: u64,
    /// Width of the feed-forward part.
    pub intermediate: u64,
    /// Layers.
    pub layers: u64,
    /// Attention heads.
    pub heads: u64,
    /// Patches of an image.
    pub patches: u64,
    /// Elements of a patch.
    pub patch_elements: u64,
}

impl Vision {
    /// The same, where they fit into 64 bits, as they do for all there are.
    pub fn parameters_to(&self, width: u64) -> u64 {
        u64::try_from(self.parameters(u128::from(width))).unwrap_or(u64::MAX / 2)
    }

    /// Parameters of the tower and of its projector to `width`.
    fn parameters(&self, width: u128) -> u128 {
        let wide = u128::from;
        let (hidden, inner) = (wide(self.hidden), wide(self.intermediate));
        let layer = 4 * hidden * (hidden + 1) + 2 * hidden * inner + inner + 5 * hidden;
        let embeddings = (wide(self.patch_elements) + 1 + wide(self.patches)) * hidden;
        wide(self.layers) * layer + embeddings + 2 * hidden + hidden * width + hidden
    }
}

/// Why a config can't be planned with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No family that is known.
    #[error(
        "the architecture `{name}` is not modelled for vLLM; the closest known family is {near}"
    )]
    UnknownArchitecture {
        /// Its name in the config.
        name: String,
        /// The known one with the most similar name.
        near: &'static str,
    },
    /// A way of quantising that is not known.
    #[error(
        "{what} is not modelled for vLLM; known are fp8, int8, and awq, gptq and compressed-tensors with 4 or 8 bits"
    )]
    UnknownQuantization {
        /// What the config says.
        what: String,
    },
    /// A key without which nothing can be said, or a value that no model has.
    #[error("its config.json has no usable `{0}`")]
    Unusable(String),
}

/// Class defaults: vocabulary, hidden, intermediate, layers, heads, kv heads (0: as heads), head
/// dimension (0: hidden / heads), positions, sliding window, tied.
struct Defaults {
    architecture: &'static str,
    model_type: &'static str,
    family: Family,
    values: [u64; 9],
    tied: bool,
}

const fn defaults(
    architecture: &'static str,
    model_type: &'static str,
    family: Family,
    values: [u64; 9],
    tied: bool,
) -> Defaults {
    Defaults { architecture, model_type, family, values, tied }
}

const GEMMA3: [u64; 9] = [262_208, 2304, 9216, 26, 8, 4, 256, 131_072, 4096];
const MULTIMODAL: &str = "Gemma3ForConditionalGeneration";

const FAMILIES: &[Defaults] = &[
    defaults(MULTIMODAL, "gemma3", Family::Gemma3, GEMMA3, true),
    defaults("Gemma3ForCausalLM", "gemma3_text", Family::Gemma3, GEMMA3, true),
    defaults(
        "LlamaForCausalLM",
        "llama",
        Family::Llama,
        [32_000, 4096, 11_008, 32, 32, 0, 0, 2048, 0],
        false,
    ),
    defaults(
        "MistralForCausalLM",
        "mistral",
        Family::Mistral,
        [32_000, 4096, 14_336, 32, 32, 8, 0, 131_072, 0],
        false,
    ),
    defaults(
        "Qwen2ForCausalLM",
        "qwen2",
        Family::Qwen2,
        [151_936, 4096, 22_016, 32, 32, 32, 0, 32_768, 0],
        false,
    ),
    defaults(
        "Qwen3ForCausalLM",
        "qwen3",
        Family::Qwen3,
        [151_936, 4096, 22_016, 32, 32, 32, 128, 32_768, 0],
        false,
    ),
    defaults(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        Family::Qwen3Moe,
        [151_936, 2048, 6144, 24, 32, 4, 0, 32_768, 0],
        false,
    ),
];

/// Bounds far beyond every model there is, and small enough that no product of them surprises.
const MAX_WIDTH: u64 = 1 << 20;
const MAX_LAYERS: u64 = 1 << 10;
const MAX_HEADS: u64 = 1 << 12;
const MAX_VOCAB: u64 = 1 << 24;
const MAX_POSITION: u64 = 1 << 31;
/// Every sixth layer of Gemma 3 attends to everything.
const GEMMA3_PATTERN: u64 = 6;

impl Transformer {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// Where the family isn't known, or where a value is none that a model can have.
    pub fn from_config(config: &Value) -> Result<Self, ConfigError> {
        let known = family(config)?;
        let is_multimodal = known.architecture == MULTIMODAL;
        let text = if is_multimodal { &config["text_config"] } else { config };
        let keys = Keys { text, known };
        let layers = keys.number("num_hidden_layers", 3, MAX_LAYERS)?;
        let heads = keys.number("num_attention_heads", 4, MAX_HEADS)?;
        let kv_heads = keys.optional("num_key_value_heads", 5, MAX_HEADS)?.unwrap_or(heads);
        let hidden = keys.number("hidden_size", 1, MAX_WIDTH)?;
        let head_dim = match keys.optional("head_dim", 6, MAX_WIDTH)?.unwrap_or(hidden / heads) {
            0 => return Err(ConfigError::Unusable("head_dim".to_owned())),
            head_dim => head_dim,
        };
        let positions = keys.number("max_position_embeddings", 7, MAX_POSITION)?;
        let scaling = Scaling::of(text);
        let max_position = match known.family {
            // Gemma 3's is scaled already.
            Family::Gemma3 => positions,
            _ => scaling.longest(positions),
        };
        let (sliding_window, full_attention) = keys.sliding(layers)?;
        let bias = text["attention_bias"].as_bool().unwrap_or(false);
        let family = known.family;
        let tied = config["tie_word_embeddings"].as_bool();
        Ok(Self {
            family,
            hidden,
            heads,
            kv_heads,
            head_dim,
            intermediate: keys.number("intermediate_size", 2, MAX_WIDTH)?,
            vocab: keys.number("vocab_size", 0, MAX_VOCAB)?,
            max_position,
            tied: tied.or(text["tie_word_embeddings"].as_bool()).unwrap_or(known.tied),
            qkv_bias: family == Family::Qwen2 || bias,
            output_bias: bias && matches!(family, Family::Gemma3 | Family::Llama),
            qk_norm: matches!(family, Family::Gemma3 | Family::Qwen3 | Family::Qwen3Moe),
            rope_rows: rope_rows(family, &scaling, positions, &full_attention),
            full_attention,
            sliding_window,
            experts: keys.experts(layers)?,
            vision: if is_multimodal { Some(vision(&config["vision_config"])?) } else { None },
            quantization: quantization(config, text)?,
            fp8_cache: has_fp8_cache(config) || has_fp8_cache(text),
        })
    }

    /// How many layers it has.
    pub fn layers(&self) -> usize {
        self.full_attention.len()
    }

    /// Whether the feed-forward part of a layer is made of experts.
    pub fn has_experts(&self, layer: usize) -> bool {
        self.experts.as_ref().is_some_and(|experts| experts.layers.get(layer) == Some(&true))
    }

    /// The parameters that a token uses: of experts only those that it is sent to.
    pub fn active_parameters(&self) -> u64 {
        let Some(experts) = &self.experts else { return self.parameters() };
        let unused = experts.count.saturating_sub(experts.used);
        let each = (3 * self.hidden).saturating_mul(experts.intermediate);
        let layers = experts.layers.iter().filter(|has| **has).count() as u64;
        self.parameters().saturating_sub(each.saturating_mul(unused).saturating_mul(layers))
    }

    /// Its parameters, as a checkpoint has them.
    pub fn parameters(&self) -> u64 {
        let wide = u128::from;
        let (hidden, head) = (wide(self.hidden), wide(self.head_dim));
        let (queries, keys) = (wide(self.heads) * head, wide(self.kv_heads) * head);
        let bias = |is_there: bool, width: u128| if is_there { width } else { 0 };
        let attention = hidden * (queries + 2 * keys)
            + bias(self.qkv_bias, queries + 2 * keys)
            + queries * hidden
            + bias(self.output_bias, hidden)
            + bias(self.qk_norm, 2 * head);
        let norms = if self.family == Family::Gemma3 { 4 } else { 2 };
        let layer = |index: usize| match &self.experts {
            Some(experts) if self.has_experts(index) => {
                wide(experts.count) * hidden * (1 + 3 * wide(experts.intermediate))
            }
            _ => 3 * hidden * wide(self.intermediate),
        };
        let layers: u128 =
            (0..self.layers()).map(|index| attention + norms * hidden + layer(index)).sum();
        let heads = if self.tied { 1 } else { 2 };
        let vision = self.vision.map_or(0, |vision| vision.parameters(hidden));
        let all = layers + heads * wide(self.vocab) * hidden + hidden + vision;
        u64::try_from(all).unwrap_or(u64::MAX)
    }
}

fn family(config: &Value) -> Result<&'static Defaults, ConfigError> {
    let named = config["architectures"][0].as_str();
    let model_type = config["model_type"].as_str().unwrap_or_default();
    let found = FAMILIES.iter().find(|known| match named {
        Some(name) => known.architecture == name,
        None => known.model_type == model_type,
    });
    found.ok_or_else(|| {
        let name = named.unwrap_or(model_type);
        ConfigError::UnknownArchitecture { name: name.to_owned(), near: nearest(name) }
    })
}

/// The known architecture that shares the longest beginning with `name`.
fn nearest(name: &str) -> &'static str {
    let shared = |known: &str| {
        let pairs = known.chars().zip(name.chars());
        pairs.take_while(|(a, b)| a.eq_ignore_ascii_case(b)).count()
    };
    let names = FAMILIES.iter().map(|known| known.architecture);
    names.max_by_key(|known| shared(known)).unwrap_or("LlamaForCausalLM")
}

/// The keys of the text model, over its family's defaults.
struct Keys<'a> {
    text: &'a Value,
    known: &'static Defaults,
}

impl Keys<'_> {
    /// A number; `None` where neither config nor class says one.
    fn optional(&self, key: &str, default: usize, max: u64) -> Result<Option<u64>, ConfigError> {
        let unusable = || ConfigError::Unusable(key.to_owned());
        let value = match &self.text[key] {
            Value::Null => self.known.values[default],
            value => {
                value.as_u64().filter(|value| (1..=max).contains(value)).ok_or_else(unusable)?
            }
        };
        Ok((value > 0).then_some(value))
    }

    fn number(&self, key: &str, default: usize, max: u64) -> Result<u64, ConfigError> {
        self.optional(key, default, max)?.ok_or_else(|| ConfigError::Unusable(key.to_owned()))
    }

    /// The window, and for each layer whether it attends to everything.
    fn sliding(&self, layers: u64) -> Result<(u64, Vec<bool>), ConfigError> {
        let layer_count = layers as usize;
        let window = match self.known.family {
            Family::Gemma3 => self.optional("sliding_window", 8, MAX_POSITION)?.unwrap_or(0),
            // Mistral slides only where its config says so, Qwen only where it is switched on.
            Family::Mistral => self.text["sliding_window"].as_u64().unwrap_or(0),
            Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe
                if self.text["use_sliding_window"] == true =>
            {
                self.text["sliding_window"].as_u64().unwrap_or(0)
            }
            _ => 0,
        };
        if window == 0 {
            return Ok((0, vec![true; layer_count]));
        }
        let full = match self.known.family {
            Family::Gemma3 => match self.text["layer_types"].as_array() {
                Some(types) if types.len() == layer_count => {
                    types.iter().map(|ty| ty == "full_attention").collect()
                }
                _ => {
                    let keys = ["sliding_window_pattern", "_sliding_window_pattern"];
                    let pattern = keys.iter().find_map(|key| self.text[*key].as_u64());
                    let pattern = pattern.unwrap_or(GEMMA3_PATTERN).max(1);
                    (1..=layers).map(|layer| layer % pattern == 0).collect()
                }
            },
            Family::Mistral | Family::Llama => vec![false; layer_count],
            _ => {
                let first = self.text["max_window_layers"].as_u64().unwrap_or(layers);
                (0..layers).map(|layer| layer < first).collect()
            }
        };
        Ok((window, full))
    }

    fn experts(&self, layers: u64) -> Result<Option<Experts>, ConfigError> {
        if self.known.family != Family::Qwen3Moe {
            return Ok(None);
        }
        let number = |key: &str, default: u64, max: u64| match &self.text[key] {
            Value::Null => Ok(default),
            value => {
                let usable = value.as_u64().filter(|value| (1..=max).contains(value));
                usable.ok_or_else(|| ConfigError::Unusable(key.to_owned()))
            }
        };
        let step = number("decoder_sparse_step", 1, MAX_LAYERS)?;
        let dense: Vec<u64> = match self.text["mlp_only_layers"].as_array() {
            Some(layers) => layers.iter().filter_map(Value::as_u64).collect(),
            None => Vec::new(),
        };
        Ok(Some(Experts {
            count: number("num_experts", 128, MAX_HEADS)?,
            used: number("num_experts_per_tok", 8, 128)?,
            intermediate: number("moe_intermediate_size", 768, MAX_WIDTH)?,
            layers: (0..layers).map(|l| !dense.contains(&l) && (l + 1) % step == 0).collect(),
        }))
    }
}

/// SigLIP's class defaults fill what the config leaves out.
fn vision(config: &Value) -> Result<Vision, ConfigError> {
    let number = |key: &str, default: u64| match &config[key] {
        Value::Null => Ok(default),
        value => {
            let usable = value.as_u64().filter(|value| (1..=MAX_WIDTH).contains(value));
            usable.ok_or_else(|| ConfigError::Unusable(format!("vision_config.{key}")))
        }
    };
    let (image, patch) = (number("image_size", 224)?, number("patch_size", 16)?);
    Ok(Vision {
        hidden: number("hidden_size", 768)?,
        intermediate: number("intermediate_size", 3072)?,
        layers: number("num_hidden_layers", 12)?.min(MAX_LAYERS),
        heads: number("num_attention_heads", 12)?,
        patches: (image / patch).saturating_pow(2),
        patch_elements: patch.saturating_pow(2).saturating_mul(3),
    })
}
