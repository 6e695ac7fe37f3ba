"""The starts behind data/vllm-parallel.jsonl: one model over several GPUs, and two models on the same ones.

usage: parallel_cases.py CUDA_TOTAL_GIB PART > CASES.json      (PART: smoke, first … sixth)
"""
import json
import sys

TOTAL, PART = float(sys.argv[1]), sys.argv[2]
A10 = 22.06
# What a machine of PCIe cards has: no peer access, so neither custom all-reduce nor symmetric memory.
PCIE = dict(env=dict(NCCL_P2P_DISABLE="1", VLLM_ALLREDUCE_USE_SYMM_MEM="0"), disable_custom_all_reduce=True)
PLAIN = dict(env=dict(VLLM_ALLREDUCE_USE_SYMM_MEM="0"))
GRAPHS = dict(enforce_eager=False)


def case(name, model, gpus, budget, tp=1, pp=1, env=None, load=None, beside=None, **args):
    """A start on `gpus` whose budget is a fraction of an A10, the rest vLLM's own arguments."""
    tokenizer = {} if model in ("gemma3-4b", "gemma3-27b") else dict(skip_tokenizer_init=True)
    base = dict(gpu_memory_utilization=round(budget * A10 / TOTAL, 4), max_num_batched_tokens=2048, max_num_seqs=256, max_model_len=8192, dtype="bfloat16",
                tensor_parallel_size=tp, pipeline_parallel_size=pp, enforce_eager=True)
    more = {key: value for key, value in dict(env=env, load=load, beside=beside).items() if value}
    return dict(name=name, model=model, gpus=gpus, args=dict(base, **tokenizer, **args), **more)


ALL, LEFT, RIGHT, THREE = [0, 1, 2, 3], [0, 1], [2, 3], [0, 1, 2]
PARTS = dict(
    smoke=[
        case("g4text-tp2-eager", "gemma3-4b-text", LEFT, .95, tp=2),
        case("g4text-tp2-eager-plain", "gemma3-4b-text", RIGHT, .95, tp=2, **PLAIN),
    ],
    first=[
        case("g4-tp2-eager", "gemma3-4b", LEFT, .95, tp=2),
        case("g27text-pp2-eager", "gemma3-27b-text", RIGHT, 1.6, pp=2),
        case("g27text-tp4-eager-pcie", "gemma3-27b-text", ALL, .95, tp=4, **PCIE),
        case("llama8b-tp4-eager", "llama31-8b", ALL, .5, tp=4),
        case("qwen3-30b-tp4-eager", "qwen3-30b-a3b", ALL, .95, tp=4),
        case("g27text-tp2-eager", "gemma3-27b-text", LEFT, 1.5, tp=2),
        case("llama8b-pp2-eager", "llama31-8b", RIGHT, .7, pp=2),
        case("g27text-pp3-eager", "gemma3-27b-text", THREE, 1.2, pp=3),
        case("g4-tp1-eager", "gemma3-4b", [3], .95),
        case("g27text-tp3-eager", "gemma3-27b-text", THREE, .95, tp=3),
        case("g27-tp4-eager", "gemma3-27b", ALL, .95, tp=4),
        case("g27text-tp4-below-4b", "gemma3-27b-text", ALL, .80, tp=4, load=[16, 900, 8], beside=[
            case("g4text-tp4-beside-27b", "gemma3-4b-text", ALL, .19, tp=4, load=[16, 900, 8]),
            case("g4text-tp1-beside-27b", "gemma3-4b-text", [3], .6, load=[16, 900, 8]),
        ]),
        case("g27text-tp4-graphs", "gemma3-27b-text", ALL, .95, tp=4, **GRAPHS),
        case("llama8b-tp4-graphs", "llama31-8b", ALL, .5, tp=4, **GRAPHS),
    ],
    second=[
        case("g27-pp3-eager", "gemma3-27b", THREE, 1.2, pp=3, env=dict(VLLM_PP_LAYER_PARTITION="20,21,21")),
        case("g27-pp2-eager", "gemma3-27b", LEFT, 1.6, pp=2),
        case("g27-tp2-eager", "gemma3-27b", RIGHT, 1.5, tp=2),
        case("g4-tp4-eager", "gemma3-4b", ALL, .5, tp=4),
        case("g27text-tp2-pp2-eager", "gemma3-27b-text", ALL, .95, tp=2, pp=2),
        case("g27text-pp2-graphs", "gemma3-27b-text", LEFT, 1.6, pp=2, **GRAPHS),
        case("g4text-tp2-graphs", "gemma3-4b-text", RIGHT, .95, tp=2, **GRAPHS),
        case("qwen3-30b-tp4-graphs", "qwen3-30b-a3b", ALL, .95, tp=4, **GRAPHS),
    ],
    third=[
        case("g4text-pp2-eager-pcie", "gemma3-4b-text", LEFT, .95, pp=2, **PCIE),
        case("qwen3-30b-tp2-eager-pcie", "qwen3-30b-a3b", LEFT, 1.8, tp=2, **PCIE),
    ],
    fourth=[
        case("g27text-pp2-eager-pcie", "gemma3-27b-text", LEFT, 1.6, pp=2, **PCIE),
        case("g27text-pp2-eager", "gemma3-27b-text", RIGHT, 1.6, pp=2),
        case("g27text-tp2-graphs", "gemma3-27b-text", LEFT, 1.5, tp=2, **GRAPHS),
        case("g27text-pp2-graphs", "gemma3-27b-text", RIGHT, 1.6, pp=2, **GRAPHS),
        case("g4-tp2-eager", "gemma3-4b", LEFT, .95, tp=2),
        case("g4text-tp2-graphs", "gemma3-4b-text", RIGHT, .95, tp=2, **GRAPHS),
        case("llama8b-tp4-graphs", "llama31-8b", ALL, .5, tp=4, **GRAPHS),
        case("qwen3-30b-tp4-graphs", "qwen3-30b-a3b", ALL, .95, tp=4, **GRAPHS),
    ],
    fifth=[
        case("g27text-pp3-graphs", "gemma3-27b-text", THREE, 1.2, pp=3, **GRAPHS),
        case("g4text-tp1-graphs", "gemma3-4b-text", [3], .95, **GRAPHS),
        case("qwen3-30b-tp4-graphs", "qwen3-30b-a3b", ALL, .95, tp=4, **GRAPHS),
        case("g27-tp2-graphs", "gemma3-27b", LEFT, 1.5, tp=2, **GRAPHS),
        case("g27-pp2-graphs", "gemma3-27b", RIGHT, 1.6, pp=2, **GRAPHS),
        case("g4-tp4-graphs", "gemma3-4b", ALL, .5, tp=4, **GRAPHS),
        case("g27-tp4-graphs", "gemma3-27b", ALL, .95, tp=4, **GRAPHS),
    ],
    sixth=[
        case("g27text-tp4-graphs-below-4b", "gemma3-27b-text", ALL, .80, tp=4, load=[16, 900, 8], **GRAPHS, beside=[
            case("g4text-tp4-graphs-beside-27b", "gemma3-4b-text", ALL, .19, tp=4, load=[16, 900, 8], **GRAPHS),
            case("g4text-tp1-graphs-beside-27b", "gemma3-4b-text", [3], .6, load=[16, 900, 8], **GRAPHS),
        ]),
    ],
)
json.dump(PARTS[PART], sys.stdout, indent=1)
