"""Start-up caches in the bucket: what an engine compiled on one machine, for that same machine alone.

caches/<machine>/<hash>.tar.gz   as the machine sent it
caches/<machine>/<hash>.json     how it must look: written by us, from what the machine reported over SSH before it got
                                 the right to send; whatever else is found there is neither handed out nor unpacked

A compile cache is executed. What one stranger wrote is therefore only ever given back to him.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass

from dynamic_providers.errors import StoreError
from dynamic_providers.store import failures
from dynamic_providers.store.client import Store

PREFIX = "caches/"
FORMAT = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class CacheKey:
    """What a compile cache depends on.

    Attributes:
        machine_id: The market's word for the physical machine, not the machine's own.
        image: Digest or tag.
        gpu: Name and count.
        compiled: Hash of model, flags and whatever else of the request decides what is compiled.
    """

    machine_id: int
    image: str
    gpu: str
    compiled: str

    @property
    def path(self) -> str:
        """Where it lies, without a suffix."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{PREFIX}{self.machine_id}/{digest}"

    @property
    def archive(self) -> str:
        """The object that the machine reads and writes."""
        return f"{self.path}.tar.gz"

    @property
    def record(self) -> str:
        """The object that only we do."""
        return f"{self.path}.json"


class SpoiltCacheError(StoreError):
    """What is there is not what was kept."""


@dataclass(frozen=True)
class Kept:
    """An archive in the bucket, as it was reported when it was sent.

    Attributes:
        etag: The service's own mark of the contents, without quotes.
    """

    size: int
    sha256: str
    etag: str


def find_cache(store: Store, key: CacheKey) -> Kept | None:
    """Return what is kept for a machine, None if there is nothing.

    Raises:
        SpoiltCacheError: It is not what was kept: whoever could write it once may have written something else, even
            a copy of an object that is none of his business.
        StoreError: The bucket says no.
    """
    with store.opened() as s3:
        try:
            data = s3.get_object(Bucket=store.bucket, Key=key.record)["Body"].read()
        except s3.exceptions.NoSuchKey:
            return None
    kept = _parse(data, key)
    if kept is None or _look(store, key) != (kept.size, kept.etag):
        raise SpoiltCacheError("what lies in the bucket is not what was kept")
    return kept


def keep_cache(store: Store, key: CacheKey, kept: Kept) -> None:
    """Write down what a machine has just sent, once it is there.

    Raises:
        SpoiltCacheError: Something else is there.
        StoreError: The bucket says no.
    """
    found = _look(store, key)
    if found != (kept.size, kept.etag):
        raise SpoiltCacheError("what was sent is not what was announced")
    value = {"format": FORMAT, "key": asdict(key), **asdict(kept)}
    body = json.dumps(value, indent=1, sort_keys=True).encode()
    with store.opened() as s3:
        s3.put_object(Bucket=store.bucket, Key=key.record, Body=body, ContentType="application/json")


def drop_cache(store: Store, key: CacheKey) -> None:
    """Remove what is kept for a machine, the record first: without it the archive is nothing.

    Raises:
        StoreError: The bucket says no.
    """
    with store.opened() as s3:
        for path in (key.record, key.archive):
            s3.delete_object(Bucket=store.bucket, Key=path)


def _look(store: Store, key: CacheKey) -> tuple[int, str] | None:
    """Return size and ETag of the archive that is there."""
    with store.opened() as s3:
        try:
            found = s3.head_object(Bucket=store.bucket, Key=key.archive)
        except s3.exceptions.ClientError as error:
            if failures.status_of(error) == 404:
                return None
            raise
    return found["ContentLength"], found["ETag"].strip('"')


def _parse(data: bytes, key: CacheKey) -> Kept | None:
    try:
        value = json.loads(data)
        kept = Kept(value["size"], value["sha256"], value["etag"])
        is_ours = value["format"] == FORMAT and value["key"] == asdict(key)
    except (ValueError, KeyError, TypeError):
        return None
    if not is_ours or type(kept.size) is not int or kept.size <= 0 or not _SHA256.fullmatch(str(kept.sha256)):
        return None
    return kept
