//! Any config and any arguments give an answer: a verdict, or an error that names what is wrong.
//!
//! `BERTH_FUZZ_CASES=1000000 cargo test --release -p berth-core --test vllm fuzz` tries a million.

use berth_core::gpu;
use berth_core::memory::vllm::{CompileCache, Engine, EntryPoint, Estimate, Gpu, fit, flags};
use berth_core::model::hf_config::Transformer;
use berth_core::units::Bytes;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use crate::data;

const KEYS: &[&str] = &[
    "architectures",
    "attention_bias",
    "decoder_sparse_step",
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_only_layers",
    "moe_intermediate_size",
    "num_attention_heads",
    "num_experts",
    "num_experts_per_tok",
    "num_hidden_layers",
    "num_key_value_heads",
    "quantization_config",
    "rope_scaling",
    "sliding_window",
    "sliding_window_pattern",
    "text_config",
    "tie_word_embeddings",
    "torch_dtype",
    "use_sliding_window",
    "vision_config",
    "vocab_size",
];

/// All arguments that memory depends on, and the environment.
fn args() -> Vec<&'static str> {
    flags::MODELLED.iter().copied().chain(["env"]).collect()
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => (0_u64..5000).prop_map(Value::from),
        2 => (0_u32..40).prop_map(|bits| Value::from(1_u64 << bits)),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<u64>().prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        1 => (0.0_f64..1.5).prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
        3 => select(vec![
            "auto", "fp8", "float16", "float32", "bfloat16", "fp8_e5m2", "awq", "data", "", "x",
            "LlamaForCausalLM",
        ]).prop_map(Value::from),
        1 => prop::collection::vec(0_u64..9, 0..5).prop_map(Value::from),
        2 => select(vec![
            json!({"quant_method": "awq", "bits": 4, "group_size": 128}),
            json!({"quant_method": "gptq", "bits": 8, "group_size": -1, "desc_act": true}),
            json!({"quant_method": "fp8", "weight_block_size": [1, 1]}),
            json!({"quant_method": "fp8", "weight_block_size": [0, 128]}),
            json!({"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"type": "int", "num_bits": 4, "group_size": 1}}}}),
            json!({"image": 0}),
            json!({"factor": 1e300, "rope_type": "linear"}),
            json!({"VLLM_PP_LAYER_PARTITION": "1,0,18446744073709551615"}),
        ]),
    ]
}

/// How many cases to try: as many as are asked for, else the usual number.
pub(crate) fn cases(usual: u32) -> u32 {
    let asked = std::env::var("BERTH_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok());
    asked.unwrap_or(usual)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(2000), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn anything_gives_an_answer(
        model in 0_usize..19,
        keys in prop::collection::vec((select(KEYS), value()), 0..4),
        given in prop::collection::vec((select(args()), value()), 0..6),
        version in select(vec!["0.26.0", "0.27.1", "0.29", "0.30.2", "0.33.0", "1.0", "", "x", "99999999999999999999"]),
        kind in 0_usize..18,
        others in prop_oneof![Just(0), any::<u64>(), 0_u64..200 << 30],
        ends in (any::<bool>(), any::<bool>(), any::<bool>()),
    ) {
        let mut config = data::all_configs()[model].clone();
        for (key, value) in keys {
            config[key] = value;
        }
        let Ok(transformer) = Transformer::from_config(&config) else { return Ok(()) };
        let mut args = json!({"max_model_len": 4096});
        for (name, value) in given {
            args[name] = value;
        }
        let gpu = gpu::kinds().get(kind).map_or(Gpu::of_size(Bytes(others)), Gpu::of_kind);
        let (is_llm, is_warm, is_high) = ends;
        let engine = Engine {
            entry_point: if is_llm { EntryPoint::Llm } else { EntryPoint::Serve },
            compile_cache: if is_warm { CompileCache::Warm } else { CompileCache::Cold },
            estimate: if is_high { Estimate::High } else { Estimate::Low },
            ..Engine::of_version(version)
        };
        let fit = fit(&transformer, &args, &[gpu.with_others(Bytes(others))], &engine);
        prop_assert_eq!(fit.verdict.is_ready(), fit.message.is_none());
        prop_assert!(fit.message.is_none_or(|message| !message.is_empty()));
    }

    #[test]
    fn any_words_are_read_or_refused(words in prop::collection::vec("[-a-z0-9=.{}:\"KkM]{0,12}", 0..6)) {
        if let Err(error) = flags::from_words(&words) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
