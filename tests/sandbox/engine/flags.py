"""The command line, read as the real CLI reads it: flags anywhere, `--flag=value`, `--`, and the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.sandbox.engine.errors import EngineError

TEXT, SWITCH = "text", "switch"
GLOBAL: dict[str, str] = {
    "stack": TEXT,
    "cwd": TEXT,
    "config-file": TEXT,
    "color": TEXT,
    "non-interactive": SWITCH,
    "help": SWITCH,
    "disable-integrity-checking": SWITCH,
    "emoji": SWITCH,
    "logtostderr": SWITCH,
    "verbose": TEXT,
}
SHORT = {
    "s": "stack",
    "C": "cwd",
    "y": "yes",
    "f": "skip-preview",
    "j": "json",
    "h": "help",
    "v": "verbose",
    "e": "emoji",
    "r": "refresh",
    "p": "parallel",
    "m": "message",
}


@dataclass(frozen=True)
class Line:
    """A command line taken apart."""

    words: list[str]
    flags: dict[str, str] = field(default_factory=dict)

    def text(self, flag: str) -> str:
        """Return a flag's value, or nothing."""
        return self.flags.get(flag, "")

    def on(self, flag: str, default: bool = False) -> bool:
        """Return a switch."""
        value = self.flags.get(flag)
        return default if value is None else value.lower() not in ("false", "0", "f", "")


def parse(argv: list[str], known: Mapping[str, str], short: Mapping[str, str] = SHORT) -> Line:
    """Take *argv* apart; *known* are the command's own flags beside the global ones.

    Raises:
        EngineError: A flag that nobody knows, or one without its value.
    """
    kinds = {**GLOBAL, **known}
    # Any flag may come from the environment; what stands on the line wins.
    flags = {name: value for name in kinds if (value := os.environ.get(_variable(name))) is not None}
    words: list[str] = []
    rest = list(argv)
    while rest:
        part = rest.pop(0)
        if part == "--":
            words += rest
            break
        if part.startswith("--"):
            name, equals, value = part[2:].partition("=")
            if name not in kinds:
                raise EngineError(f"unknown flag: --{name}")
        elif part.startswith("-") and len(part) > 1:
            name = short.get(part[1], "")
            if name not in kinds:
                raise EngineError(f"unknown shorthand flag: {part[1]!r} in {part}")
            value = part[2:].removeprefix("=")
            equals = "=" if value else ""
        else:
            words.append(part)
            continue
        if kinds[name] == SWITCH:
            flags[name] = value if equals else "true"
        elif equals:
            flags[name] = value
        elif rest:
            flags[name] = rest.pop(0)
        else:
            raise EngineError(f"flag needs an argument: {part}")
    return Line(words, flags)


def _variable(flag: str) -> str:
    return f"PULUMI_OPTION_{flag.upper().replace('-', '_')}"
