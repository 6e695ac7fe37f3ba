"""A replica: one engine, for as long as the replica lives."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import aiohttp
import ray
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from yarl import URL

# What belongs to one connection and not to the next.
HOP_BY_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding", "upgrade"}


class Engine:
    """Comes up once the engine is ready; is unwell as soon as the engine is."""

    def __init__(self, args: dict):
        host = f"[{args['host']}]" if ":" in args["host"] else args["host"]
        self.address = f"http://{host}:{args['port']}"
        self.health = f"{self.address}{args['health']}"
        self.session = None
        self.ended = None
        self.sleep_level = 0
        self.ready = threading.Event()
        log = log_file(args["instance"])
        order = dict(args, log=str(log))
        supervisor = Path(__file__).with_name("supervisor.py")
        # The supervisor lives until its standard input ends, and so does the engine, however the replica
        # ends. What a killed supervisor leaves, the next one ends.
        self.supervisor = subprocess.Popen(
            [sys.executable, "-E", str(supervisor)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.supervisor.stdin.write(json.dumps(order) + "\n")
        self.supervisor.stdin.flush()
        threading.Thread(target=self._listen, daemon=True).start()
        self.ready.wait()
        if self.ended is not None:
            raise RuntimeError(f"BERTH-ENDED {json.dumps(self.ended)}")

    def _listen(self):
        for line in self.supervisor.stdout:
            event = json.loads(line)
            print(f"berth: {line.strip()}", flush=True)
            if event["event"] == "ended":
                self.ended = event
            if event["event"] in ("ready", "ended"):
                self.ready.set()
        if self.ended is None:
            self.ended = {"event": "ended", "why": "the supervisor ended", "log": []}
        self.ready.set()

    async def reconfigure(self, wanted: dict):
        """Puts the engine to sleep or wakes it (vLLM 0.26), without a restart. Serve calls it after a start, too."""
        level = wanted["sleep_level"]
        if (level > 0) == (self.sleep_level > 0):
            # One that sleeps wakes from the level that it was put to.
            return
        if level > 0:
            # What runs is let end first.
            await self._tell(f"/sleep?level={level}&mode=wait")
        elif self.sleep_level == 2:
            await self._tell("/wake_up?tags=weights")
            await self._tell("/collective_rpc", {"method": "reload_weights"})
            await self._tell("/wake_up?tags=kv_cache")
        else:
            await self._tell("/wake_up")
        self.sleep_level = level

    async def _tell(self, path: str, body=None):
        async with self._session().post(f"{self.address}{path}", json=body) as answer:
            if answer.status != 200:
                why = (await answer.text())[-1000:]
                raise RuntimeError(f"the engine answers {answer.status} to {path}: {why}")

    async def check_health(self):
        if self.ended is not None:
            raise RuntimeError(f"BERTH-ENDED {json.dumps(self.ended)}")
        async with self._session().get(self.health) as answer:
            if answer.status != 200:
                raise RuntimeError(f"the engine's health endpoint answers {answer.status}")

    def _session(self) -> aiohttp.ClientSession:
        if self.session is None:
            unlimited = aiohttp.ClientTimeout(total=None, sock_connect=10)
            connector = aiohttp.TCPConnector(limit=0)
            self.session = aiohttp.ClientSession(timeout=unlimited, connector=connector)
        return self.session

    async def __call__(self, request: Request):
        """Passes a request on, for those who come through Ray's proxy."""
        path = request.url.path.removeprefix(request.scope.get("root_path", ""))
        # As it will be asked for: `/v1/../x` is `/x`, and that is nobody's here.
        url = URL(f"{self.address}{path}")
        if not url.path.startswith("/v1/"):
            return Response("only /v1 is passed on\n", status_code=404)
        headers = [(k, v) for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP]
        answer = await self._session().request(
            request.method,
            url,
            params=request.query_params,
            headers=headers,
            data=await request.body(),
        )
        passed = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP}

        async def chunks():
            async with answer:
                async for chunk in answer.content.iter_any():
                    yield chunk

        return StreamingResponse(chunks(), status_code=answer.status, headers=passed)

    def __del__(self):
        if supervisor := getattr(self, "supervisor", None):
            supervisor.stdin.close()
            supervisor.wait()


def log_file(instance: str) -> Path:
    """Among Ray's own logs, where its dashboard shows it."""
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    folder = session / "logs" / "berth"
    folder.mkdir(exist_ok=True)
    return folder / f"{instance}-{os.getpid()}.log"
