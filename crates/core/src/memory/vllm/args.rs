//! vLLM's arguments, resolved as vLLM resolves them.

use serde_json::Value;

use super::Gpu;
use super::communicators::Forbidden;
use super::version::Version;
use crate::model::hf_config::{Family, Fp8Scales, IntegerFormat, Quantization, Transformer};
use crate::units::Bytes;

/// Cards from these sizes on get larger defaults (`vllm/engine/arg_utils.py`); A100s never do.
const LARGE_CARD: Bytes = Bytes::gib(70);
const HUGE_CARD: Bytes = Bytes::gib(160);
/// `gpu_memory_utilization` where none is given (`vllm/config/cache.py`).
pub const DEFAULT_UTILIZATION: f64 = 0.92;
/// Arguments that take memory in ways that are not modelled: better said than passed over.
const UNMODELLED: [&str; 8] = [
    "compilation_config",
    "cpu_offload_gb",
    "data_parallel_size",
    "decode_context_parallel_size",
    "enable_expert_parallel",
    "enable_lora",
    "kv_transfer_config",
    "speculative_config",
];
/// Bounds on what arguments may say: far beyond use, and small enough that no product surprises.
const MAX_TOKENS: u64 = 1 << 24;
const MAX_LENGTH: u64 = 1 << 31;
const MAX_RANKS: u64 = 1 << 10;

/// How vLLM is started: defaults differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EntryPoint {
    /// `vllm serve`.
    #[default]
    Serve,
    /// The class `LLM`.
    Llm,
}

/// The type of activations; old cards fall back to float16 by themselves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dtype {
    Bfloat16,
    Float16,
    OldFloat16,
    Float32,
}

/// The arguments that memory depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct VllmArgs {
    /// `tensor_parallel_size`.
    pub tensor_parallel: u64,
    /// Layers of each pipeline stage.
    pub partition: Vec<usize>,
    /// `gpu_memory_utilization`.
    pub utilization: f64,
    /// `max_num_batched_tokens`.
    pub batched_tokens: u64,
    /// `max_num_seqs`, at most the batched tokens.
    pub sequences: u64,
    /// `max_model_len`; where it is automatic, the model's own.
    pub max_model_len: u64,
    /// `VLLM_ALLOW_LONG_MAX_MODEL_LEN`.
    pub may_be_too_long: bool,
    /// Whether `max_model_len` shrinks to what fits.
    pub auto_length: bool,
    /// Bytes of an activation.
    pub dtype_bytes: u64,
    /// Whether activations are bfloat16.
    pub is_bfloat16: bool,
    /// Whether they were asked to be float16.
    pub is_float16: bool,
    /// Bytes of an element of the KV cache.
    pub kv_dtype_bytes: u64,
    /// `block_size` in tokens.
    pub block_size: u64,
    /// `enforce_eager`.
    pub eager: bool,
    /// How weights are kept, on-line quantisation included.
    pub quantization: Option<Quantization>,
    /// Whether the vision tower is built.
    pub with_vision: bool,
    /// Whether every rank has all of the vision tower (`mm_encoder_tp_mode`).
    pub whole_encoder: bool,
    /// `enable_sleep_mode`.
    pub can_sleep: bool,
    /// `kv_cache_memory_bytes`.
    pub kv_cache_bytes: Option<Bytes>,
    /// `num_gpu_blocks_override`.
    pub blocks_override: Option<u64>,
    /// Not `disable_hybrid_kv_cache_manager`.
    pub hybrid_cache: bool,
    /// `async_scheduling`.
    pub async_scheduling: bool,
    /// What ranks may not use to talk to each other.
    pub forbidden: Forbidden,
}

/// An argument that vLLM would refuse or that is not modelled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` = {value}: {why}")]
pub struct ArgError {
    name: String,
    value: String,
    why: &'static str,
}

struct Reader<'a>(&'a Value);

impl Reader<'_> {
    fn error(&self, name: &str, why: &'static str) -> ArgError {
        ArgError { name: name.to_owned(), value: self.0[name].to_string(), why }
    }

    fn number(&self, name: &str, max: u64) -> Result<Option<u64>, ArgError> {
        match &self.0[name] {
            Value::Null => Ok(None),
            value => match value.as_u64().filter(|n| (1..=max).contains(n)) {
                Some(n) => Ok(Some(n)),
                None => Err(self.error(name, "expected a positive whole number")),
            },
        }
    }

    /// The default of `max_num_batched_tokens` and of `max_num_seqs`.
    fn defaults(gpu: &Gpu, version: Version, entry_point: EntryPoint) -> (u64, u64) {
        let is_a100 = gpu.kind.is_some_and(|kind| kind.name.starts_with("A100"));
        let is_huge = gpu.total >= HUGE_CARD && version >= (0, 28);
        match (gpu.total >= LARGE_CARD && !is_a100, entry_point) {
            (true, EntryPoint::Llm) => (16_384, 1024),
            (true, EntryPoint::Serve) if is_huge => (16_384, 1024),
            (true, EntryPoint::Serve) => (8192, 1024),
            (false, EntryPoint::Llm) => (8192, 256),
            (false, EntryPoint::Serve) => (2048, 256),
        }
    }

    /// Whether an argument is there and says more than that there is none.
    fn is_set(&self, name: &str) -> bool {
        !matches!(&self.0[name], Value::Null | Value::Bool(false))
            && self.0[name] != 0
            && self.0[name] != 1
    }

    fn flag(&self, name: &str, default: bool) -> bool {
        self.0[name].as_bool().unwrap_or(default)
    }
}

impl VllmArgs {
    /// Resolves a JSON object of vLLM's own argument names for a model on a GPU.
    ///
    /// # Errors
    /// Where an argument is none that vLLM takes, or one whose memory is not modelled.
    pub fn resolve(
        args: &Value,
        model: &Transformer,
        gpu: &Gpu,
        version: Version,
        entry_point: EntryPoint,
    ) -> Result<Self, ArgError> {
        let reader = Reader(args);
        if let Some(name) = UNMODELLED.iter().find(|name| reader.is_set(name)) {
            return Err(reader.error(name, "its memory is not modelled"));
        }
        let (default_tokens, default_sequences) = Reader::defaults(gpu, version, entry_point);
        let asked_sequences = reader.number("max_num_seqs", MAX_TOKENS)?;
        let sequences = asked_sequences.unwrap_or(default_sequences);
        let asked = &args["max_model_len"];
        let auto_length = *asked == -1 || *asked == "auto";
        let max_model_len = match auto_length {
            true => model.max_position,
            false => reader.number("max_model_len", MAX_LENGTH)?.unwrap_or(model.max_position),
        };
        let mut default_tokens = sequences.saturating_mul(max_model_len).min(default_tokens);
        if args["enable_chunked_prefill"] == false {
            default_tokens = default_tokens.max(max_model_len).min(MAX_TOKENS);
        }
        let batched_tokens =
            reader.number("max_num_batched_tokens", MAX_TOKENS)?.unwrap_or(default_tokens);
        if asked_sequences.is_some_and(|sequences| sequences > batched_tokens) {
            let why = "max_num_batched_tokens must be greater than or equal to max_num_seqs";
            return Err(reader.error("max_num_seqs", why));
        }
        let dtype = dtype(&reader, model, gpu)?;
        let dtype_bytes = if dtype == Dtype::Float32 { 4 } else { 2 };
        let kv_dtype = args["kv_cache_dtype"].as_str().unwrap_or("auto");
        let kv_dtype_bytes = match kv_dtype {
            "auto" if model.fp8_cache => 1,
            "auto" => dtype_bytes,
            "bfloat16" | "float16" => 2,
            name if name.starts_with("fp8") => 1,
            _ => return Err(reader.error("kv_cache_dtype", "not modelled; auto and fp8 are")),
        };
        let image_limit = match &args["limit_mm_per_prompt"]["image"] {
            Value::Object(limit) => limit.get("count").and_then(Value::as_u64),
            limit => limit.as_u64(),
        };
        Ok(Self {
            tensor_parallel: reader.number("tensor_parallel_size", MAX_RANKS)?.unwrap_or(1),
            partition: partition(&reader, model.layers())?,
            utilization: utilization(&reader)?,
            batched_tokens,
            sequences: sequences.min(batched_tokens),
            max_model_len,
            may_be_too_long: args["env"]["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] == "1",
            auto_length,
            dtype_bytes,
            is_bfloat16: dtype == Dtype::Bfloat16,
            is_float16: dtype == Dtype::Float16,
            kv_dtype_bytes,
            block_size: reader.number("block_size", 1 << 16)?.unwrap_or(16),
            eager: reader.flag("enforce_eager", false),
            quantization: quantization(&reader, model)?,
            with_vision: model.vision.is_some()
                && !reader.flag("language_model_only", false)
                && image_limit != Some(0),
            whole_encoder: args["mm_encoder_tp_mode"] == "data",
            can_sleep: reader.flag("enable_sleep_mode", false),
            kv_cache_bytes: reader.number("kv_cache_memory_bytes", 1 << 50)?.map(Bytes),
            blocks_override: reader.number("num_gpu_blocks_override", 1 << 40)?,
            hybrid_cache: !reader.flag("disable_hybrid_kv_cache_manager", false),
            async_scheduling: reader.flag("async_scheduling", true),
            forbidden: Forbidden {
                peers: args["env"]["NCCL_P2P_DISABLE"] == "1",
                multicast: args["env"]["NCCL_NVLS_ENABLE"] == "0",
                symmetric: args["env"]["VLLM_ALLREDUCE_USE_SYMM_MEM"] == "0",
                custom: reader.flag("disable_custom_all_reduce", false),
            },
        })
    }

    /// Pipeline stages.
    pub fn stages(&self) -> usize {
        self.partition.len()
    }

    /// The layers of a stage.
    pub fn stage_layers(&self, stage: usize) -> std::ops::Range<usize> {
        let start: usize = self.partition[..stage].iter().sum();
        start..start + self.partition[stage]
    }
}

fn dtype(reader: &Reader<'_>, model: &Transformer, gpu: &Gpu) -> Result<Dtype, ArgError> {
    // Cards before 8.0 have no bfloat16; Gemma 3 has no float16 and falls back further.
    let is_old = gpu.card.compute_capability < (8, 0);
    let dtype = match reader.0["dtype"].as_str().unwrap_or("auto") {
        "auto" if !is_old => Dtype::Bfloat16,
        "auto" if model.family == Family::Gemma3 => Dtype::Float32,
        "auto" => Dtype::OldFloat16,
        "float32" | "float" => Dtype::Float32,
        "bfloat16" => Dtype::Bfloat16,
        "float16" | "half" => Dtype::Float16,
        _ => return Err(reader.error("dtype", "expected auto, bfloat16, float16 or float32")),
    };
    Ok(dtype)
}

fn utilization(reader: &Reader<'_>) -> Result<f64, ArgError> {
    let name = "gpu_memory_utilization";
    match &reader.0[name] {
        Value::Null => Ok(DEFAULT_UTILIZATION),
        value => value
            .as_f64()
            .filter(|share| *share > 0.0 && *share <= 1.0)
            .ok_or_else(|| reader.error(name, "expected more than 0 and at most 1")),
    }
}

/// Layers of each stage (`vllm/distributed/utils.py`): what does not divide goes to the middle
/// stages, from the last but one backwards. `VLLM_PP_LAYER_PARTITION` says it otherwise.
fn partition(reader: &Reader<'_>, layers: usize) -> Result<Vec<usize>, ArgError> {
    let stages = reader.number("pipeline_parallel_size", MAX_RANKS)?.unwrap_or(1) as usize;
    let said = &reader.0["env"]["VLLM_PP_LAYER_PARTITION"];
    if let Some(text) = said.as_str() {
        let parts: Option<Vec<usize>> =
            text.split(',').map(|part| part.trim().parse().ok()).collect();
        return match parts {
            Some(parts)
                if parts.len() == stages
                    && parts.iter().try_fold(0_usize, |sum, part| sum.checked_add(*part))
                        == Some(layers) =>
            {
                Ok(parts)
            }
            _ => {
                Err(reader
                    .error("env", "VLLM_PP_LAYER_PARTITION must add up to the model's layers"))
            }
        };
    }
    if stages > layers {
        return Err(reader.error("pipeline_parallel_size", "the model has fewer layers"));
    }
    let mut parts = vec![layers / stages; stages];
    for i in 2..layers % stages + 2 {
        parts[stages - i] += 1;
    }
    Ok(parts)
}

fn quantization(
    reader: &Reader<'_>,
    model: &Transformer,
) -> Result<Option<Quantization>, ArgError> {
    let asked = match reader.0["quantization"].as_str() {
        None => return Ok(model.quantization),
        Some(asked) => asked,
    };
    let is_asked = |own: Quantization| match own {
        Quantization::Fp8 { .. } => matches!(asked, "fp8" | "compressed-tensors"),
        Quantization::Int8 => asked == "compressed-tensors",
        Quantization::Integer { format: IntegerFormat::Awq, .. } => {
            matches!(asked, "awq" | "awq_marlin" | "auto_awq" | "marlin")
        }
        Quantization::Integer { format: IntegerFormat::Gptq { .. }, .. } => {
            matches!(asked, "gptq" | "gptq_marlin" | "auto_gptq" | "marlin")
        }
        Quantization::Integer { .. } => asked == "compressed-tensors",
    };
    match (asked, model.quantization) {
        (_, Some(own)) if is_asked(own) => Ok(Some(own)),
        (_, Some(_)) => Err(reader.error(
            "quantization",
            "Quantization method specified in the model config does not match the quantization method \
             specified in the `quantization` argument",
        )),
        ("fp8" | "fp8_per_tensor", None) => {
            Ok(Some(Quantization::Fp8 { scales: Fp8Scales::Tensor, online: true }))
        }
        (_, None) => Err(reader.error(
            "quantization",
            "for weights that are not quantised yet only fp8 is modelled",
        )),
    }
}
