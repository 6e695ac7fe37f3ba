#!/usr/bin/env python3
"""Compare berth's memory model with other estimators, on rows that were measured.

    scripts/compare_estimators.py --berth target/release/berth [--rows-table]

A row is one start of vLLM on one GPU (data/README.md). vLLM makes all that gpu_memory_utilization
leaves into KV cache, and no other tool predicts how much that is. So what is compared is

  1. memory without KV cache: NVML's figure after serving, less the KV cache that vLLM logged;
  2. the KV cache of the tokens that vLLM logged, as requests of max_model_len;
  3. the whole process, against utilization times total;
  4. whether the start succeeds, on all rows, refused ones too.

The tools' formulas are written out from their sources, with version and file. Each gets what suits it
best: a checkpoint in the row's own format (fp8, AWQ) if it reads checkpoints, its own column for that
format if it multiplies parameters, and vLLM's flags as far as it has options for them.

Left out: llm-mem-planner 0.2.2, which refuses models without MLA, so all of these; and llama.cpp's
rows, which these tools know nothing of, and for which berth needs the .gguf files, not in data/.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, NoReturn

DATA = Path(__file__).resolve().parent.parent / "data"
# Starts on one GPU that were measured after one and the same load.
LOADED_ONCE = ("vllm-h100", "vllm-h200", "vllm-h200-inside")
GIB = 1 << 30
# An under-estimate by more than this counts; the two decimals of vLLM's log hide up to 0.3 %.
TOLERANCE = 0.005


@dataclass
class Row:
    """One measured start, and what berth says of it. Bytes, if nothing else is said."""

    name: str
    file: str
    config: dict
    text: dict
    weight_format: str
    kv_element: int
    max_model_len: int
    free: float
    requested: float
    ready: bool
    process: int
    kv_cache: float
    requests: float
    berth: dict


def make_row(file: str, case: dict, config: dict, berth: dict) -> Row:
    args, gpu, measured = case["args"], case["gpu"], case["measured"]
    total = gpu["cuda_total_gib"] * GIB
    stored = config.get("quantization_config", {}).get("quant_method", "bf16")
    return Row(
        name=case["name"],
        file=file,
        config=config,
        text=config.get("text_config", config),
        weight_format=args.get("quantization", stored),
        kv_element=1 if args.get("kv_cache_dtype", "auto").startswith("fp8") else 2,
        max_model_len=args["max_model_len"],
        free=total - gpu["used_by_others_bytes"],
        requested=total * args["gpu_memory_utilization"],
        ready=measured["verdict"] == "ready",
        process=measured.get("process_bytes_served", 0),
        kv_cache=measured.get("kv_cache_gib", 0) * GIB,
        requests=measured.get("kv_cache_tokens", 0) / args["max_model_len"],
        berth=berth,
    )


def linears(text: dict) -> list[tuple[int, int]]:
    """(how many, elements of one) of the matrices that quantization changes, over all layers."""
    hidden, layers, head = text["hidden_size"], text["num_hidden_layers"], text["head_dim"]
    experts = text.get("num_experts")
    inner = text["moe_intermediate_size"] if experts else text["intermediate_size"]
    return [
        (2 * layers, hidden * head * text["num_attention_heads"]),
        (2 * layers, hidden * head * text["num_key_value_heads"]),
        (3 * layers * (experts or 1), hidden * inner),
    ]


def small_tensors(text: dict) -> int:
    """Elements of norms, of attention's biases (Qwen 2) and of the experts' router."""
    hidden, head, kind = text["hidden_size"], text["head_dim"], text["model_type"]
    a_layer = (4 if kind.startswith("gemma3") else 2) * hidden + text.get("num_experts", 0) * hidden
    if kind.startswith(("gemma3", "qwen3")):
        a_layer += 2 * head
    if kind == "qwen2":
        a_layer += (text["num_attention_heads"] + 2 * text["num_key_value_heads"]) * head
    return text["num_hidden_layers"] * a_layer + hidden


def vision_parameters(config: dict) -> int:
    """SigLIP's tower without its pooling head, and Gemma 3's projector."""
    if "vision_config" not in config:
        return 0
    vision = config["vision_config"]
    hidden, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    embeddings = hidden * (3 * patch**2 + 1 + (vision["image_size"] // patch) ** 2)
    a_layer = 4 * (hidden + 1) * hidden + (2 * hidden + 1) * inner + hidden + 4 * hidden
    projector = hidden * config["text_config"]["hidden_size"] + hidden
    return embeddings + vision["num_hidden_layers"] * a_layer + 2 * hidden + projector


def parameters(text: dict, tables: int) -> int:
    """Of the language model, with one or two tables of the vocabulary."""
    table = text["vocab_size"] * text["hidden_size"]
    return tables * table + small_tensors(text) + sum(n * size for n, size in linears(text))


def checkpoint(row: Row) -> float:
    """Bytes of the tensors in the checkpoint's files: linear layers in its format, the rest bf16."""
    quantizable = sum(n * size for n, size in linears(row.text))
    tables = 1 if row.text["tie_word_embeddings"] else 2
    rest = 2 * (parameters(row.text, tables) - quantizable + vision_parameters(row.config))
    if row.weight_format == "awq":
        # Four bits an element; and a packed zero and an fp16 scale for every 128.
        return rest + quantizable * (0.5 + 2.5 / 128)
    if row.weight_format == "fp8":
        return rest + quantizable + 4 * sum(n for n, _ in linears(row.text))
    return rest + 2 * quantizable


def flat_size(row: Row) -> float:
    """Bytes of every parameter alike: a tool's columns for bf16, for fp8 or int8, and for int4."""
    return {"bf16": 2, "fp8": 1, "awq": 0.5}[row.weight_format]


def kv_of(row: Row, head_dim: int, element: int) -> float:
    """The formula they share: keys and values of every layer, for max_model_len tokens."""
    heads, layers = row.text["num_key_value_heads"], row.text["num_hidden_layers"]
    return 2 * layers * heads * head_dim * element * row.max_model_len


def divided_head_dim(text: dict) -> int:
    """What a tool takes that doesn't read head_dim; wrong for Gemma 3 and Qwen 3 MoE."""
    return text["hidden_size"] // text["num_attention_heads"]


@dataclass
class Estimate:
    """All but the KV cache; the KV cache of one request of max_model_len; what is held against the GPU."""

    fixed: float
    kv: float = 0
    total: float = 0

    def __post_init__(self) -> None:
        self.total = self.total or self.fixed + self.kv


def accelerate(row: Row) -> Estimate:
    """accelerate 1.15.0, commands/estimate.py, gather_data: parameters of AutoModel, which has no
    output head, in fp32, then / 2 (float16), / 4 (int8) or / 8 (int4)."""
    return Estimate(flat_size(row) * (parameters(row.text, tables=1) + vision_parameters(row.config)))


def hf_mem(row: Row) -> Estimate:
    """hf-mem 0.5.6, safetensors/metadata.py and, with --experimental, safetensors/kv_cache.py: windowed
    layers as long as full ones."""
    return Estimate(checkpoint(row), kv_of(row, row.text["head_dim"], row.kv_element))


def modelinfo(row: Row) -> Estimate:
    """modelinfo-cli 1.4.4, calculator.py, calculate_footprint, and architecture.py: KV always of 2 bytes;
    and none at all for a sharded model whose config nests a text_config."""
    kv = 0 if "text_config" in row.config else kv_of(row, divided_head_dim(row.text), 2)
    return Estimate(checkpoint(row) + 600 * (1 << 20), kv)


def hf_vram_calc(row: Row) -> Estimate:
    """hf-vram-calc 1.0.9, calculator.py and parser.py: text_config only; a tied head counts twice, since
    init_empty_weights unties it; KV of the weights' type, but 2 bytes with int4. It shows its KV cache
    and activations, but holds its "inference total" without them against the GPU."""
    fixed = 1.2 * flat_size(row) * parameters(row.text, tables=2)
    kv_element = 1 if row.weight_format == "fp8" else 2
    return Estimate(fixed, kv_of(row, divided_head_dim(row.text), kv_element), total=fixed)


def vramscout(row: Row) -> Estimate:
    """vramscout 0.7.0, modern_v07.py, plan_modern with --engine vllm: the files' bytes, runtime, and
    prefill of its default 8192 tokens; no reserve in this mode. KV as hf-mem's (components.py)."""
    weights = checkpoint(row)
    prefill = min(row.max_model_len, 8192) * row.text["hidden_size"] * 2 * 5
    return Estimate(weights + max(0.75 * GIB, 0.03 * weights) + prefill, hf_mem(row).kv)


def berth(row: Row) -> Estimate:
    """Its KV cache is asked for by utilization, so one request's is in proportion to its own tokens."""
    said = row.berth
    kv = said["kv_cache_bytes"] / said["kv_cache_tokens"] * row.max_model_len
    return Estimate(said["process_bytes_served"] - said["kv_cache_bytes"], kv)


Tool = Callable[[Row], Estimate]
Error = Callable[[Row], float]
OTHERS: dict[str, Tool] = {
    "accelerate estimate-memory 1.15.0": accelerate,
    "hf-mem 0.5.6": hf_mem,
    "modelinfo-cli 1.4.4": modelinfo,
    "hf-vram-calc 1.0.9": hf_vram_calc,
    "vramscout 0.7.0": vramscout,
    # https://blog.eleuther.ai/transformer-math/#total-inference-memory
    "weights × 1.2": lambda row: Estimate(1.2 * checkpoint(row)),
    # policies/utils.py, estimate_model_vram
    "GPUStack 2.3.0 (weights × 1.2 + 2 GiB)": lambda row: Estimate(1.2 * checkpoint(row) + 2 * GIB),
}
WITH_KV = {name: tool for name, tool in OTHERS.items() if tool in (hf_mem, modelinfo, hf_vram_calc, vramscout)}


def fail(message: str) -> NoReturn:
    sys.exit(f"error: {message}")


def ask_berth(binary: Path, cases: list[dict], configs: dict[str, dict]) -> list[dict]:
    """Run berth once for these cases. It wants NAME/config.json, as in a model's folder."""
    with tempfile.TemporaryDirectory() as folder:
        for name, config in configs.items():
            (Path(folder) / name).mkdir()
            (Path(folder) / name / "config.json").write_text(json.dumps(config))
        file = Path(folder) / "cases.jsonl"
        # Without `measured`, so that nobody need wonder whether berth looks at it.
        asked = [{key: value for key, value in case.items() if key != "measured"} for case in cases]
        file.write_text("".join(json.dumps(case) + "\n" for case in asked))
        command = [binary.resolve(), "fit", "--cases", file, "--models", folder, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        fail(f"{binary} ended with {done.returncode}: {done.stderr.strip()}")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    if [answer["name"] for answer in answers] != [case["name"] for case in cases]:
        fail(f"{binary}'s answers are not those of the cases, in their order")
    return answers


def is_comparable(case: dict, config: dict) -> bool:
    """Only what the tools' formulas know: their weights' formats, a stated length, a logged cache."""
    stored = config.get("quantization_config", {}).get("quant_method", "awq")
    measured = case["measured"]
    has_cache = measured["verdict"] != "ready" or measured.get("kv_cache_gib")
    return case["engine"] == "vllm" and stored == "awq" and "max_model_len" in case["args"] and bool(has_cache)


def load_rows(binary: Path, path: Path, models: Path) -> list[Row]:
    """The rows of a file that are vLLM's."""
    every = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    configs = {case["model"]: json.loads((models / f"{case['model']}.json").read_text()) for case in every}
    cases = [case for case in every if is_comparable(case, configs[case["model"]])]
    if len(cases) < len(every):
        print(f"note: {path.name}: {len(every) - len(cases)} rows can't be compared", file=sys.stderr)
    used = {case["model"]: configs[case["model"]] for case in cases}
    answers = ask_berth(binary, cases, used)
    rows = [make_row(path.stem, case, configs[case["model"]], a) for case, a in zip(cases, answers)]
    # Not left out in silence: that would hide berth's worst mistake.
    if blank := [row for row in rows if row.ready and row.berth["verdict"] != "ready"]:
        fail(f"{blank[0].name} was ready, and berth has no figures for it: {blank[0].berth['message']}")
    return rows


def percent(error: float) -> str:
    return f"{100 * error:+.1f} %"


def print_table(title: str, head: list[str], lines: list[list[str]]) -> None:
    print(f"\n**{title}**\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))


def error_line(name: str, errors: list[float]) -> list[str]:
    under = percent(min(errors)) if min(errors) < 0 else "none"
    over = percent(max(errors)) if max(errors) > 0 else "none"
    short = sum(error < -TOLERANCE for error in errors)
    return [name, str(len(errors)), percent(statistics.median(errors)), under, over, str(short)]


def error_table(title: str, rows: list[Row], own: Error, others: dict[str, Error]) -> None:
    """berth was calibrated on one of the files, so it has a line for each of them too."""
    lines = [error_line("berth", [own(row) for row in rows])]
    for file in sorted({row.file for row in rows}):
        lines.append(error_line(f"berth, {file} only", [own(row) for row in rows if row.file == file]))
    lines += [error_line(name, [error(row) for row in rows]) for name, error in others.items()]
    head = ["tool", "rows", "median error", "worst under", "worst over", "rows > 0.5 % under"]
    print_table(title, head, lines)


def fixed_error(tool: Tool) -> Error:
    return lambda row: tool(row).fixed / (row.process - row.kv_cache) - 1


def kv_error(tool: Tool) -> Error:
    return lambda row: tool(row).kv * row.requests / row.kv_cache - 1


def verdict_table(rows: list[Row]) -> None:
    """Right is 'fits' of a start that became ready, and 'doesn't' of one that was refused.

    The second column is vLLM's own first check and then the tool's figure within the budget, as GPUStack
    (vllm_resource_fit_selector.py) and vramscout (engine.py) do it. The others don't know the flag."""

    def right(fits: Callable[[Row], bool]) -> str:
        return f"{sum(fits(row) == row.ready for row in rows)} of {len(rows)}"

    own = right(lambda row: row.berth["verdict"] == "ready")
    booked = right(lambda row: row.requested <= row.free)
    lines = [["berth (its own verdict)", own, own], ["util × total", booked, booked]]
    for name, tool in OTHERS.items():
        within_free = right(lambda row: tool(row).total <= row.free)
        lines.append([name, within_free, right(lambda row: tool(row).total <= row.requested <= row.free)])
    head = ["tool", "estimate ≤ free", "estimate ≤ util × total ≤ free"]
    print_table(f"Verdicts right ({sum(not row.ready for row in rows)} starts were refused)", head, lines)


def rows_table(rows: list[Row]) -> None:
    tools = {"berth": berth, **OTHERS}
    lines = []
    for row in rows:
        errors = [percent(fixed_error(tool)(row)) for tool in tools.values()]
        lines.append([row.name, f"{(row.process - row.kv_cache) / GIB:.2f}", *errors])
    print_table("Memory without KV cache, by row", ["row", "measured GiB", *tools], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare berth with other memory estimators.")
    parser.add_argument("--berth", type=Path, required=True, help="the binary")
    parser.add_argument("--rows", type=Path, nargs="+", default=[DATA / f"{name}.jsonl" for name in LOADED_ONCE])
    parser.add_argument("--models", type=Path, default=DATA / "configs", help="has NAME.json for each model")
    parser.add_argument("--rows-table", action="store_true", help="print every row as well")
    args = parser.parse_args()
    try:
        rows = [row for path in args.rows for row in load_rows(args.berth, path, args.models)]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
        fail(f"{type(error).__name__}: {error}")
    if not (ready := [row for row in rows if row.ready]):
        fail("no start of vLLM that became ready: nothing to compare")

    for title, error, tools in [
        ("Memory without KV cache", fixed_error, OTHERS),
        ("KV cache of the tokens that vLLM logged", kv_error, WITH_KV),
    ]:
        error_table(title, ready, error(berth), {name: error(tool) for name, tool in tools.items()})
    process = {"util × total": lambda row: row.requested / row.process - 1}
    error_table("Whole process", ready, lambda row: row.berth["process_bytes_served"] / row.process - 1, process)
    verdict_table(rows)
    if args.rows_table:
        rows_table(ready)


if __name__ == "__main__":
    main()
