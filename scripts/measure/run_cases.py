"""Starts vLLM case by case on a machine with GPUs and writes down what every GPU holds, one JSON line a case.

A case names its GPUs; cases on different ones run beside each other, cases on the same one after the other, in the
order of the file. `beside` has cases that start on some of a case's GPUs while it is up.

usage: run_cases.py CASES.json CONFIGS OUT.jsonl LOGS SECONDS
"""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pynvml as nvml

HERE = Path(__file__).parent
CASES, CONFIGS, OUT, LOGS = (Path(argument) for argument in sys.argv[1:5])
DEADLINE = time.time() + float(sys.argv[5])
# The first start of a machine compiles its kernels.
LONGEST_EAGER, LONGEST_COMPILED = 150, 260
VISION = ("gemma3-4b", "gemma3-12b", "gemma3-27b")
nvml.nvmlInit()
HANDLES = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
CARD = dict(name=nvml.nvmlDeviceGetName(HANDLES[0]), nvml_total_bytes=nvml.nvmlDeviceGetMemoryInfo(HANDLES[0]).total)
lock = threading.Condition()
busy = set()

LOGGED = {"weights_gib": r"Model loading took ([\d.]+) GiB", "kv_cache_gib": r"Available KV cache memory: (-?[\d.]+) GiB",
          "kv_cache_tokens": r"GPU KV cache size: ([\d,]+) tokens", "max_concurrency": r"Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x",
          "cuda_graphs_gib": r"Graph capturing finished in .*?took (-?[\d.]+) GiB", "nccl": r"vLLM is using nccl==([\d.]+)"}
ERROR = r"(?:ValueError|Value error, |AssertionError|torch\.OutOfMemoryError|RuntimeError|ImportError|ModuleNotFoundError|AttributeError|TypeError|KeyError|OSError|NotImplementedError): .{0,400}"


def used(gpu):
    return nvml.nvmlDeviceGetMemoryInfo(HANDLES[gpu]).used


def of_processes(gpu, group):
    """What NVML counts for the processes of a group on a GPU."""
    def is_ours(pid):
        try:
            return os.getpgid(pid) == group
        except ProcessLookupError:
            return False
    return sum(p.usedGpuMemory or 0 for p in nvml.nvmlDeviceGetComputeRunningProcesses(HANDLES[gpu]) if is_ours(p.pid))


def model_folder(name):
    """A folder with the model's config and no weights; with vision, a stand-in for tokenizer and processor."""
    folder = Path("models") / name
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(CONFIGS / f"{name}.json", folder / "config.json")
    if name in VISION:
        tokenizer(folder)
    return str(folder)


def tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    special = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<start_of_image>": 255999, "<end_of_image>": 256000, "<image_soft_token>": 262144}
    newlines = {"\n" * count: 106 + count for count in range(1, 5)}
    made = Tokenizer(models.WordLevel(dict(special, **newlines), unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(list(special))
    made.save(str(folder / "tokenizer.json"))
    images = dict(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
    files = {
        "tokenizer_config.json": dict(tokenizer_class="PreTrainedTokenizerFast", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>",
                                      extra_special_tokens=images, **images, model_max_length=131072, chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}"),
        "preprocessor_config.json": dict(image_processor_type="Gemma3ImageProcessor", do_resize=True, size={"height": 896, "width": 896}, do_rescale=True, rescale_factor=1 / 255,
                                         do_normalize=True, image_mean=[.5] * 3, image_std=[.5] * 3, image_seq_length=256, do_convert_rgb=None, do_pan_and_scan=None),
        "processor_config.json": dict(processor_class="Gemma3Processor", image_seq_length=256),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def cache_folder(case):
    """A cold compile cache for a start that compiles; what eager starts cache is no more than which model is which."""
    folder = Path("/tmp/vllm-cache") / ("eager" if case["args"]["enforce_eager"] else case["name"])
    known = Path("/tmp/vllm-cache/eager/modelinfos")
    if known.exists() and not (folder / "modelinfos").exists():
        shutil.copytree(known, folder / "modelinfos")
    return folder


class Engine:
    """One engine: its process group, its log, and the marks it made."""

    def __init__(self, case):
        self.case = dict(case, folder=model_folder(case["model"]))
        self.marks, self.points, self.log = set(), [], LOGS / f"{case['name']}.log"
        gpus = ",".join(str(gpu) for gpu in case["gpus"])
        env = dict(os.environ, CUDA_DEVICE_ORDER="PCI_BUS_ID", CUDA_VISIBLE_DEVICES=gpus, VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1",
                   VLLM_USE_FLASHINFER_SAMPLER="0", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", VLLM_CACHE_ROOT=str(cache_folder(case)), **case.get("env", {}))
        self.process = subprocess.Popen([sys.executable, "-u", str(HERE / "inside.py"), json.dumps(self.case)], env=env, text=True, bufsize=1,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        self.base = self.peak = None
        self.device, self.own = {}, {}
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        with open(self.log, "w") as log:
            for line in self.process.stdout:
                log.write(line)
                log.flush()
                if line.startswith("@@MEMORY "):
                    self.points.append(json.loads(line[9:]))
                elif line.startswith("@@"):
                    self.marks.add(line.split()[0])
        self.marks.add("@@ENDED")

    def start(self):
        self.base = {gpu: used(gpu) for gpu in self.case["gpus"]}
        self.peak = dict(self.base)
        threading.Thread(target=self.sample, daemon=True).start()
        return self.tell("start", "@@READY", "ready")

    def load(self):
        self.marks.discard("@@LOADED")
        return self.tell("load", "@@LOADED", "served")

    def tell(self, command, mark, point):
        """Sends a command and waits for its mark; whether it came."""
        longest = LONGEST_EAGER if self.case["args"]["enforce_eager"] else LONGEST_COMPILED
        until = min(time.time() + longest, DEADLINE + 15)
        try:
            self.process.stdin.write(command + "\n")
        except OSError:
            return False
        while mark not in self.marks and "@@ENDED" not in self.marks and time.time() < until:
            time.sleep(.02)
        if mark not in self.marks:
            if "@@ENDED" not in self.marks:
                # Where it hangs, into its log.
                os.killpg(self.process.pid, signal.SIGUSR1)
                time.sleep(2)
            return False
        self.device[point] = {gpu: used(gpu) - self.base[gpu] for gpu in self.base}
        self.own[point] = {gpu: of_processes(gpu, self.process.pid) for gpu in self.base}
        return True

    def sample(self):
        while self.process.poll() is None:
            for gpu in self.peak:
                self.peak[gpu] = max(self.peak[gpu], used(gpu))
            time.sleep(.02)

    def stop(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        until = time.time() + 20
        while self.base and time.time() < until and any(used(gpu) > self.base[gpu] + 2**26 for gpu in self.base):
            time.sleep(.05)

    def report(self):
        text = self.log.read_text()
        logged = {}
        for key, pattern in LOGGED.items():
            values = [value.replace(",", "") for value in re.findall(pattern, text)]
            if values:
                logged[key] = values[-1] if key == "nccl" else [float(value) for value in values]
        per_gpu = [dict(gpu=gpu, base=self.base[gpu], peak=self.peak[gpu] - self.base[gpu], **{point: bytes[gpu] for point, bytes in self.device.items()},
                        **{f"own_{point}": bytes[gpu] for point, bytes in self.own.items()}) for gpu in self.base or {}]
        errors = list(dict.fromkeys(re.findall(ERROR, text)))[:4]
        case = {key: self.case[key] for key in ("name", "model", "args", "gpus", "load", "env") if key in self.case}
        notes = [line.strip()[-300:] for line in text.splitlines() if "ustom allreduce" in line or "ymmetric" in line or "SymmMem" in line or "attention backend" in line][:8]
        return dict(case, logged=logged, per_gpu=per_gpu, points=self.points, errors=errors, notes=notes, card=CARD)


def write(report):
    with lock, open(OUT, "a") as out:
        out.write(json.dumps(report) + "\n")
    brief = {gpu["gpu"]: [round(gpu.get(point, 0) / 2**30, 2) for point in ("ready", "served", "peak")] for gpu in report["per_gpu"]}
    print(round(time.time() - DEADLINE), report["name"], brief, report["logged"].get("kv_cache_tokens"), report["errors"][:1], flush=True)


def run(engine):
    try:
        if engine.start() and engine.load():
            for case in engine.case.get("beside", []):
                guest = Engine(case)
                try:
                    if guest.start() and guest.load():
                        engine.load()
                finally:
                    guest.stop()
                    write(guest.report())
    finally:
        engine.stop()
        write(engine.report())
        with lock:
            busy.difference_update(engine.case["gpus"])
            lock.notify_all()


def main():
    LOGS.mkdir(parents=True, exist_ok=True)
    pending, ahead, threads = json.loads(CASES.read_text()), {}, []
    while pending:
        for case in pending[:4]:
            # Importing takes as long as starting: it is done while others run.
            if case["name"] not in ahead:
                ahead[case["name"]] = Engine(case)
        with lock:
            taken = set(busy)
            ready = []
            for case in pending:
                if not taken & set(case["gpus"]) and case["name"] in ahead:
                    ready.append(case)
                taken |= set(case["gpus"])
            for case in ready:
                busy.update(case["gpus"])
            if not ready:
                lock.wait(1)
        if time.time() > DEADLINE - 20:
            print("no time left for", [case["name"] for case in pending])
            break
        for case in ready:
            pending.remove(case)
            threads.append(threading.Thread(target=run, args=(ahead.pop(case["name"]),)))
            threads[-1].start()
    for engine in ahead.values():
        engine.stop()
    for thread in threads:
        thread.join()


main()
