"""YAML as the real CLI reads it, and edits of a stack file that leave the operator's comments alone."""

import re
from typing import Any

import yaml

from tests.sandbox.engine.errors import EngineError


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars, as Go's yaml.v3 reads them: `NO` is a country, `1:30` a string, a date a string."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - PyYAML's own way to say it


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?\d+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?$"),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])


class _Dumper(yaml.SafeDumper):
    """Strings that read as something else get double quotes, as Go's yaml.v3 writes them."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Quote only where a plain scalar would not read back as this string."""
        plain_reads_same = isinstance(load(f"v: {text}", "value").get("v"), str) if text and "\n" not in text else False
        safe = plain_reads_same and text == text.strip() and load(f"v: {text}", "value")["v"] == text
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if safe else '"')


_Dumper.add_representer(str, _Dumper.represent_text)


def load(text: str, name: str) -> dict[str, Any]:
    """Return the mapping in *text*; *name* is for the message."""
    try:
        document = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader with fewer types
    except yaml.YAMLError as err:
        raise EngineError(f"could not unmarshal '{name}': {err}") from err
    if not isinstance(document, dict | None):
        raise EngineError(f"could not unmarshal '{name}': expected a mapping")
    return document or {}


def set_top(text: str, key: str, value: str) -> str:
    """Set a plain top-level string; a new one comes first, as the real CLI writes the salt."""
    line = f"{key}: {value}\n"
    replaced, count = re.subn(rf"^{re.escape(key)}:.*\n?", lambda _: line, text, count=1, flags=re.MULTILINE)
    return replaced if count else line + text


def set_config(text: str, key: str, value: Any) -> str:
    """Set (or with None remove) one key below `config:`; other lines stay as they are."""
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    start, end = _block(lines, r"config:", 0, len(lines), 0)
    if start is None:
        return text if value is None else "".join(lines) + "config:\n" + _render(key, value, 2)
    if start + 1 == end and lines[start].split("#")[0].strip() != "config:":
        rest = load(lines[start], "config")["config"] or {}  # `config: {}` on one line
        lines[start : start + 1] = ["config:\n", *(_render(name, rest[name], 2) for name in rest)]
        return set_config("".join(lines), key, value)
    body = [line for line in lines[start + 1 : end] if line.strip() and not line.lstrip().startswith("#")]
    indent = len(body[0]) - len(body[0].lstrip()) if body else 2
    at, after = _block(lines, rf"[\"']?{re.escape(key)}[\"']?\s*:", start + 1, end, indent)
    new = [] if value is None else [_render(key, value, indent)]
    if at is None:
        lines[end:end] = new
    else:
        lines[at:after] = new
        if not new and len(body) == after - at:
            del lines[start]  # nothing left: `config:` alone would read as null
    return "".join(lines)


def _block(lines: list[str], pattern: str, start: int, end: int, indent: int) -> tuple[int | None, int]:
    """Find the line with the key, and the end of what hangs below it."""
    for at in range(start, end):
        if not re.match(rf" {{{indent}}}{pattern}", lines[at]):
            continue
        after = at + 1
        while after < end and (_depth(lines[after]) > indent or lines[after].startswith(" " * indent + "- ")):
            after += 1
        while after > at + 1 and (not lines[after - 1].strip() or lines[after - 1].lstrip().startswith("#")):
            after -= 1  # comments and blanks before the next key are that key's
        return at, after
    return None, end


def _depth(line: str) -> int:
    bare = line.strip()
    return 1_000 if not bare or bare.startswith("#") else len(line) - len(line.lstrip())


def _render(key: str, value: Any, indent: int) -> str:
    text = yaml.dump({key: value}, Dumper=_Dumper, default_flow_style=False, sort_keys=False, width=10_000)
    return "".join(" " * indent + line + "\n" for line in text.splitlines())
