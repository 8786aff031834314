"""`pulumi config …`: the values of a stack's file."""

import re
import sys
from typing import Any

from tests.sandbox.engine.display import as_json, as_table
from tests.sandbox.engine.errors import EngineError
from tests.sandbox.engine.flags import Line
from tests.sandbox.engine.project import Config, as_text, open_vault
from tests.sandbox.engine.workspace import Workspace

_STEP = re.compile(r"""\[(?:"([^"]*)"|(\d+))\]|\.?([^.\[\]]+)""")


def show(workspace: Workspace, line: Line) -> int:
    """List every value, the project's defaults included."""
    stack = workspace.existing_stack()
    file = workspace.stack_file(stack)
    config = Config.of(workspace.project, file, open_vault(file), stack)
    prefix = f"{workspace.project.name}:"
    if line.on("json"):
        entries: dict[str, Any] = {}
        for key, value in config.values.items():
            hidden = key in config.secret_keys
            shown = {} if hidden and not line.on("show-secrets") else {"value": value}
            entries[key] = {**shown, "secret": hidden}
        print(as_json(entries))
        return 0
    table = [("KEY", "VALUE")]
    for key, value in config.values.items():
        hidden = key in config.secret_keys and not line.on("show-secrets")
        table.append((key.removeprefix(prefix), "[secret]" if hidden else value))
    print("\n".join(as_table(table)))
    return 0


def get(workspace: Workspace, line: Line) -> int:
    """Print one value, decrypted."""
    stack = workspace.existing_stack()
    steps = _steps(workspace, line)
    file = workspace.stack_file(stack)
    value = dict(file.entries)
    if steps[0] not in value and (default := workspace.project.config.get(str(steps[0]))) is not None:
        value[str(steps[0])] = default.get("value", default.get("default")) if isinstance(default, dict) else default
    found: Any = value
    for step in steps:
        try:
            found = found[step]
        except (KeyError, IndexError, TypeError):
            raise EngineError(f"configuration key '{line.words[0]}' not found for stack '{stack}'") from None
    hidden = isinstance(found, dict) and set(found) == {"secure"}
    if hidden:
        found = open_vault(file).decrypt(found["secure"])
    print(as_json({"value": as_text(found), "secret": hidden}) if line.on("json") else as_text(found))
    return 0


def set_(workspace: Workspace, line: Line) -> int:
    """Set one value; without a value on the line it is read from standard input."""
    stack = workspace.existing_stack()
    file = workspace.stack_file(stack)
    steps = _steps(workspace, line)
    text = line.words[1] if len(line.words) > 1 else sys.stdin.read().rstrip("\n")
    value: Any = {"secure": open_vault(file).encrypt(text)} if line.on("secret") else text
    if len(steps) == 1:
        file.set_entry(str(steps[0]), value)
        return 0
    top = file.entries.get(str(steps[0]))
    if top is None:
        top = _container(steps[1])
    _assign(top, steps[1:], value if line.on("secret") else _typed(text))
    file.set_entry(str(steps[0]), top)
    return 0


def rm(workspace: Workspace, line: Line) -> int:
    """Remove one value; one that is not there is no error."""
    stack = workspace.existing_stack()
    file = workspace.stack_file(stack)
    steps = _steps(workspace, line)
    entries = file.entries
    if str(steps[0]) not in entries:
        return 0
    if len(steps) == 1:
        file.set_entry(str(steps[0]), None)
        return 0
    holder: Any = entries
    try:
        for step in steps[:-1]:
            holder = holder[step]
        del holder[steps[-1]]
    except (KeyError, IndexError, TypeError):
        return 0
    file.set_entry(str(steps[0]), entries[str(steps[0])])
    return 0


def _steps(workspace: Workspace, line: Line) -> list[str | int]:
    """Take the key apart; only with `--path` does it lead into a value."""
    if not line.words:
        raise EngineError("accepts 1 arg(s), received 0")
    key = line.words[0]
    namespace = workspace.project.name
    if ":" in key:
        namespace, key = key.split(":", 1)
    if not line.on("path"):
        return [f"{namespace}:{key}"]
    steps: list[str | int] = []
    for quoted, index, name in _STEP.findall(key):
        steps.append(int(index) if index else quoted or name)
    if not steps:
        raise EngineError(f"invalid configuration key: {key!r}")
    return [f"{namespace}:{steps[0]}", *steps[1:]]


def _assign(holder: Any, steps: list[str | int], value: Any) -> None:
    for at, step in enumerate(steps):
        last = at == len(steps) - 1
        if isinstance(step, int) != isinstance(holder, list):
            raise EngineError(f"the value at {step!r} is no {'list' if isinstance(step, int) else 'map'}")
        if isinstance(step, int) and step == len(holder):
            holder.append(None)
        elif isinstance(step, int) and step > len(holder):
            raise EngineError(f"index {step} is beyond the end of the list")
        if last:
            holder[step] = value
            return
        inner = holder[step] if isinstance(step, int) else holder.get(step)
        if inner is None:
            inner = _container(steps[at + 1])
        holder[step] = inner
        holder = inner


def _container(step: str | int) -> Any:
    return [] if isinstance(step, int) else {}


def _typed(text: str) -> Any:
    """Return booleans and whole numbers as such: the real CLI's rule for values inside a path."""
    if text in ("true", "false"):
        return text == "true"
    return int(text) if re.fullmatch(r"-?(0|[1-9]\d*)", text) else text
