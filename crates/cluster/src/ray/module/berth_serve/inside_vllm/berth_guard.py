"""Keeps vLLM's developer routes to its own machine.

Sleep needs `VLLM_SERVER_DEV_MODE`, which opens routes that call any method of an engine's workers to whoever reaches
its port. vLLM takes this as `--middleware berth_guard.OnlyFromHere`. Only the standard library is used.
"""

# What vLLM answers clients with, the mode or not (0.26 to 0.28), and whether it sleeps.
OPEN = {"/health", "/ping", "/metrics", "/version", "/load", "/tokenize", "/detokenize", "/is_sleeping"}
OPEN |= {"/score", "/rerank", "/pooling", "/classify", "/invocations"}
OPEN_BELOW = ("/v1/", "/v2/", "/health/", "/inference/")


class OnlyFromHere:
    """An ASGI application around another."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan" or is_open(scope["path"]) or is_from_here(scope):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": b"only this machine may ask that\n"})


def is_open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_BELOW)


def is_from_here(scope) -> bool:
    """A machine that asks itself does so from the address that it asks."""
    client, server = scope.get("client"), scope.get("server")
    return client is not None and server is not None and client[0] == server[0]
