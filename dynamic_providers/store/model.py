"""A model that a platform declares: pushed when its source has changed, tagged as asked. Knows nothing of Pulumi.

bring_about  push what is new, then move the tags
read         what of that is in the bucket now

What a platform no longer declares stays in the bucket with its tags, for stacks that name it: `gpu models tag --remove`
and `gpu models prune` are who takes away.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamic_providers.errors import StoreError
from dynamic_providers.store import hub
from dynamic_providers.store.client import Store
from dynamic_providers.store.folder import find_files
from dynamic_providers.store.manifest import Manifest, ModelRef
from dynamic_providers.store.tags import UNSAFE, change_tags, read_tags
from dynamic_providers.store.transfer import Report, Tell, push_folder

TELL_SECONDS = 15.0
WORDS = {"hash": "read", "upload": "sent", "download": "downloaded"}


@dataclass(frozen=True)
class ModelTerms:
    """What a platform asks of a model.

    Attributes:
        name: Its name in the bucket.
        source: As the stack file says it: a folder, or a model of the hub.
        folder: Where that folder is on this machine; None for a model of the hub.
        tags: To stand on its release, beside `latest`.
        allow: What of `manifest.ALLOWED` may be in it.
        fingerprint: Tells cheaply whether the source has changed; None if it cannot be seen from here.
    """

    name: str
    source: str
    folder: str | None = None
    tags: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    fingerprint: str | None = None

    @classmethod
    def from_props(cls, props: Mapping[str, Any]) -> "ModelTerms":
        """Read the inputs of a Model."""
        return cls(
            name=props["name"],
            source=props["source"],
            folder=props.get("folder"),
            tags=tuple(props.get("tags") or ()),
            allow=tuple(props.get("allow") or ()),
            fingerprint=props.get("fingerprint"),
        )


def take_fingerprint(source: str, folder: Path | None) -> str | None:
    """Return what changes when a source does, without reading it: names, sizes and times of its files.

    A moving revision of the hub is no change: the next push that has another reason takes what it names then.
    """
    if folder is None:
        return hashlib.sha256(source.encode()).hexdigest()
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path, file in sorted(find_files(folder).items()):
        found = file.stat()
        digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def is_new(olds: Mapping[str, Any], terms: ModelTerms) -> bool:
    """Say whether the source must be pushed: another one, changed, or allowed something else."""
    was = ModelTerms.from_props(olds)
    is_seen = terms.fingerprint is not None  # who cannot see the folder knows of no change
    return was.source != terms.source or was.allow != terms.allow or (is_seen and was.fingerprint != terms.fingerprint)


def bring_about(
    store: Store, terms: ModelTerms, olds: Mapping[str, Any] | None, tell: Tell, check: Callable[[], None]
) -> dict[str, Any]:
    """Push the source if it is new, and put the tags on its release; return the outputs.

    Args:
        store: The bucket.
        terms: What is asked.
        olds: What the last run left; None if there was none.
        tell: Told how it goes.
        check: Raises when nobody waits for it any more.

    Raises:
        StoreError: The source is no model or not to be had, or the bucket says no.
    """
    if olds is None or is_new(olds, terms):
        manifest = _push(store, terms, tell, _Progress(terms.name, tell, check))
    else:
        manifest = store.resolve(ModelRef(terms.name, olds["digest"]))
    dropped = set((olds or {}).get("tags") or ()) - set(terms.tags)

    def change(tags: dict[str, str]) -> dict[str, str]:
        left = {tag: found for tag, found in tags.items() if tag not in dropped or found != (olds or {}).get("digest")}
        return left | dict.fromkeys(terms.tags, manifest.digest)

    if not change_tags(store, terms.name, change):
        tell(UNSAFE)
    # Who could not see the folder keeps what the last one saw.
    fingerprint = terms.fingerprint or (olds or {}).get("fingerprint")
    return {
        "digest": manifest.digest,
        "release": str(manifest.ref),
        "size_bytes": manifest.bytes_total,
        "fingerprint": fingerprint,
    }


def read(store: Store, terms: ModelTerms, digest: str) -> dict[str, Any] | None:
    """Return the outputs as the bucket has them; None if the release is gone."""
    releases = store.all_releases(terms.name).get(terms.name, [])
    if digest not in [release.ref.digest for release in releases]:
        return None
    known = read_tags(store, terms.name).digests
    return {"tags": [tag for tag in terms.tags if known.get(tag) == digest]}


def _push(store: Store, terms: ModelTerms, tell: Tell, report: Report) -> Manifest:
    if terms.folder is None:
        found = hub.download(hub.HubRef.parse(terms.source), report, terms.allow)
        return push_folder(store, found.folder, terms.name, report, source=str(found.ref), tell=tell)
    folder = Path(terms.folder)
    if not folder.is_dir():
        raise StoreError(f"model {terms.name}: {folder} is no folder on this machine; correct `source`")
    return push_folder(store, folder, terms.name, report, allowed=terms.allow, tell=tell)


class _Progress:
    """Tells now and then how far a push is, and breaks it off when nobody waits for it."""

    def __init__(self, name: str, tell: Tell, check: Callable[[], None]) -> None:
        self._name, self._tell, self._check = name, tell, check
        self._told = time.monotonic()

    def __call__(self, phase: str, done: int, total: int) -> None:
        self._check()
        now = time.monotonic()
        if done and now - self._told >= TELL_SECONDS:
            self._told = now
            self._tell(f"{self._name}: {WORDS[phase]} {done / 1e9:.2f} of {total / 1e9:.2f} GB")
