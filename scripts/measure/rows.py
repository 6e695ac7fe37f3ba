"""Turns what run_cases.py wrote into rows of data/vllm-parallel.jsonl.

usage: rows.py RAW.jsonl... > ROWS.jsonl
"""
import json
import sys

# What the driver keeps of a card that nobody uses, and what the machine's environment said.
CARD, IDLE = "NVIDIA H200", 644939776
ENVIRONMENT = dict(NCCL_NVLS_ENABLE="0", TORCH_SYMM_MEM_DISABLE_MULTICAST="1")
REFUSED = {"must be divisible by tensor parallel size": "heads_not_divisible"}


def rank_figures(raw, rank, gpu):
    """One rank's figures in bytes, the engine's own beside NVML's."""
    points = {point["point"]: point for point in raw["points"] if point["rank"] == rank}
    # vLLM's own snapshot follows at once.
    profiled, snapshot = points.get("profiled", {}), points.get("distributed", {})
    others = gpu["base"] - IDLE
    figures = dict(weights_bytes=profiled.get("weights"), activation_peak_bytes=profiled.get("peak_activation_memory"), non_torch_bytes=profiled.get("non_torch_memory"),
                   kv_cache_bytes=profiled.get("available_kv_cache_memory_bytes"), before_snapshot_bytes=snapshot["used"] - others if snapshot else None)
    # A start that had others beside it later: what the device gained since is not all its own.
    has_guests = "below" in raw["name"]
    for point in ("ready", "served"):
        if point in gpu:
            own = gpu[f"own_{point}"] + gpu["ready"] - gpu["own_ready"]
            figures[f"process_bytes_{point}"] = own if has_guests else gpu[point]
            figures[f"torch_reserved_{point}"] = points[point]["reserved"]
            figures[f"outside_torch_{point}"] = None if has_guests and point == "served" else points[point]["used"] - others - points[point]["reserved"]
    if "served" in gpu and not has_guests:
        figures["process_bytes_peak"] = gpu["peak"]
    return {key: value for key, value in figures.items() if value is not None}


def row(raw):
    card = raw.get("card", {}).get("name", CARD)
    if card != CARD:
        sys.exit(f"{raw['name']} is of an {card}; what that one keeps when idle is not known here")
    logged, error = raw["logged"], next(iter(raw["errors"]), None)
    verdict = next((verdict for text, verdict in REFUSED.items() if error and text in error), "ready" if "kv_cache_tokens" in logged else None)
    others = raw["per_gpu"][0]["base"] - IDLE if raw["per_gpu"] else 0
    gpu = dict(name=CARD, compute_capability="9.0", nvml_total_bytes=150754820096, cuda_total_gib=139.8, idle_used_bytes=IDLE, used_by_others_bytes=others)
    measured = dict(verdict=verdict, error=error if verdict != "ready" else None)
    for key in ("kv_cache_tokens", "max_concurrency", "cuda_graphs_gib"):
        if key in logged:
            measured[key] = logged[key][-1]
    if verdict == "ready":
        measured["ranks"] = [rank_figures(raw, rank, gpu) for rank, gpu in enumerate(raw["per_gpu"])]
    args = dict(raw["args"], env=dict(ENVIRONMENT, **raw.get("env", {})))
    load = raw.get("load", [64, 900, 16])
    return dict(name=f"h200-{raw['name']}", engine="vllm", engine_version="0.26.0", gpu=gpu, gpus=len(raw["gpus"]), model=raw["model"], args=args,
                load=dict(prompts=load[0], prompt_tokens=load[1], output_tokens=load[2]), measured=measured)


rows = [row(json.loads(line)) for path in sys.argv[1:] for line in open(path)]
for found in rows:
    if found["measured"]["verdict"]:
        print(json.dumps(found))
