"""Reading values out of a stack file: each is taken as asked, or becomes one line that says what would be right."""

import difflib
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

SHOWN = 80
"""So many characters of a wrong value are repeated in its problem."""


def show(value: Any) -> str:
    """Return a value as it stands in a stack file, cut if long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def suggest(word: str, known: Collection[str]) -> str:
    """Return what *word* was probably meant to be, or what would be right if that is short enough to tell."""
    if near := near_names(word, known):
        return f"did you mean {' or '.join(near[:4])}?"
    return f"one of: {', '.join(known)}"


def near_names(word: str, known: Collection[str]) -> list[str]:
    """Return those of *known* that *word* may stand for."""
    squeezed = {name: _squeeze(name) for name in known}
    near = [name for name, text in squeezed.items() if _squeeze(word) and _squeeze(word) in text]
    if not near:
        close = difflib.get_close_matches(_squeeze(word), squeezed.values(), n=3)
        near = [name for name, text in squeezed.items() if text in close]
    return near


def _squeeze(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.casefold())


class Section:
    """One object of the stack file and the problems found in it.

    Every method that reads a key returns something of the right type, also when there is a problem: all problems
    are wanted, and the result is thrown away if there is one.

    Args:
        values: As given; not necessarily an object.
        known: The keys that may stand here.
        problems: Where to put what is wrong; shared by all sections of a file.
        path: The section's own key; empty at the top.
        example: How the section is written, for who wrote something else.
    """

    def __init__(
        self, values: Any, known: Collection[str], problems: list[str], *, path: str = "", example: str = ""
    ) -> None:
        self._path = path
        self._problems = problems
        if not isinstance(values, Mapping):
            self.problem("", values, f"is no object; write {path}: {example}")
        self._is_object = isinstance(values, Mapping)
        self._values: Mapping[str, Any] = values if isinstance(values, Mapping) else {}
        self._meant: set[str] = set()
        for key, value in self._values.items():
            if key not in known:
                self._meant.update(near_names(str(key), known)[:1])
                self.problem(str(key), value, f"is under an unknown key; {suggest(str(key), known)}")

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def is_empty_list(self, key: str) -> bool:
        """Say whether *key* is there and holds a list of nothing."""
        return bool(parse_json(self._values.get(key)) == [])

    def problem(self, key: str, value: Any, text: str) -> None:
        """Note what is wrong with the value of *key*."""
        self.note(key, f"{show(value)} {text}")

    def note(self, key: str, text: str) -> None:
        """Note something about *key*, which *text* tells in full."""
        self._problems.append(f"{'.'.join(filter(None, (self._path, key)))}: {text}")

    def missing(self, key: str, text: str) -> None:
        """Note that *key* is not there and has no default.

        One mistake is told once: not again where the section is no object, or the key stands there misspelt.
        """
        if self._is_object and key not in self._meant:
            self.note(key, f"missing; {text}")

    def section(self, key: str, known: Collection[str], example: str) -> "Section":
        """Return the object under *key*; empty if it is not there."""
        value = self._values.get(key)
        value = {} if value is None else parse_json(value)
        path = ".".join(filter(None, (self._path, key)))
        return Section(value, known, self._problems, path=path, example=example)

    def text(
        self, key: str, default: str | None, right: str, problem: Callable[[str], str] = lambda _: ""
    ) -> str | None:
        """Return text.

        Args:
            key: Which.
            default: For when it is not there.
            right: What would be right, for the problem of a wrong type.
            problem: Says what is wrong with a text; empty if nothing is.
        """
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, str) or not value.strip():
            self.problem(key, value, f"is no text; {right}")
        elif wrong := problem(value):
            self.problem(key, value, wrong)
        else:
            return value
        return default

    def required_text(self, key: str, right: str, problem: Callable[[str], str] = lambda _: "") -> str:
        """Return text that must be there."""
        if key not in self:
            self.missing(key, right)
        return self.text(key, None, right, problem) or ""

    def number(
        self, key: str, default: float | None, right: str, *, least: float, most: float, whole: bool = False
    ) -> float | None:
        """Return a number from *least* to *most*. `pulumi config set --path` writes 0.5 as text: that is one too."""
        value = self._values.get(key)
        if value is None:
            return default
        found = to_number(value)
        span = f"{_plain(least)} to {_plain(most)}"
        if found is None or (whole and found != int(found)):
            self.problem(key, value, f"is no {'whole ' if whole else ''}number; {right}, {span}")
        elif not least <= found <= most:
            self.problem(key, value, f"is out of range; {right}, {span}")
        else:
            return int(found) if whole else found
        return default

    def required_number(self, key: str, right: str, *, least: float, most: float) -> float:
        """Return a number that must be there."""
        if key not in self:
            self.missing(key, f"{right}, {_plain(least)} to {_plain(most)}")
        return self.number(key, None, right, least=least, most=most) or least

    def whole(self, key: str, default: int, right: str, *, least: int, most: int) -> int:
        """Return a whole number from *least* to *most*."""
        found = self.number(key, default, right, least=least, most=most, whole=True)
        return default if found is None else int(found)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self._values.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or value in ("true", "false"):
            return value in (True, "true")
        self.problem(key, value, "is neither true nor false")
        return default

    def texts(
        self, key: str, right: str, problem: Callable[[str], str] = lambda _: "", *, numbers: bool = False
    ) -> tuple[str, ...]:
        """Return a list of texts; empty if it is not there.

        Args:
            key: Which.
            right: What would be right, for the problem of a wrong type.
            problem: Says what is wrong with one of them; empty if nothing is.
            numbers: Take a number for its text, as in `[--max-num-seqs, 64]`.
        """
        value = parse_json(self._values.get(key))
        if value is None:
            return ()
        if not isinstance(value, Sequence) or isinstance(value, str):
            self.problem(key, value, f"is no list; {right}")
            return ()
        taken = []
        for item in value:
            plain = str(item) if numbers and isinstance(item, int | float) and not isinstance(item, bool) else item
            if not isinstance(plain, str) or not plain:
                self.problem(key, item, f"is no text; {right}")
            elif wrong := problem(plain):
                self.problem(key, item, wrong)
            else:
                taken.append(plain)
        return tuple(taken)


def _plain(number: float) -> str:
    return f"{number:,.0f}" if number == int(number) else f"{number:g}"


def to_number(value: Any) -> float | None:
    """Return a finite number, or None if *value* is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def parse_json(value: Any) -> Any:
    """Return what a text holds if it is a JSON object or list: so Pulumi hands structured values to the program."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
