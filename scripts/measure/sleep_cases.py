"""What an engine holds as it sleeps, and how long it takes to sleep and to wake: one JSON line a case.

usage: sleep_cases.py CONFIGS OUT.jsonl [FIRST]     (one GPU, nobody else on it; from case FIRST on)
"""
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

CONFIGS, OUT = Path(sys.argv[1]), Path(sys.argv[2])
EAGER, AWAKE = dict(enforce_eager=True), dict(enable_sleep_mode=False)
CASES = [
    ("gemma3-4b-text", EAGER),
    ("gemma3-4b-text", EAGER | AWAKE),
    ("llama31-8b", EAGER),
    ("gemma3-4b-text", {}),
    ("qwen3-8b", EAGER),
    ("gemma3-12b-text", EAGER),
    ("qwen25-7b", EAGER),
    ("qwen25-7b-awq", EAGER),
    ("llama31-8b-w4a16", EAGER),
    ("llama31-8b", EAGER | dict(quantization="fp8")),
    ("mistral-7b", {}),
    ("gemma3-1b", EAGER),
]


def one(model, changes):
    """Within the case's own process."""
    args = dict(gpu_memory_utilization=0.3, max_model_len=8192, max_num_batched_tokens=2048, max_num_seqs=256, skip_tokenizer_init=True, enable_sleep_mode=True) | changes
    can_sleep = args["enable_sleep_mode"]
    import pynvml as nvml
    nvml.nvmlInit()
    gpu = nvml.nvmlDeviceGetHandleByIndex(0)
    idle = nvml.nvmlDeviceGetMemoryInfo(gpu).used

    def held():
        status = Path(f"/proc/{os.getpid()}/status").read_text()
        kib = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.startswith(("RssAnon", "RssShmem", "VmRSS", "VmLck"))}
        return dict(gpu_bytes=nvml.nvmlDeviceGetMemoryInfo(gpu).used - idle, **{name.lower() + "_bytes": value << 10 for name, value in kib.items()})

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams
    folder = Path("models") / model
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(CONFIGS / f"{model}.json", folder / "config.json")
    engine = LLM(model=str(folder), load_format="dummy", **args)
    points = [dict(point="ready", **held())]

    def note(point, act):
        start = time.time()
        act()
        points.append(dict(point=point, seconds=round(time.time() - start, 3), **held()))

    prompt = [{"prompt_token_ids": list(range(300, 800))}] * 16
    sampling = SamplingParams(max_tokens=8, ignore_eos=True, detokenize=False)
    note("served", lambda: engine.generate(prompt, sampling, use_tqdm=False))
    if can_sleep:
        for level in (1, 2):
            note(f"asleep_{level}", lambda level=level: engine.sleep(level=level))
            note(f"awake_{level}", engine.wake_up)
            if level == 1:
                note("served_again", lambda: engine.generate(prompt, sampling, use_tqdm=False))
        note("asleep_1_again", lambda: engine.sleep(level=1))
    cache = engine.llm_engine.vllm_config.cache_config
    print("@@" + json.dumps(dict(model=model, args=args, num_gpu_blocks=cache.num_gpu_blocks, block_size=cache.block_size, points=points)), flush=True)


if len(sys.argv) > 3 and sys.argv[3].startswith("["):
    one(*json.loads(sys.argv[3]))
else:
    for case in CASES[int(sys.argv[3]) if len(sys.argv) > 3 else 0:]:
        ran = subprocess.run([sys.executable, __file__, str(CONFIGS), str(OUT), json.dumps(case)], capture_output=True, text=True, timeout=240)
        lines = [line[2:] for line in ran.stdout.splitlines() if line.startswith("@@")]
        with open(OUT, "a") as out:
            out.write((lines[0] if lines else json.dumps(dict(case=case, error=(ran.stdout + ran.stderr)[-3000:]))) + "\n")
        print(case, "ok" if lines else (ran.stdout + ran.stderr)[-600:], flush=True)
