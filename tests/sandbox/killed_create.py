"""A create in a process of its own that is killed, as a laptop's is, the moment it calls a given function.

Reads a JSON object: `kill_at` (module and function), `url` and `key` of the market, `props` of the request.
"""

import importlib
import json
import os
import signal
import sys

from dynamic_providers.store.client import Store
from dynamic_providers.vast import lifecycle
from dynamic_providers.vast.client import VastClient
from dynamic_providers.vast.rent import World
from dynamic_providers.vast.request import MachineRequest
from tests.sandbox.clocks import SwiftClock


def main() -> None:
    job = json.load(sys.stdin)
    module, _, function = job["kill_at"].rpartition(".")
    assert hasattr(importlib.import_module(module), function)
    setattr(importlib.import_module(module), function, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    clock = SwiftClock()
    world = World(VastClient(job["key"], job["url"], clock=clock), print, clock)
    request = MachineRequest.from_props(job["props"])
    lifecycle.create(world, Store(request.store.bucket), request)


if __name__ == "__main__":
    main()
