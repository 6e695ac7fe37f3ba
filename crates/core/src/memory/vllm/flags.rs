//! vLLM's command line, as arguments by vLLM's own names.

use serde_json::{Map, Value};

/// Arguments that memory depends on. Others pass where they are known to take none.
pub const MODELLED: &[&str] = &[
    "async_scheduling",
    "block_size",
    "disable_custom_all_reduce",
    "disable_hybrid_kv_cache_manager",
    "dtype",
    "enable_chunked_prefill",
    "enable_sleep_mode",
    "enforce_eager",
    "gpu_memory_utilization",
    "kv_cache_dtype",
    "kv_cache_memory_bytes",
    "language_model_only",
    "limit_mm_per_prompt",
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_seqs",
    "mm_encoder_tp_mode",
    "num_gpu_blocks_override",
    "pipeline_parallel_size",
    "quantization",
    "tensor_parallel_size",
];

/// Arguments that take no memory of a GPU.
const WITHOUT_MEMORY: &[&str] = &[
    "allowed_local_media_path",
    "api_key",
    "api_server_count",
    "chat_template",
    "disable_log_requests",
    "disable_log_stats",
    "distributed_executor_backend",
    "download_dir",
    "enable_auto_tool_choice",
    "enable_log_requests",
    "enable_prefix_caching",
    "enable_prompt_tokens_details",
    "generation_config",
    "hf_token",
    "host",
    "load_format",
    "max_log_len",
    "model",
    "port",
    "reasoning_parser",
    "revision",
    "root_path",
    "seed",
    "served_model_name",
    "skip_tokenizer_init",
    "ssl_certfile",
    "ssl_keyfile",
    "swap_space",
    "tokenizer",
    "tokenizer_mode",
    "tool_call_parser",
    "trust_remote_code",
    "uvicorn_log_level",
];

/// Other spellings of an argument.
const SPELLINGS: &[(&str, &str)] = &[
    ("tp", "tensor_parallel_size"),
    ("pp", "pipeline_parallel_size"),
    ("q", "quantization"),
    ("kv_cache_memory", "kv_cache_memory_bytes"),
];

/// A word that can't be planned with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// No flag.
    #[error("`{0}` is no flag; flags begin with --")]
    NoFlag(String),
    /// A flag whose memory is not modelled.
    #[error("the memory that `{word}` takes is not modelled{}", hint.map(|flag| format!("; did you mean `--{}`?", flag.replace('_', "-"))).unwrap_or_default())]
    Unmodelled {
        /// The flag as it was written.
        word: String,
        /// A modelled one that looks like it.
        hint: Option<&'static str>,
    },
    /// A flag without its value.
    #[error("`{0}` needs a value")]
    NoValue(String),
}

/// Whether memory depends on an argument, or it is known to take none.
fn is_known(name: &str) -> bool {
    MODELLED.contains(&name) || WITHOUT_MEMORY.contains(&name)
}

/// Reads the words that follow `vllm serve MODEL`.
///
/// # Errors
/// Where a word is no flag, or one whose memory is not modelled.
pub fn from_words<S: AsRef<str>>(words: &[S]) -> Result<Value, FlagError> {
    let mut args = Map::new();
    let mut rest = words.iter().map(AsRef::as_ref).peekable();
    while let Some(word) = rest.next() {
        let stripped = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
        let Some(stripped) = stripped else { return Err(FlagError::NoFlag(word.to_owned())) };
        let (spelled, joined) = match stripped.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (stripped, None),
        };
        let (name, is_no) = resolve(spelled, word)?;
        let is_followed = rest.peek().is_some_and(|next| !is_flag(next));
        let value = match joined {
            _ if is_no => Value::Bool(false),
            Some(value) => parse(value),
            None if is_followed => parse(rest.next().unwrap_or_default()),
            None if takes_a_value(&name) => return Err(FlagError::NoValue(word.to_owned())),
            None => Value::Bool(true),
        };
        args.insert(name, value);
    }
    Ok(Value::Object(args))
}

/// vLLM's own name of an argument that is written in any of its spellings, without dashes before it.
///
/// # Errors
/// Where it is none, or one whose memory is not modelled.
pub fn canonical(name: &str) -> Result<String, FlagError> {
    match resolve(name, name)? {
        (_, true) => Err(FlagError::Unmodelled { word: name.to_owned(), hint: None }),
        (name, false) => Ok(name),
    }
}

/// An argument's own name, and whether it is turned off; `word` is for messages.
fn resolve(spelled: &str, word: &str) -> Result<(String, bool), FlagError> {
    let spelled = spelled.replace('-', "_");
    let alias = SPELLINGS.iter().find(|(alias, _)| *alias == spelled);
    let name = alias.map_or(spelled.as_str(), |(_, name)| *name);
    let (name, is_no) = match name.strip_prefix("no_") {
        Some(positive) if is_known(positive) => (positive, true),
        _ => (name, false),
    };
    if is_known(name) {
        return Ok((name.to_owned(), is_no));
    }
    let likeness = |known: &&&str| strsim::jaro_winkler(known, name);
    let nearest = MODELLED.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b))).copied();
    let hint = nearest.filter(|known| strsim::jaro_winkler(known, name) > 0.85);
    Err(FlagError::Unmodelled { word: word.to_owned(), hint })
}

/// A negative number is a value.
fn is_flag(word: &str) -> bool {
    word.starts_with('-') && !word[1..].starts_with(|c: char| c.is_ascii_digit())
}

fn takes_a_value(name: &str) -> bool {
    const SWITCHES: &[&str] = &[
        "async_scheduling",
        "disable_hybrid_kv_cache_manager",
        "enable_chunked_prefill",
        "enable_sleep_mode",
        "enforce_eager",
        "language_model_only",
    ];
    MODELLED.contains(&name) && !SWITCHES.contains(&name)
}

/// A number, with vLLM's `k` (1000) and `K` (1024) too, JSON, or a text.
fn parse(text: &str) -> Value {
    if let Ok(value) = serde_json::from_str(text) {
        return value;
    }
    if let Some(number) = text.parse::<f64>().ok().filter(|number| number.is_finite()) {
        return Value::from(number);
    }
    let scaled = |factor: f64, digits: &str| {
        let number: f64 = digits.parse().ok()?;
        let scaled = number * factor;
        (scaled.fract() == 0.0 && (0.0..1e18).contains(&scaled)).then(|| Value::from(scaled as u64))
    };
    let factors = [('k', 1e3), ('m', 1e6), ('g', 1e9)];
    let binary = [('K', 1024.0), ('M', 1_048_576.0), ('G', 1_073_741_824.0)];
    let found = factors
        .iter()
        .chain(&binary)
        .find_map(|(suffix, factor)| scaled(*factor, text.strip_suffix(*suffix)?));
    found.unwrap_or_else(|| Value::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn words_become_arguments() {
        for (words, expected) in [
            ("", json!({})),
            ("--enforce-eager -tp 4", json!({"enforce_eager": true, "tensor_parallel_size": 4})),
            ("--gpu-memory-utilization=0.9", json!({"gpu_memory_utilization": 0.9})),
            ("--max-model-len 8k", json!({"max_model_len": 8000})),
            ("--max-model-len 8K", json!({"max_model_len": 8192})),
            ("--max-model-len -1", json!({"max_model_len": -1})),
            ("--no-async-scheduling", json!({"async_scheduling": false})),
            ("--kv-cache-memory 1G", json!({"kv_cache_memory_bytes": 1_073_741_824})),
            (r#"--limit-mm-per-prompt {"image":0}"#, json!({"limit_mm_per_prompt": {"image": 0}})),
            ("--port 8000 --dtype half", json!({"port": 8000, "dtype": "half"})),
        ] {
            let words: Vec<&str> = words.split_whitespace().collect();
            assert_eq!(from_words(&words), Ok(expected), "{words:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_said() {
        for (words, says) in [
            ("eager", "`eager` is no flag; flags begin with --"),
            ("--gpu-memory-utilisation 0.9", "did you mean `--gpu-memory-utilization`?"),
            ("--enable-lora", "the memory that `--enable-lora` takes is not modelled"),
            ("--max-model-len", "`--max-model-len` needs a value"),
        ] {
            let words: Vec<&str> = words.split_whitespace().collect();
            let error = from_words(&words).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
