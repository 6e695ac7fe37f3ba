"""The starts behind data/vllm-growth.jsonl: what loads of every shape add to one engine on one GPU.

usage: growth_cases.py GPUS > CASES.json
"""
import json
import sys

GPUS = int(sys.argv[1])


def case(name, model, utilization, tokens, sequences, length=8192, **args):
    base = dict(gpu_memory_utilization=utilization, max_num_batched_tokens=tokens, max_num_seqs=sequences, max_model_len=length, dtype="bfloat16",
                skip_tokenizer_init=True, enforce_eager=True)
    return dict(name=f"{name}-growth", model=model, load="growth", args=dict(base, **args))


GRAPHS = dict(enforce_eager=False)
CASES = [
    case("qwen3-8b-graphs-t8192-r64", "qwen3-8b", .45, 8192, 64, **GRAPHS),
    case("llama8b-graphs-t2048", "llama31-8b", .45, 2048, 256, **GRAPHS),
    case("llama8b-eager-t2048", "llama31-8b", .45, 2048, 256),
    case("g4text-eager-t8192-r64", "gemma3-4b-text", .35, 8192, 64, 16384),
    case("llama8b-eager-t8192", "llama31-8b", .45, 8192, 256),
    case("g4text-graphs-t8192-r64", "gemma3-4b-text", .35, 8192, 64, 16384, **GRAPHS),
    case("g12text-eager-t2048", "gemma3-12b-text", .55, 2048, 256),
    case("qwen3-8b-graphs-t2048", "qwen3-8b", .45, 2048, 256, **GRAPHS),
    case("qwen3-30b-eager-t8192", "qwen3-30b-a3b", .92, 8192, 256),
    case("mistral-eager-t8192-r128", "mistral-7b", .45, 8192, 128),
    case("qwen25-7b-eager-t8192", "qwen25-7b", .45, 8192, 256),
    case("g1-graphs-t8192", "gemma3-1b", .2, 8192, 256, **GRAPHS),
    case("llama8b-w4a16-eager-t2048", "llama31-8b-w4a16", .35, 2048, 256),
    case("g27-fp8-eager-t2048-r64", "gemma3-27b-text-fp8", .7, 2048, 64),
    case("g12text-graphs-t8192-r64", "gemma3-12b-text", .55, 8192, 64, **GRAPHS),
    case("qwen3-8b-eager-t8192-r64", "qwen3-8b", .45, 8192, 64),
    case("g4text-eager-t2048", "gemma3-4b-text", .35, 2048, 256),
    case("qwen3-8b-eager-t16384", "qwen3-8b", .5, 16384, 256),
]
print(json.dumps([dict(one, gpus=[nth % GPUS]) for nth, one in enumerate(CASES)]))
