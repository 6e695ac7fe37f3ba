"""What an Ollama server is told once it answers: to pull its model, to load it for good, and to let it go.

Ollama's API as of fb30760 (August 2026), server/routes.go. Only the standard library is used.
"""

import json
import queue
import threading
import time
import urllib.error
import urllib.request

# A server that says nothing for so long while it pulls or loads has got stuck.
SILENCE_LIMIT_S = 600
# Between two words about a pull.
SAY_EVERY_S = 2
QUICK_S = 5

# A proxy of the machine's environment knows nothing of the machine itself.
ASK = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Trouble(Exception):
    """Ollama can't do what the plan asks of it. `kind` says whether another try may end otherwise."""

    def __init__(self, why: str, kind: str):
        super().__init__(why)
        self.kind = kind


def pull(address: str, library: dict, watch, say):
    """Has the server pull the model where it doesn't have it yet. `watch` waits a moment, and raises where the
    pull is no longer wanted; `say` is told how far it is."""
    name = library["name"]
    if not any(same(name, one["name"]) for one in quick(address, "/api/tags")["models"]):
        said_at = 0
        for line in lines(address, "/api/pull", {"model": name}, watch):
            if "error" in line:
                raise Trouble(f"{name} can't be pulled: {line['error']}", kind_of(line["error"]))
            if time.monotonic() - said_at > SAY_EVERY_S:
                said_at = time.monotonic()
                say(progress(name, line))
    batch = library.get("num_batch")
    if batch is not None and batch != own_batch(quick(address, "/api/show", {"model": name})):
        raise Trouble(
            f"the plan counts on num_batch = {batch}, and {name} has another: requests can't carry it, so make a "
            f"model that has it (`ollama create`, with FROM {name} and PARAMETER num_batch {batch}) and name that",
            "no_model",
        )


def load(address: str, library: dict, watch):
    """Has the server load the model until it is told otherwise, and checks that it is as large as planned."""
    name = library["name"]
    for line in lines(address, "/api/generate", {"model": name, "keep_alive": -1, "stream": False}, watch):
        if "error" in line:
            raise Trouble(f"{name} can't be loaded: {line['error']}", "not_loaded")
    here = loaded(address, name)
    if here is None:
        raise Trouble(f"Ollama has loaded {name} and doesn't show it", "not_loaded")
    planned, has = library.get("num_ctx"), here.get("context_length") or 0
    if planned is not None and has > planned:
        raise Trouble(
            f"{name} was loaded with a context of {has}, and the plan counts on {planned}: its own num_ctx comes "
            f"first, so plan with num_ctx = {has}, or make a model without it (`ollama create`)",
            "no_model",
        )


def loaded(address: str, name: str):
    """What /api/ps shows of the model; None where it isn't loaded."""
    return next((one for one in quick(address, "/api/ps")["models"] if same(name, one["name"])), None)


def unload(address: str, name: str):
    """Asks the server to let the model go; it may be gone itself."""
    try:
        quick(address, "/api/generate", {"model": name, "keep_alive": 0, "stream": False})
    except (Trouble, OSError, ValueError):
        pass


def same(one: str, other: str) -> bool:
    """Whether two names are one model's: what is left out is `latest`, and Ollama ignores case."""

    def whole(name: str) -> str:
        name = name.lower().removeprefix("registry.ollama.ai/").removeprefix("library/")
        return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"

    return whole(one) == whole(other)


def progress(name: str, line: dict) -> str:
    """How far a pull is, for people."""
    done, total = line.get("completed", 0), line.get("total")
    if not total:
        return f"pulling {name}: {line.get('status', '')}"
    return f"pulling {name}: {done / 2**30:.2f} of {total / 2**30:.2f} GiB ({100 * done // total} %)"


def kind_of(error: str) -> str:
    """Another try doesn't find what isn't there."""
    is_final = any(words in error for words in ("does not exist", "not found", "invalid model name"))
    return "no_model" if is_final else "not_loaded"


def own_batch(shown: dict):
    """The batch that the model's own parameters set."""
    for line in shown.get("parameters", "").splitlines():
        name, _, value = line.strip().partition(" ")
        if name == "num_batch":
            return int(value)
    return None


def quick(address: str, path: str, body=None) -> dict:
    try:
        with ask(address, path, body, QUICK_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        why = said(error)
        raise Trouble(f"Ollama answers {error.code} to {path}: {why}", kind_of(why)) from error


def lines(address: str, path: str, body: dict, watch):
    """The lines of an answer that may take long, while `watch` looks whether it is still wanted."""
    answers = queue.Queue()
    threading.Thread(target=read, args=(address, path, body, answers), daemon=True).start()
    heard_at = time.monotonic()
    while True:
        try:
            line = answers.get_nowait()
        except queue.Empty:
            if time.monotonic() - heard_at > SILENCE_LIMIT_S:
                raise Trouble(f"Ollama said nothing for {SILENCE_LIMIT_S} s after {path}", "not_loaded") from None
            watch()
            continue
        if line is None:
            return
        heard_at = time.monotonic()
        yield line


def read(address: str, path: str, body: dict, answers: queue.Queue):
    try:
        with ask(address, path, body, None) as answer:
            for line in answer:
                answers.put(json.loads(line))
    except urllib.error.HTTPError as error:
        answers.put({"error": said(error)})
    except (OSError, ValueError) as error:
        answers.put({"error": f"the connection broke: {error}"})
    answers.put(None)


def said(error: urllib.error.HTTPError) -> str:
    """Ollama's own words of why not."""
    text = error.read().decode(errors="replace")
    try:
        return json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        return text.strip() or str(error)


def ask(address: str, path: str, body, timeout):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}{path}", data, {"content-type": "application/json"})
    return ASK.open(request, timeout=timeout)
