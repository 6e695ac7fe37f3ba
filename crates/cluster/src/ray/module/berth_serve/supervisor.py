"""Starts an engine and ends it: alone, so that it outlives nothing and nothing outlives it.

The order comes as a line of JSON on standard input; when that input ends, the engine is ended. Events go to
standard output, a line of JSON each. Only the standard library is used, and NVML where it is there.

Two locks of the node keep engines out of each other's way. They are held by open files, so they go with
their holder, however it ends:

- an instance's own: the engine holds it as its standard input, so a second engine of the same instance
  waits until the last process of the first is gone;
- each GPU's, while an engine starts: engines that start together mis-size each other (vllm#55827).
"""

import ctypes
import fcntl
import json
import os
import selectors
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

GRACE_S = 20
TICK_S = 0.25
# An instance that shall start first and never comes holds nobody up for longer.
ORDER_LIMIT_S = 900
FREE_LIMIT_S = 120
PR_SET_PDEATHSIG = 1


class Gone(Exception):
    """Nobody wants the engine any more."""


def main():
    order = json.loads(sys.stdin.readline())
    engine = None
    try:
        folder = lock_folder()
        own = lock(folder / f"{order['node']}-{order['instance']}.instance")
        wait_for_earlier(order, folder)
        starting = [lock(folder / f"{order['node']}-{gpu['id']}.gpu") for gpu in order["gpus"]]
        wait_for_memory(order)
        say("starting")
        engine = start(order, own)
        wait_until_ready(order, engine)
        mark(own, "ready")
        for held in starting:
            held.close()
        say("ready", pid=engine.pid)
        while engine.poll() is None:
            rest(TICK_S)
        ended(order, f"it ended by itself: {how(engine.returncode)}")
    except Gone:
        pass
    except Refused as refused:
        ended(order, str(refused), engine)
    finally:
        if engine is not None:
            end(engine)


class Refused(Exception):
    """The engine can't be started as it is planned."""


def lock_folder() -> Path:
    folder = Path(f"/tmp/berth-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise Refused(f"{folder} is somebody else's")
    return folder


def lock(path: Path):
    """Waits for a lock; it is held until the file and all that inherited it are closed."""
    file = open(path, "a+")
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            rest(TICK_S)
            continue
        mark(file, "")
        return file


def mark(file, text: str):
    file.truncate(0)
    file.write(text)
    file.flush()


def wait_for_earlier(order: dict, folder: Path):
    """Instances that the plan starts before this one on the same GPUs."""
    deadline = time.monotonic() + ORDER_LIMIT_S
    for instance in order["after"]:
        path = folder / f"{order['node']}-{instance}.instance"
        while time.monotonic() < deadline and not is_ready(path):
            rest(TICK_S)


def is_ready(path: Path) -> bool:
    """Whether somebody holds an instance's lock and has marked it ready."""
    try:
        with open(path) as file:
            if file.read() != "ready":
                return False
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def wait_for_memory(order: dict):
    """What the plan wants of each GPU must be free: an engine sizes its cache by what it finds."""
    deadline = time.monotonic() + FREE_LIMIT_S
    for gpu in order["gpus"]:
        while (free := free_bytes(gpu["id"], gpu["index"])) is not None and free < gpu["bytes"]:
            if time.monotonic() > deadline:
                needs, has = gpu["bytes"] / 2**30, free / 2**30
                raise Refused(
                    f"GPU {gpu['index']} has {has:.2f} GiB free, and the plan needs {needs:.2f} GiB"
                )
            rest(TICK_S)


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
    try:
        return subprocess.Popen(
            order["command"],
            cwd=folder,
            env=dict(os.environ, **order["environment"]),
            stdin=own,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    except OSError as error:
        raise Refused(f"{order['command'][0]} can't be started: {error}") from error


def die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def wait_until_ready(order: dict, engine: subprocess.Popen):
    deadline = time.monotonic() + order["start_limit_s"]
    url = f"http://{order['host']}:{order['port']}/health"
    while time.monotonic() < deadline:
        if engine.poll() is not None:
            raise Refused(f"it ended before it was ready: {how(engine.returncode)}")
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        rest(TICK_S)
    raise Refused(f"it was not ready after {order['start_limit_s']} s")


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


def ended(order: dict, why: str, engine=None):
    if engine is not None:
        end(engine)
    try:
        with open(order["log"], errors="replace") as log:
            lines = log.read()[-8000:].splitlines()
    except OSError:
        lines = []
    code = engine.returncode if engine is not None else None
    say("ended", why=why, code=code, log=lines)


def say(event: str, **more):
    try:
        print(json.dumps({"event": event, **more}), flush=True)
    except BrokenPipeError:
        pass


if __name__ == "__main__":
    main()
