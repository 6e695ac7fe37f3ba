#!/usr/bin/env python3
"""llama-server for processors without AVX-512: llama.cpp's own server out of the xllamacpp wheel.

Takes the flags of llama-server that the demo and the tests use, under the same names, and refuses
others in llama-server's words.
"""

import os
import signal
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "site"))
import xllamacpp as llama  # noqa: E402

SWITCHES = {
    "--metrics": ("endpoint_metrics", True),
    "--no-webui": ("ui", False),
    "--no-warmup": ("warmup", False),
    "--swa-full": ("swa_full", True),
    "--kv-unified": ("kv_unified", True),
    "--no-kv-unified": ("kv_unified", False),
    "--embedding": ("embedding", True),
    "--no-mmap": ("load_mode", llama.llama_load_mode.LLAMA_LOAD_MODE_NONE),
}
FLASH_ATTENTION = {
    "on": llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    "auto": llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_AUTO,
}
NUMBERS = {
    "--ctx-size": "n_ctx",
    "--parallel": "n_parallel",
    "--batch-size": "n_batch",
    "--ubatch-size": "n_ubatch",
    "--port": "port",
    "--log-verbosity": "verbosity",
    "--cache-ram": "cache_ram_mib",
    "--ctx-checkpoints": "n_ctx_checkpoints",
}
SHORT = {"-c": "--ctx-size", "-np": "--parallel", "-b": "--batch-size", "-ub": "--ubatch-size",
         "-t": "--threads", "-ctk": "--cache-type-k", "-ctv": "--cache-type-v", "-m": "--model",
         "-a": "--alias", "-cram": "--cache-ram", "-ctxcp": "--ctx-checkpoints"}


def refuse(text):
    print(text, file=sys.stderr)
    sys.exit(1)


def parse(words):
    params = llama.CommonParams()
    # llama-server's own defaults: four slots that share one cache.
    params.n_parallel, params.kv_unified = 4, True
    words = iter(words)
    for word in words:
        flag = SHORT.get(word, word)
        if flag in SWITCHES:
            setattr(params, *SWITCHES[flag])
            continue
        if flag == "--parallel":
            params.kv_unified = "--kv-unified" in sys.argv
        if flag not in NUMBERS and flag not in {"--model", "--alias", "--host", "--threads",
                                                "--cors-origins", "--cache-type-k",
                                                "--cache-type-v", "--flash-attn", "--device"}:
            refuse(f"error: invalid argument: {word}")
        value = next(words, None)
        if value is None:
            refuse(f'error while handling argument "{word}": expected value for argument')
        try:
            apply(params, flag, value)
        except (ValueError, AttributeError, KeyError) as error:
            refuse(f'error while handling argument "{word}": {error}')
    return params


def apply(params, flag, value):
    if flag in NUMBERS:
        setattr(params, NUMBERS[flag], int(value))
    elif flag == "--model":
        params.model.path = value
    elif flag == "--alias":
        params.model_alias = {value}
    elif flag == "--host":
        params.hostnames = [value]
    elif flag == "--threads":
        params.cpuparams.n_threads = int(value)
        params.cpuparams_batch.n_threads = int(value)
    elif flag == "--flash-attn":
        params.flash_attn_type = FLASH_ATTENTION[value]
    elif flag == "--device":
        pass  # This build has no other than the processor.
    elif flag == "--cors-origins":
        params.cors_origins = value
    else:
        name = "cache_type_k" if flag == "--cache-type-k" else "cache_type_v"
        setattr(params, name, getattr(llama.ggml_type, f"GGML_TYPE_{value.upper()}"))


def main():
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    try:
        server = llama.Server(parse(sys.argv[1:]))
    except RuntimeError as error:
        refuse(f"E srv  llama_server: exiting due to model loading error: {error}")
    print(f"listening on {server.listening_address}", file=sys.stderr, flush=True)
    while not done.wait(0.5):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
