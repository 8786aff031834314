"""What a person sees of a preview or an update: the real CLI's words when it does not talk to a terminal.

One thing differs on purpose: what programs and providers say appears whole and at once, indented by four, so that a
table keeps its shape; the real CLI shows first lines and repeats everything at the end.
"""

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.sandbox.engine.values import UNKNOWN, Props, Value, is_secret, plain

# operation: sign, in a preview, while it runs, when it is done
_WORDS = {
    "same": ("  ", "", "", ""),
    "create": ("+ ", "create", "creating", "created"),
    "update": ("~ ", "update", "updating", "updated"),
    "delete": ("- ", "delete", "deleting", "deleted"),
    "replace": ("+-", "replace", "replacing", "replaced"),
    "create-replacement": ("++", "create replacement", "creating replacement", "created replacement"),
    "delete-replaced": ("--", "delete original", "deleting original", "deleted original"),
    "refresh": ("~ ", "refresh", "refreshing", "refresh"),
    "read": ("> ", "read", "reading", "read"),
}
_TITLES = {
    "update": ("Previewing update", "Updating"),
    "refresh": ("Previewing refresh", "Refreshing"),
    "destroy": ("Previewing destroy", "Destroying"),
}
_COUNTED = (
    "create",
    "update",
    "delete",
    "replace",
)  # the order of the summary; the inner steps of a replace do not count


@dataclass(frozen=True)
class Row:
    """What a line is about."""

    urn: str
    type: str
    name: str
    operation: str
    changed: tuple[str, ...] = ()


class Display:
    """Prints one operation of one stack as it goes. Safe to call from any thread."""

    def __init__(
        self, kind: str, stack: str, *, preview: bool, show_secrets: bool = False, quiet: bool = False
    ) -> None:
        self.preview = preview
        self.counts: Counter[str] = Counter()
        self.steps: list[tuple[str, str]] = []
        self.diagnostics: list[tuple[str, str, str]] = []
        self._title = f"{_TITLES[kind][not preview]} ({stack}):"
        self._show_secrets = show_secrets
        self._quiet = quiet
        self._lock = threading.Lock()
        self._begun = time.monotonic()

    def header(self) -> None:
        """Print the first line."""
        self._print(self._title)

    def started(self, row: Row) -> None:
        """Print that a step begins; a preview has only its end."""
        if not self.preview:
            self._row(row, f"{_WORDS[row.operation][2]} (0s)")

    def finished(self, row: Row, seconds: float = 0.0) -> None:
        """Print that a step is done, and count it."""
        if row.operation in (*_COUNTED, "same"):
            self.count(row.operation)
            with self._lock:
                self.steps.append((row.operation, row.urn))
        if row.operation == "same":
            self._row(row, "")
        elif self.preview:
            self._row(row, _WORDS[row.operation][1])
        else:
            took = f"{seconds:.2f}s" if seconds < 1 else f"{seconds:.0f}s"
            self._row(row, f"{_WORDS[row.operation][3]} ({took})")

    def count(self, operation: str) -> None:
        """Count a step that has no line of its own."""
        with self._lock:
            self.counts[operation] += 1

    def failed_step(self, row: Row) -> None:
        """Print that a step did not work out."""
        self._row(row, f"**{_WORDS[row.operation][2]} failed**")

    @property
    def errors(self) -> bool:
        """Whether anything was reported as an error."""
        return any(severity == "error" for severity, _, _ in self.diagnostics)

    def errors_of(self, stack_urn: str) -> bool:
        """Whether an error was reported of the stack itself, and not of one resource."""
        return any(severity == "error" and urn in ("", stack_urn) for severity, urn, _ in self.diagnostics)

    def info(self, text: str) -> None:
        """Show what a program or a provider says, line for line."""
        for line in text.splitlines():
            self._print(f"    {line}".rstrip())

    def diagnostic(self, severity: str, urn: str, text: str) -> None:
        """Show a warning at once; keep it, and errors, for the end."""
        with self._lock:
            self.diagnostics.append((severity, urn, text.rstrip("\n")))
        if severity == "warning":
            self.info(f"warning: {text}")

    def closing(self, olds: Props, news: Props | None, stack_urn: str) -> None:
        """Print what follows the rows: diagnostics, outputs, counts, time. None: the outputs are not known."""
        self._print_diagnostics(stack_urn)
        if news is not None:
            lines = output_lines(olds, news, preview=self.preview, show_secrets=self._show_secrets)
            if lines:
                self._print("Outputs:", *lines, "")
        self._print("Resources:", *(self.summary() or ["    0 unchanged"]), "")
        if not self.preview:
            self._print(f"Duration: {time.monotonic() - self._begun:.0f}s", "")

    def summary(self) -> list[str]:
        """Return the lines that count the steps."""
        lines = []
        for operation in _COUNTED:
            if count := self.counts[operation]:
                sign, word, _, past = _WORDS[operation]
                lines.append(f"    {sign}{count} {'to ' + word if self.preview else past}")
        changes = [self.counts[operation] for operation in _COUNTED if self.counts[operation]]
        tail = f"{sum(changes)} changes" if len(changes) > 1 else ""
        if same := self.counts["same"]:
            tail += f"{'. ' if tail else ''}{same} unchanged"
        lines += [f"    {tail}"] if tail else []
        if errored := self.counts["errored"]:
            lines.append(f"    {errored} errored")
        return lines

    def _print_diagnostics(self, stack_urn: str) -> None:
        if not self.diagnostics:
            return
        self._print("Diagnostics:")
        by_urn: dict[str, list[tuple[str, str]]] = {}
        for severity, urn, text in self.diagnostics:
            by_urn.setdefault(urn or stack_urn, []).append((severity, text))
        for urn, messages in by_urn.items():
            self._print(f"  {urn.split('::')[2].rsplit('$', 1)[-1]} ({urn.rsplit('::', 1)[-1]}):")
            for severity, text in messages:
                self._print(*(f"    {line}".rstrip() for line in f"{severity}: {text}".splitlines()))
            self._print("")

    def _row(self, row: Row, status: str) -> None:
        diff = f" [diff: {','.join(row.changed)}]" if row.changed else ""
        self._print(f" {_WORDS[row.operation][0]} {row.type} {row.name} {status}{diff}".rstrip())

    def _print(self, *lines: str) -> None:
        if self._quiet:
            return
        with self._lock:
            sys.stdout.write("".join(line + "\n" for line in lines))
            sys.stdout.flush()


def output_lines(olds: Props, news: Props, *, preview: bool, show_secrets: bool) -> list[str]:
    """Return the stack's outputs as the real CLI lays them out; a preview of an old stack shows only changes."""
    lines = []
    keys = sorted({*olds, *news})
    if preview and olds:
        keys = [
            key
            for key in keys
            if key not in news or (news[key] != UNKNOWN and plain(olds.get(key)) != plain(news[key]))
        ]
    width = max((len(key) for key in keys), default=0)
    for key in keys:
        old, new = olds.get(key), news.get(key)
        label = f"{key:{width}}"
        if key not in news:
            lines += _block(f"  - {label}: ", old, show_secrets)
        elif not olds or (key in olds and plain(old) == plain(new)):
            lines += _block(f"    {label}: ", new, show_secrets)
        elif key not in olds:
            lines += _block(f"  + {label}: ", new, show_secrets)
        else:
            before, after = (_inline(value, show_secrets) for value in (old, new))
            lines.append(f"  ~ {label}: {before} => {after}")
    return lines


def _block(head: str, value: Value, show_secrets: bool, indent: str = "    ") -> list[str]:
    """Render a value over as many lines as it needs."""
    if is_secret(value):
        if not show_secrets:
            return [f"{head}[secret]"]
        value = plain(value)
    if isinstance(value, dict) and value:
        width = max(len(key) for key in value)
        pairs = [(f"{indent}    {key:{width}}: ", item) for key, item in sorted(value.items())]
        brackets = "{}"
    elif isinstance(value, list) and value:
        pairs = [(f"{indent}    [{at}]: ", item) for at, item in enumerate(value)]
        brackets = "[]"
    else:
        return [head + _inline(value, show_secrets)]
    inner = [line for start, item in pairs for line in _block(start, item, show_secrets, indent + "    ")]
    return [head + brackets[0], *inner, indent + brackets[1]]


def _inline(value: Value, show_secrets: bool) -> str:
    if is_secret(value):
        return _inline(plain(value), show_secrets) if show_secrets else "[secret]"
    if value == UNKNOWN:
        return "[unknown]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_inline(item, show_secrets)}" for key, item in sorted(value.items())) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(item, show_secrets) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def as_table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return lines with the columns aligned, two blanks apart."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def as_json(value: Mapping[str, Any] | list[Any] | Value, indent: int = 2) -> str:
    """Return JSON laid out as the real CLI prints it."""
    return json.dumps(value, indent=indent, ensure_ascii=False)
