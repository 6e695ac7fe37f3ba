"""One vLLM engine under observation: what its workers hold at every step of a start.

Reads commands from standard input, a line each: `start`, `load`, `quit`. Writes `@@READY`, `@@LOADED` and, from
within every worker, `@@MEMORY {json}`; all else on standard output is vLLM's log.

usage: inside.py CASE_JSON
"""
import faulthandler
import json
import os
import signal
import sys

faulthandler.register(signal.SIGUSR1)
case = json.loads(sys.argv[1])

import loads
import torch
from vllm import LLM
from vllm.distributed.device_communicators import custom_all_reduce, pynccl, symm_mem
from vllm.v1.worker import gpu_worker


def say(line):
    """Past Python's buffers and vLLM's prefixes, in one write, so that lines of processes stay whole."""
    os.write(1, f"\n{line}\n".encode())


def tell(point, **more):
    """What the device and this process's allocator hold; looking takes no memory once there is a context."""
    free, total = torch.cuda.mem_get_info()
    stats = torch.cuda.memory_stats()
    torch_keys = {"reserved": "reserved_bytes.all.current", "allocated": "allocated_bytes.all.current",
                  "reserved_peak": "reserved_bytes.all.peak", "allocated_peak": "allocated_bytes.all.peak"}
    held = {key: stats.get(name, 0) for key, name in torch_keys.items()}
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    say("@@MEMORY " + json.dumps(dict(rank=rank, point=point, used=total - free, total=total, **held, **more)))


def tell_segments(point):
    """The same with every segment: its size, what of it is taken, its largest free block, and its pool (0 but for graphs)."""
    segments = []
    for segment in torch.cuda.memory_snapshot():
        free = [block["size"] for block in segment["blocks"] if block["state"] == "inactive"]
        segments.append([segment["total_size"], segment["allocated_size"], max(free, default=0), segment["segment_pool_id"][1]])
    tell(point, segments=sorted(segments, reverse=True))


def around(owner, name, before=None, after=None):
    """Looks before and after a function of vLLM's; the function itself stays as it is."""
    original = getattr(owner, name)

    def observed(*args, **kwargs):
        if before:
            tell(before)
        result = original(*args, **kwargs)
        if after:
            tell(after, **(profile(args[0]) if after == "profiled" else {}))
        return result

    setattr(owner, name, observed)


def profile(worker):
    """The figures that vLLM logs with two decimals, in bytes."""
    names = ("non_torch_memory", "peak_activation_memory", "available_kv_cache_memory_bytes", "requested_memory")
    figures = {name: int(getattr(worker, name)) for name in names if getattr(worker, name, None) is not None}
    return dict(figures, weights=int(worker.model_runner.model_memory_usage))


around(gpu_worker, "init_worker_distributed_environment", before="context", after="distributed")
around(pynccl.PyNcclCommunicator, "__init__", before="before_nccl", after="after_nccl")
around(custom_all_reduce.CustomAllreduce, "__init__", before="before_custom", after="after_custom")
around(symm_mem.SymmMemCommunicator, "__init__", before="before_symmetric", after="after_symmetric")
for method, point in [("init_device", "snapshot"), ("load_model", "weights"), ("determine_available_memory", "profiled"),
                      ("initialize_from_config", "cache"), ("compile_or_warm_up_model", "warm")]:
    around(gpu_worker.Worker, method, after=point)
gpu_worker.Worker.tell = lambda self, point: tell_segments(point)

say("@@IMPORTED")
for command in map(str.strip, sys.stdin):
    if command == "start":
        llm = LLM(model=case["folder"], load_format="dummy", **case["args"])
        llm.collective_rpc("tell", args=("ready",))
        say("@@READY")
    elif command == "load":
        for point, prompts, sampling in loads.of(case):
            llm.generate(prompts, sampling, use_tqdm=False)
            llm.collective_rpc("tell", args=(point,))
        say("@@LOADED")
    else:
        break
