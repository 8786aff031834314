"""The engine's protocol, from the installed SDK's generated modules, without importing the SDK itself.

Importing `pulumi` runs half a second of code that only programs need. An empty package of that name in its place lets
the generated modules load alone. Import this module only in the engine's own process, and only where gRPC is needed.
"""

import importlib.util
import sys
import types
from pathlib import Path


def _stand_in_packages() -> None:
    spec = importlib.util.find_spec("pulumi")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("the Pulumi SDK is not installed beside the stand-in engine")
    folder = Path(next(iter(spec.submodule_search_locations)))
    for name, path in (
        ("pulumi", folder),
        ("pulumi.runtime", folder / "runtime"),
        ("pulumi.runtime.proto", folder / "runtime" / "proto"),
    ):
        module = types.ModuleType(name)
        module.__path__ = [str(path)]
        sys.modules[name] = module


if "pulumi" not in sys.modules:
    _stand_in_packages()

import grpc  # noqa: E402
from google.protobuf import empty_pb2, struct_pb2  # noqa: E402
from pulumi.runtime.proto import (  # noqa: E402
    engine_pb2,
    engine_pb2_grpc,
    provider_pb2,
    provider_pb2_grpc,
    resource_pb2,
    resource_pb2_grpc,
)

# As the SDK's own: 400 MiB a message, half an hour in the queue.
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", 400 * 1024 * 1024),
    ("grpc.max_send_message_length", 400 * 1024 * 1024),
    ("grpc.server_max_unrequested_time_in_server", 30 * 60),
]

__all__ = [
    "CHANNEL_OPTIONS",
    "empty_pb2",
    "engine_pb2",
    "engine_pb2_grpc",
    "grpc",
    "provider_pb2",
    "provider_pb2_grpc",
    "resource_pb2",
    "resource_pb2_grpc",
    "struct_pb2",
]
