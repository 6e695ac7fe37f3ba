//! What vLLM refuses before it takes any memory, in the order in which it looks.

use super::{Gpu, VllmArgs, messages, weights};
use crate::memory::Verdict;
use crate::model::hf_config::{Family, Fp8Scales, IntegerFormat, Quantization, Transformer};

/// The first thing that is refused, if any.
pub(super) fn refusal(
    model: &Transformer,
    args: &VllmArgs,
    gpu: &Gpu,
    version: super::version::Version,
) -> Option<(Verdict, String)> {
    gemma_in_half(model, args)
        .or_else(|| beyond_the_model(model, args))
        .map(unsupported)
        .or_else(|| heads(model, args).map(not_divisible))
        .or_else(|| method_too_new(args, gpu, version).map(unsupported))
        .or_else(|| bfloat16_too_new(args, gpu).map(unsupported))
}

/// What is refused while the model is built, after memory was asked for.
pub(super) fn while_building(
    model: &Transformer,
    args: &VllmArgs,
    gpu: &Gpu,
) -> Option<(Verdict, String)> {
    parts(model, args)
        .or_else(|| quantized_parts(model, args))
        .map(not_divisible)
        .or_else(|| fp8_cache(args, gpu).map(unsupported))
}

fn unsupported(message: String) -> (Verdict, String) {
    (Verdict::Unsupported, message)
}

fn not_divisible(message: String) -> (Verdict, String) {
    (Verdict::HeadsNotDivisible, message)
}

/// `config/model.py`: Gemma 3 has no float16.
fn gemma_in_half(model: &Transformer, args: &VllmArgs) -> Option<String> {
    (model.family == Family::Gemma3 && args.is_float16).then(|| {
        let name = if model.vision.is_some() { "gemma3" } else { "gemma3_text" };
        format!(
            "ValueError: The model type '{name}' does not support float16. Reason: Numerical instability. \
             Please use bfloat16 or float32 instead."
        )
    })
}

/// `config/model.py`, `_get_and_verify_max_len`.
fn beyond_the_model(model: &Transformer, args: &VllmArgs) -> Option<String> {
    let (length, derived) = (args.max_model_len, model.max_position);
    (length > derived && !args.may_be_too_long).then(|| {
        format!(
            "ValueError: User-specified max_model_len ({length}) is greater than the derived max_model_len \
             (max_position_embeddings={derived} or model_max_length=None in model's config.json). To allow \
             overriding this maximum, set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1."
        )
    })
}

/// `config/model.py`, `verify_with_parallel_config`.
fn heads(model: &Transformer, args: &VllmArgs) -> Option<String> {
    let ranks = args.tensor_parallel;
    (!model.heads.is_multiple_of(ranks)).then(|| messages::heads(model.heads, ranks))
}

/// `config/vllm.py`: each method's least compute capability.
fn method_too_new(args: &VllmArgs, gpu: &Gpu, version: super::version::Version) -> Option<String> {
    let quantization = args.quantization?;
    if version >= (0, 33)
        && let Quantization::Integer {
            format: IntegerFormat::Gptq { desc_act: true }, group, ..
        } = quantization
        && group > 0
    {
        return Some(
            "ValueError: GPTQ group activation ordering (desc_act=True) is no longer supported. Use a \
             checkpoint with static activation ordering or desc_act=False."
                .to_owned(),
        );
    }
    let (name, least) = match quantization {
        Quantization::Fp8 { .. } => ("fp8", 75),
        Quantization::Int8 => ("compressed-tensors", 75),
        Quantization::Integer { format: IntegerFormat::Awq, .. } => ("auto_awq", 75),
        Quantization::Integer { format: IntegerFormat::Gptq { .. }, .. } => ("auto_gptq", 75),
        Quantization::Integer { .. } => ("compressed-tensors", 75),
    };
    let (major, minor) = gpu.card.compute_capability;
    let current = major * 10 + minor;
    (current < least).then(|| {
        format!(
            "ValueError: The quantization method {name} is not supported for the current GPU. Minimum \
             capability: {least}. Current capability: {current}."
        )
    })
}

/// `platforms/cuda.py`, `check_if_supports_dtype`.
fn bfloat16_too_new(args: &VllmArgs, gpu: &Gpu) -> Option<String> {
    let (major, minor) = gpu.card.compute_capability;
    (args.is_bfloat16 && major < 8).then(|| {
        let name = gpu.kind.map_or("GPU", |kind| kind.name.as_str());
        format!(
            "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your \
             {name} GPU has compute capability {major}.{minor}. You can use float16 instead by explicitly \
             setting the `dtype` flag in CLI, for example: --dtype=half."
        )
    })
}

/// Whether tensor parallelism divides what it must (`distributed/utils.py`).
fn parts(model: &Transformer, args: &VllmArgs) -> Option<String> {
    let ranks = args.tensor_parallel;
    let heads = match ranks <= model.kv_heads {
        true => (model.kv_heads, ranks),
        false => (ranks, model.kv_heads),
    };
    let vocab = weights::padded_vocab(model);
    let mut checks = vec![heads, (vocab, ranks)];
    match &model.experts {
        Some(experts) => checks.push((experts.intermediate, ranks)),
        None => checks.push((model.intermediate, ranks)),
    }
    if let Some(vision) = model.vision.filter(|_| args.with_vision && !args.whole_encoder) {
        checks.extend([(vision.heads, ranks), (vision.intermediate, ranks)]);
    }
    let bad = checks.into_iter().find(|(whole, part)| whole % part != 0);
    bad.map(|(whole, part)| format!("AssertionError: {whole} is not divisible by {part}"))
}

/// Groups and blocks of quantised weights must not be cut.
fn quantized_parts(model: &Transformer, args: &VllmArgs) -> Option<String> {
    let ranks = args.tensor_parallel;
    let inner = match &model.experts {
        Some(experts) => experts.intermediate,
        None => model.intermediate,
    } / ranks;
    let queries = weights::rank_heads(model, args) * model.head_dim;
    match args.quantization? {
        Quantization::Fp8 { scales: Fp8Scales::Block(rows, columns), .. } => {
            let outputs = (!inner.is_multiple_of(rows)).then(|| {
                format!("ValueError: Weight output_partition_size = {inner} is not divisible by weight quantization block_n = {rows}.")
            });
            let inputs =
                [queries, inner].into_iter().find(|inputs| !inputs.is_multiple_of(columns));
            outputs.or_else(|| inputs.map(|inputs| {
                format!("ValueError: Weight input_size_per_partition = {inputs} is not divisible by weight quantization block_k = {columns}.")
            }))
        }
        Quantization::Integer { group, format, .. } if group > 0 => {
            let inputs =
                [queries, inner].into_iter().find(|inputs| !inputs.is_multiple_of(group))?;
            Some(match format {
                IntegerFormat::Awq => "ValueError: The input size is not aligned with the quantized weight shape. This can be caused by too large tensor parallel size.".to_owned(),
                _ => format!("ValueError: Weight input_size_per_partition={inputs} is not divisible by group_size={group}. Consider reducing tensor_parallel_size."),
            })
        }
        _ => None,
    }
}

/// `v1/attention/backends/triton_attn.py`: Gemma 3 with images runs there, and so does everything on
/// cards before 8.0.
fn fp8_cache(args: &VllmArgs, gpu: &Gpu) -> Option<String> {
    let (major, minor) = gpu.card.compute_capability;
    let is_refused =
        args.kv_dtype_bytes == 1 && (major < 8 || (args.with_vision && (major, minor) < (8, 9)));
    is_refused.then(|| {
        let name = gpu.kind.map_or("this GPU", |kind| kind.name.as_str());
        let instead = if major < 8 { "float16" } else { "bfloat16" };
        format!(
            "ValueError: FP8 KV cache is not supported by the Triton attention backend on {name} (compute \
             capability {major}.{minor}); native FP8 (fp8e4nv) requires SM89+. Re-run with --kv-cache-dtype \
             {instead}."
        )
    })
}
