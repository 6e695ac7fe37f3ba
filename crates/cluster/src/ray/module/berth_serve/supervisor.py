"""Starts an engine and ends it: alone, so that it outlives nothing and nothing outlives it.

The order comes as a line of JSON on standard input; when that input ends, the engine is ended. Events go to
standard output, a line of JSON each. Only the standard library is used, and NVML where it is there.

Two locks of the node keep engines out of each other's way. They are held by open files, so they go with
their holder, however it ends:

- an instance's own: the engine holds it as its standard input, so a second engine of the same instance
  waits until the last process of the first is gone;
- each GPU's, while an engine starts: engines that start together mis-size each other (vllm#55827).

An engine with a library (Ollama) takes no memory before it is told to load: it is started and pulls its model
first, and only its loading is the start that others wait for.
"""

import ctypes
import fcntl
import http.client
import json
import os
import selectors
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import ollama

GRACE_S = 20
TICK_S = 0.25
# Between two looks at which processes an engine has.
LIST_EVERY_S = 2
# Between two looks at whether a library's model is still loaded.
LOOK_EVERY_S = 5
# An instance that shall start first holds nobody up for longer, and for less where there is none.
ORDER_LIMIT_S = 900
ABSENT_LIMIT_S = 30
# What is left of an engine whose supervisor is gone is ended after this.
LEFTOVER_AFTER_S = 10
LOCK_LIMIT_S = 600
LOG_TAIL = 8000
FREE_LIMIT_S = 120
PR_SET_PDEATHSIG = 1
GUARDED = ["--middleware", "berth_guard.OnlyFromHere"]


class Gone(Exception):
    """Nobody wants the engine any more."""


def main():
    order = json.loads(sys.stdin.readline())
    engine = None
    try:
        folder = lock_folder()
        own = lock(folder / f"{order['node']}-{order['instance']}.instance")
        if order["library"]:
            wait_for_port(order)
            engine = start(order, own)
            mark(own, "waiting", engine.pid)
            wait_until_healthy(order, engine)
            ollama.pull(address(order), order["library"], watch(engine), lambda text: tell(order, text))
        wait_for_earlier(order, folder)
        gpus = sorted(gpu["id"] for gpu in order["gpus"])
        starting = [lock(folder / f"{order['node']}-{gpu}.gpu") for gpu in gpus]
        wait_for_memory(order)
        say("starting")
        if engine is None:
            wait_for_port(order)
            engine = start(order, own)
        mark(own, "starting", engine.pid)
        wait_until_ready(order, engine)
        mark(own, "ready", engine.pid)
        for held in starting:
            held.close()
        say("ready", pid=engine.pid)
        stay(order, engine)
        ended(order, f"it ended by itself: {how(engine.returncode)}", engine=engine)
    except Gone:
        pass
    except (Refused, ollama.Trouble) as refused:
        ended(order, str(refused), refused.kind, engine)
    finally:
        if engine is not None:
            if order["library"] and engine.poll() is None:
                ollama.unload(address(order), order["library"]["name"])
            end(engine)
            listing(order).unlink(missing_ok=True)


class Refused(Exception):
    """The engine can't be started as it is planned. `kind` says why, None where it ended by itself."""

    def __init__(self, why: str, kind=None):
        super().__init__(why)
        self.kind = kind


def lock_folder() -> Path:
    folder = Path(f"/tmp/berth-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
        raise Refused(f"{folder} is somebody else's", "cannot_start")
    return folder


def lock(path: Path):
    """Waits for a lock; it is held until the file and all that inherited it are closed."""
    file = open(path, "a+")
    begun = time.monotonic()
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = time.monotonic() - begun
            if waited > LEFTOVER_AFTER_S:
                end_leftover(path)
            if waited > LOCK_LIMIT_S:
                raise Refused(f"{path.stem} is still running after {LOCK_LIMIT_S} s", "not_ready")
            rest(TICK_S)
            continue
        mark(file, "waiting")
        return file


def mark(file, state: str, engine=None):
    """Says in a lock's file how far its holder is, and whose processes it has."""
    file.seek(0)
    file.truncate()
    file.write(json.dumps({"state": state, "supervisor": os.getpid(), "engine": engine}))
    file.flush()


def marked(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def end_leftover(path: Path):
    """Ends the processes of an engine whose supervisor was killed: only its first one dies with it."""
    found = marked(path)
    supervisor, engine = found.get("supervisor"), found.get("engine")
    if engine is None or is_supervisor(supervisor):
        return
    try:
        os.killpg(engine, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def is_supervisor(pid) -> bool:
    try:
        return Path(__file__).name in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def wait_for_earlier(order: dict, folder: Path):
    """Instances that the plan starts before this one on the same GPUs: those that are on their way, and for a
    moment those that nothing is seen of yet, as after a reboot."""
    begun = time.monotonic()
    for instance in order["after"]:
        path = folder / f"{order['node']}-{instance}.instance"
        while True:
            state, waited = state_of(path), time.monotonic() - begun
            limit = {"ready": 0, "absent": ABSENT_LIMIT_S}.get(state, ORDER_LIMIT_S)
            if waited >= limit:
                break
            rest(TICK_S)


def state_of(path: Path) -> str:
    """How far the holder of an instance's lock is; "absent" where nobody holds it."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return "absent"
    except FileNotFoundError:
        return "absent"
    except BlockingIOError:
        return marked(path).get("state", "waiting")


def wait_for_memory(order: dict):
    """What the plan wants of each GPU must be free: an engine sizes its cache by what it finds."""
    deadline = time.monotonic() + FREE_LIMIT_S
    for gpu in order["gpus"]:
        while (free := free_bytes(gpu["id"], gpu["index"])) is not None and free < gpu["bytes"]:
            if time.monotonic() > deadline:
                needs, has = gpu["bytes"] / 2**30, free / 2**30
                raise Refused(
                    f"GPU {gpu['index']} has {has:.2f} GiB free, and the plan needs {needs:.2f} GiB",
                    "no_memory",
                )
            rest(TICK_S)


def wait_for_port(order: dict):
    """Somebody else's server on the port would be taken for the engine."""
    with socket.socket(socket.AF_INET6 if ":" in order["host"] else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((order["host"], order["port"]))
        except OSError as error:
            where = f"{order['host']}:{order['port']}"
            raise Refused(f"{where} can't be listened on: {error}", "cannot_start") from error


def free_bytes(gpu: str, index: int):
    """Free memory of a GPU; None where NVML is not there."""
    try:
        try:
            import pynvml
        except ImportError:
            from ray._private.thirdparty import pynvml
        pynvml.nvmlInit()
        if gpu.startswith("GPU-"):
            handle = pynvml.nvmlDeviceGetHandleByUUID(gpu)
        else:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        return pynvml.nvmlDeviceGetMemoryInfo(handle).free
    except Exception:
        return None


def start(order: dict, own) -> subprocess.Popen:
    log = open(order["log"], "ab")
    folder = order["folder"] if os.path.isdir(order["folder"]) else "/"
    command, environment = order["command"], dict(os.environ, **order["environment"])
    if order["sleeps"]:
        command, environment = command + GUARDED, with_developer_routes(environment)
    try:
        engine = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=own,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    except OSError as error:
        why = f"{order['command'][0]} can't be started: {error}"
        raise Refused(why, "cannot_start") from error
    threading.Thread(target=keep_list, args=(order, engine), daemon=True).start()
    return engine


def keep_list(order: dict, engine: subprocess.Popen):
    """Lists an engine's processes beside its log, for who sees which process holds a GPU's memory."""
    path, listed = listing(order), None
    while engine.returncode is None:
        try:
            found = processes_of(engine.pid)
            if found != listed:
                new = path.with_suffix(".new")
                new.write_text(json.dumps(found))
                new.replace(path)
                listed = found
        except OSError:
            # A full disk, too many files: later, then.
            pass
        time.sleep(LIST_EVERY_S)


def listing(order: dict) -> Path:
    return Path(order["log"]).with_suffix(".processes")


def processes_of(session: int) -> list:
    """All processes of a session: an engine begins one, and what it starts is of it."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.getsid(int(name)) == session:
                found.append(int(name))
        except OSError:
            # It has ended meanwhile.
            continue
    return sorted(found)


def with_developer_routes(environment: dict) -> dict:
    """vLLM sleeps by routes for developers; a guard keeps those to this machine."""
    guard = str(Path(__file__).with_name("inside_vllm"))
    paths = [guard, environment.get("PYTHONPATH")]
    own = {"VLLM_SERVER_DEV_MODE": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    # Who asks is who is connected, whatever a header says.
    own["FORWARDED_ALLOW_IPS"] = ""
    return {**environment, **own}


def die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def wait_until_ready(order: dict, engine: subprocess.Popen):
    if order["library"]:
        tell(order, f"loading {order['library']['name']}")
        ollama.load(address(order), order["library"], watch(engine))
    else:
        wait_until_healthy(order, engine)


def wait_until_healthy(order: dict, engine: subprocess.Popen):
    deadline = time.monotonic() + order["start_limit_s"]
    url, look = f"{address(order)}{order['health']}", watch(engine)
    while time.monotonic() < deadline:
        look()
        try:
            with ollama.ASK.open(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, http.client.HTTPException, OSError):
            pass
    raise Refused(f"it was not ready after {order['start_limit_s']} s", "not_ready")


def stay(order: dict, engine: subprocess.Popen):
    """Waits until the engine ends. A library's model that somebody had it let go is loaded again."""
    looked_at = time.monotonic()
    while engine.poll() is None:
        rest(TICK_S)
        if not order["library"] or time.monotonic() - looked_at < LOOK_EVERY_S:
            continue
        looked_at = time.monotonic()
        try:
            if ollama.loaded(address(order), order["library"]["name"]) is None:
                tell(order, f"{order['library']['name']} is no longer loaded: loading it again")
                ollama.load(address(order), order["library"], watch(engine))
        except (OSError, ValueError):
            # Whether it is well at all, its health endpoint says.
            continue


def watch(engine: subprocess.Popen):
    """Waits a moment, and learns whether the engine is still wanted, and there."""

    def look():
        if engine.poll() is not None:
            raise Refused(f"it ended before it was ready: {how(engine.returncode)}")
        rest(TICK_S)

    return look


def address(order: dict) -> str:
    host = f"[{order['host']}]" if ":" in order["host"] else order["host"]
    return f"http://{host}:{order['port']}"


def tell(order: dict, text: str):
    """Says in the engine's own log what is done for it."""
    with open(order["log"], "a") as log:
        log.write(f"berth: {text}\n")


def how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def end(engine: subprocess.Popen):
    """Asks, waits, and ends what is left, with all its children."""
    for kind, wait in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, 5)):
        try:
            os.killpg(engine.pid, kind)
        except ProcessLookupError:
            return
        try:
            engine.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            continue


def rest(seconds: float):
    """Waits a moment, or learns that nobody wants the engine any more."""
    with selectors.DefaultSelector() as waiting:
        waiting.register(sys.stdin, selectors.EVENT_READ)
        if waiting.select(seconds) and sys.stdin.readline() == "":
            raise Gone


def ended(order: dict, why: str, kind=None, engine=None):
    code = engine.poll() if engine is not None else None
    if engine is not None:
        end(engine)
    try:
        with open(order["log"], "rb") as log:
            log.seek(max(0, os.path.getsize(order["log"]) - LOG_TAIL))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        lines = []
    say("ended", why=why, kind=kind, code=code, log=lines)


def say(event: str, **more):
    try:
        print(json.dumps({"event": event, **more}), flush=True)
    except BrokenPipeError:
        pass


if __name__ == "__main__":
    main()
