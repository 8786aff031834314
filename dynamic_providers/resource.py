"""What all our resources have in common, as Pulumi sees them.

Providers hold no state: a resource keeps only the import path of its class (a class attribute is not pickled), so
that every later run, `destroy` too, runs the code that is installed then.
"""

from contextlib import suppress
from functools import cache

import grpc
from pulumi import ResourceOptions
from pulumi.dynamic import ConfigureRequest, ResourceProvider
from pulumi.runtime.proto import engine_pb2, engine_pb2_grpc

from dynamic_providers.credentials import ReadConfig
from dynamic_providers.process import STOP, answered, join, say

SHOW_TIMEOUT_SECONDS = 1.0


class Provider(ResourceProvider):
    """Gives a provider the stack's encrypted config, as second choice after the environment, and always an answer."""

    serialize_as_secret_always = False
    _config: ReadConfig

    def __init_subclass__(cls) -> None:
        for name in ("create", "read", "diff", "update", "delete"):
            if name in vars(cls):
                setattr(cls, name, answered(vars(cls)[name]))

    def configure(self, req: ConfigureRequest) -> None:
        """Remember the stack's config for this process; nothing of it is pickled."""
        join()
        self._config = req.config.get


def with_secret(opts: ResourceOptions | None, *outputs: str) -> ResourceOptions:
    """Return *opts* under which Pulumi keeps these outputs encrypted."""
    return ResourceOptions.merge(opts, ResourceOptions(additional_secret_outputs=list(outputs)))


def show(line: str) -> None:
    """Show a line beside the running stack in the place of the one before; Pulumi does not repeat it at the end."""
    if STOP.engine is None:
        say(line)
        return
    request = engine_pb2.LogRequest(severity=engine_pb2.INFO, message=line, ephemeral=True)
    with suppress(grpc.RpcError):  # a line that nobody sees stops nothing
        _engine(STOP.engine).Log(request, timeout=SHOW_TIMEOUT_SECONDS)


@cache
def _engine(address: str) -> engine_pb2_grpc.EngineStub:
    return engine_pb2_grpc.EngineStub(grpc.insecure_channel(address))
