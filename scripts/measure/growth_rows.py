"""Turns what run_cases.py wrote of growth_cases.py into rows of data/vllm-growth.jsonl.

usage: growth_rows.py RAW.jsonl > ROWS.jsonl
"""
import json
import sys

CARDS = {"NVIDIA H100 80GB HBM3": dict(cuda_total_gib=79.18, idle_used_bytes=503316480), "NVIDIA H200": dict(cuda_total_gib=139.8, idle_used_bytes=644939776)}
# Asked for by clients alone: what it takes is no part of a plan.
OF_CLIENTS = ("logprobs", "prompt_logprobs")


def row(raw):
    name = raw["card"]["name"]
    gpu = dict(name=name, compute_capability="9.0", nvml_total_bytes=raw["card"]["nvml_total_bytes"], used_by_others_bytes=0, **CARDS[name])
    points = {point["point"]: point for point in raw["points"]}
    ready, of_process = points["ready"], raw["per_gpu"][0]["ready"]
    # In the order that they came: what PyTorch's segments came to since the engine was ready.
    growth = {point: points[point]["reserved"] - ready["reserved"] for point in points if "segments" in points[point] and point != "ready"}
    growth = {point: bytes for nth, (point, bytes) in enumerate(growth.items()) if nth == 0 or bytes != list(growth.values())[nth - 1] or not point.startswith("alone_")}
    planned = [points[point] for point in growth if point not in OF_CLIENTS]
    measured = dict(verdict="ready", error=None, kv_cache_tokens=raw["logged"]["kv_cache_tokens"][-1], process_bytes_ready=of_process,
                    process_bytes_served=of_process + max(point["used"] for point in planned) - ready["used"],
                    torch_reserved_ready=ready["reserved"], torch_reserved_served=max(point["reserved"] for point in planned), growth_bytes=growth)
    return dict(name=f"{name.split()[1].lower()}-{raw['name']}", engine="vllm", engine_version="0.26.0", gpu=gpu, model=raw["model"], args=raw["args"], measured=measured)


for line in open(sys.argv[1]):
    print(json.dumps(row(json.loads(line))))
