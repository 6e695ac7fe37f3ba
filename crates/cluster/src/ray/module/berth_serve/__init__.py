"""Runs one inference engine as a replica of Ray Serve, just as berth planned it.

`build` makes the application. A replica starts a supervisor, which starts the engine; requests may go
through the replica (Ray's own HTTP proxy), or straight to the engine, as berth's gateway sends them.
"""

from ray import serve

from .engine import Engine

VERSION = "3"


def build(args: dict) -> serve.Application:
    """The application of one instance. `args` is what berth's plan says of it."""
    if args["module_version"] != VERSION:
        raise RuntimeError(f"berth wants module version {args['module_version']}, this is {VERSION}")
    return serve.deployment(name="Engine")(Engine).bind(args)


class Lease:
    """Says in its config which berth looks after the cluster, and until when."""

    def reconfigure(self, lease: dict):
        pass


def lease(args: dict) -> serve.Application:
    """The application that keeps this module where Ray finds it, and other berths away."""
    return serve.deployment(name="Lease")(Lease).bind()
