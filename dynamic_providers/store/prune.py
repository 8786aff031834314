"""What of the bucket nobody names any more: first a plan, to be shown; then the deed."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from dynamic_providers.store.binaries import CADDY, VMAGENT
from dynamic_providers.store.client import Store
from dynamic_providers.store.listing import Release
from dynamic_providers.store.manifest import BLOBS, ModelRef, manifest_key
from dynamic_providers.store.tags import read_tags
from dynamic_providers.store.upload import PARALLEL, open_uploads

YOUNG = timedelta(hours=24)
"""A blob of this age may belong to a push that still runs and has not named it yet."""


@dataclass(frozen=True)
class Plan:
    """What a prune removes.

    Attributes:
        releases: Neither tagged nor among the newest of their model.
        blobs: Key → bytes; of no release that stays.
        uploads: Parts of uploads that nobody goes on with: key and id.
        spared_bytes: Of blobs that nobody names, but which are too young to tell.
    """

    releases: tuple[ModelRef, ...]
    blobs: Mapping[str, int]
    uploads: tuple[tuple[str, str], ...]
    spared_bytes: int

    @property
    def freed_bytes(self) -> int:
        """What the bucket will be smaller by, unfinished uploads aside."""
        return sum(self.blobs.values())

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to remove."""
        return not (self.releases or self.blobs or self.uploads)


def plan_prune(store: Store, keep: int) -> Plan:
    """Return what can go when each model keeps its tagged releases and its *keep* newest ones.

    References are counted over all models: a blob that any release names stays.

    Raises:
        StoreError: The bucket cannot be read whole; then nothing can be said.
    """
    blobs = {listed.key.removeprefix(BLOBS): listed for listed in store.list_objects(BLOBS)}
    # Manifests are listed after the blobs: what a push names meanwhile is seen here.
    models = store.all_releases().values()
    going = {release.ref for releases in models for release in _old(store, releases, keep)}
    named = _named(store, [release.ref for releases in models for release in releases if release.ref not in going])
    limit = store.now() - YOUNG
    unnamed = [listed for sha256, listed in blobs.items() if sha256 not in named]
    old = {listed.key: listed.size for listed in unnamed if listed.modified < limit}
    with store.opened() as s3:
        uploads = [
            (up["Key"], up["UploadId"]) for up in open_uploads(s3, store.bucket, BLOBS) if up["Initiated"] < limit
        ]
    spared = sum(listed.size for listed in unnamed if listed.key not in old)
    return Plan(tuple(sorted(going, key=str)), old, tuple(uploads), spared)


def prune(store: Store, plan: Plan) -> None:
    """Do what *plan* says, but for what somebody has come to need since.

    Raises:
        StoreError: The bucket says no; what was not removed is found by the next plan.
    """
    tagged = {name: read_tags(store, name).digests.values() for name in {ref.name for ref in plan.releases}}
    going = [ref for ref in plan.releases if ref.digest not in tagged[ref.name]]
    # Releases first: broken off in between, no release is left without its blobs.
    store.delete_objects(manifest_key(ref.name, str(ref.digest)) for ref in going)
    named = _named(store, [release.ref for found in store.all_releases().values() for release in found])
    store.delete_objects(key for key in plan.blobs if key.removeprefix(BLOBS) not in named)
    with store.opened() as s3:
        for key, upload_id in plan.uploads:
            with suppress(s3.exceptions.NoSuchUpload):  # somebody has completed it
                s3.abort_multipart_upload(Bucket=store.bucket, Key=key, UploadId=upload_id)


def _old(store: Store, releases: Sequence[Release], keep: int) -> list[Release]:
    """Return those of a model's releases, the newest first, that are neither tagged nor among the newest."""
    tagged = read_tags(store, releases[0].ref.name).digests.values()
    return [release for release in releases[keep:] if release.ref.digest not in tagged]


def _named(store: Store, refs: Sequence[ModelRef]) -> set[str]:
    """Return the sha256 of all that these releases and the project's own programs are made of."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        manifests = list(pool.map(store.resolve, refs))
    return {file.sha256 for manifest in manifests for file in manifest.files} | {pin.sha256 for pin in (CADDY, VMAGENT)}
