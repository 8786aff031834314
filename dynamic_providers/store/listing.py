"""What a list of the bucket tells, without reading an object."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from dynamic_providers.store.manifest import MODELS, ModelRef, digest_of_key


@dataclass(frozen=True)
class Listed:
    """An object in the bucket."""

    key: str
    size: int
    modified: datetime


@dataclass(frozen=True)
class Release:
    """A release in the bucket, unread."""

    ref: ModelRef
    pushed_at: datetime


def group_releases(listed: Iterable[Listed]) -> dict[str, list[Release]]:
    """Return the releases of each model, the one pushed last first."""
    found: dict[str, list[Release]] = {}
    for entry in listed:
        name, _, rest = entry.key.removeprefix(MODELS).partition("/")
        if (digest := digest_of_key(entry.key)) and "/" not in rest:
            found.setdefault(name, []).append(Release(ModelRef(name, digest), entry.modified))
    for releases in found.values():
        releases.sort(key=lambda release: (release.pushed_at, release.ref.digest), reverse=True)
    return found


def no_such_model(name: str, bucket: str, there: Sequence[str]) -> str:
    """Return what to tell who asked for a model that is not there."""
    lines = [f"no model {name!r} in bucket {bucket!r}"]
    if near := difflib.get_close_matches(name, there, n=1):
        lines[0] += f"; did you mean {near[0]!r}?"
    lines.append(f"  models there: {', '.join(there)}" if there else "  the bucket holds no model yet")
    lines.append(f"  to put it there: gpu models push <folder> --as {name}")
    return "\n".join(lines)
