"""The tags of a model: names that move from release to release, in one object that is changed by compare-and-swap.

What servers do with the condition of a conditional PUT: SeaweedFS 4.48 honours `If-Match` (quotes or none) and
`If-None-Match: *`, versioned or not (tried). Ceph, and with it Hetzner, is told to take `If-Match` without quotes
alone, and none at all on versioned buckets; others ignore it. So nothing is believed: each change finds out.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from dynamic_providers.errors import StoreError
from dynamic_providers.store import failures
from dynamic_providers.store.manifest import MODELS, SHA256, TAG

if TYPE_CHECKING:
    from dynamic_providers.store.client import Store

LATEST = "latest"
FORMAT = 1
TRIES = 10
NO_ETAG = '"00000000000000000000000000000000"'
UNSAFE = (
    "this bucket's server cannot compare and swap: had somebody else changed the model's tags in this very moment, "
    "the last one would have won"
)

Change = Callable[[dict[str, str]], dict[str, str]]
"""Given tag → digest as they are, returns them as they should be; called again if somebody else was faster."""


@dataclass(frozen=True)
class Tags:
    """The tags as the bucket holds them.

    Attributes:
        digests: Tag → digest.
        etag: Of the object; None if there is none.
    """

    digests: Mapping[str, str] = field(default_factory=dict)
    etag: str | None = None

    def of(self, digest: str) -> list[str]:
        """Return the tags on one release, `latest` first."""
        return sorted(
            (tag for tag, found in self.digests.items() if found == digest), key=lambda tag: (tag != LATEST, tag)
        )


class _Swap(Enum):
    DONE = auto()
    UNGUARDED = auto()
    LOST = auto()


def tags_key(name: str) -> str:
    """Return the place of a model's tags in the bucket."""
    return f"{MODELS}{name}/tags.json"


def read_tags(store: Store, name: str) -> Tags:
    """Return the model's tags; none if it has none yet.

    Raises:
        StoreError: They are there and cannot be read.
    """
    with store.opened() as s3:
        try:
            answer = s3.get_object(Bucket=store.bucket, Key=tags_key(name))
        except s3.exceptions.NoSuchKey:
            return Tags()
        return Tags(parse_tags(answer["Body"].read(), f"bucket {store.bucket!r}: {tags_key(name)}"), answer["ETag"])


def change_tags(store: Store, name: str, change: Change) -> bool:
    """Change the model's tags; say whether nobody else's change can have been lost by it.

    Raises:
        StoreError: Somebody else changes them all the time, or the bucket says no.
    """
    for _ in range(TRIES):
        seen = read_tags(store, name)
        wanted = change(dict(seen.digests))
        if wanted == seen.digests:
            return True
        outcome = _swap(store, name, render_tags(wanted), seen.etag)
        if outcome is not _Swap.LOST:
            return outcome is _Swap.DONE
    raise StoreError(f"the tags of {name!r} are being changed by somebody else all the time: try again")


def parse_tags(data: bytes, where: str) -> dict[str, str]:
    """Read the object's bytes.

    Raises:
        StoreError: They are no tags; names *where*.
    """
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    tags = value.get("tags") if isinstance(value, dict) and value.get("format") == FORMAT else None
    if not isinstance(tags, dict) or not all(
        TAG.fullmatch(tag) and isinstance(digest, str) and SHA256.fullmatch(digest) for tag, digest in tags.items()
    ):
        raise StoreError(
            f"{where}: no tags, or of a later version. Remove this object and tag the releases anew "
            f"(gpu models tag), or name a release by its digest"
        )
    return tags


def render_tags(tags: Mapping[str, str]) -> bytes:
    """Return the object's bytes."""
    return json.dumps({"format": FORMAT, "tags": dict(tags)}, indent=1, sort_keys=True).encode()


def no_such_tag(name: str, tag: str, tags: Mapping[str, str]) -> str:
    """Return what to tell who asked for a tag that is not there."""
    lines = [f"model {name!r} has no tag {tag!r}"]
    if near := difflib.get_close_matches(tag, tags, n=1):
        lines[0] += f"; did you mean {near[0]!r}?"
    lines += [f"  {name}:{other} is {name}@sha256:{digest}" for other, digest in sorted(tags.items())]
    lines.append(f"  to make it: gpu models tag {name} {tag}")
    return "\n".join(lines)


def _swap(store: Store, name: str, data: bytes, etag: str | None) -> _Swap:
    # A condition that never holds goes first: a server that ignores conditions takes it, and so gives itself away.
    if _put(store, name, data, IfMatch=NO_ETAG):
        return _Swap.UNGUARDED
    conditions = [{"IfNoneMatch": "*"}] if etag is None else [{"IfMatch": etag}, {"IfMatch": etag.strip('"')}]
    if any(_put(store, name, data, **condition) for condition in conditions):
        return _Swap.DONE
    if read_tags(store, name).etag != etag:
        return _Swap.LOST
    _put(store, name, data)  # it refuses conditions, those that hold as well
    return _Swap.UNGUARDED


def _put(store: Store, name: str, data: bytes, **condition: str) -> bool:
    """Write the object; say whether the server took it. Without a condition, a refusal is an error."""
    with store.opened() as s3:
        try:
            s3.put_object(
                Bucket=store.bucket,
                Key=tags_key(name),
                Body=data,
                ContentType="application/json",
                **condition,  # type: ignore[arg-type]  # the stubs want each word by itself
            )
        except s3.exceptions.ClientError as error:
            # 404: nothing there to match; 409: another change at once; 412: does not hold; 501: knows no conditions.
            if not condition or failures.status_of(error) not in (404, 409, 412, 501):
                raise
            if failures.code_of(error) == "NoSuchBucket":
                raise
            return False
        return True
