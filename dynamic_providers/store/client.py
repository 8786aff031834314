"""The bucket: releases of models and the blobs that they are made of, over the S3 protocol."""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dynamic_providers.errors import StoreError
from dynamic_providers.store import failures
from dynamic_providers.store.access import AccessKeys, find_keys, open_session
from dynamic_providers.store.listing import Listed, Release, group_releases, no_such_model
from dynamic_providers.store.manifest import (
    MODELS,
    Manifest,
    ModelFile,
    ModelRef,
    blob_key,
    manifest_key,
)
from dynamic_providers.store.tags import LATEST, change_tags, no_such_tag, read_tags
from dynamic_providers.store.upload import PARALLEL, Count, Uploader, count_only_sent

if TYPE_CHECKING:  # boto3 takes a third of a second to import: only when a bucket is really used
    from mypy_boto3_s3 import S3Client

PROVIDER_DOMAIN = "your-objectstorage.com"
BUCKET_APPEARS_WITHIN = timedelta(seconds=30)
# A first answer, or the clear error that there is none, within about ten seconds; after it, patience.
FIRST_CONTACT = {"connect_timeout": 4, "read_timeout": 10, "retries": {"mode": "standard", "total_max_attempts": 2}}
PATIENT = {"connect_timeout": 10, "read_timeout": 60, "retries": {"mode": "adaptive", "total_max_attempts": 8}}

Style = Literal["path", "virtual"]
"""Where a URL names the bucket: in its path, or in the host's name."""


class Store:
    """One bucket.

    Nothing is asked of the network until a method needs it; the first request finds out, within seconds, whether
    the bucket can be reached at all.

    Args:
        bucket: Its name.
        location: Where it lies; makes the endpoint when none is given, and is the region that requests are signed for.
        endpoint: URL of the service; `AWS_ENDPOINT_URL_S3` of the environment comes before it.
        profile: Section of the AWS credentials file.
        keys: The last resort, after the environment and *profile*.
        reader: Keys that may only read, to sign with what a rented machine is given; the other ones if None.

    Raises:
        StoreError: There are no keys at all, or the endpoint is no URL.
    """

    def __init__(
        self,
        bucket: str,
        *,
        location: str = "fsn1",
        endpoint: str | None = None,
        profile: str | None = None,
        keys: AccessKeys | None = None,
        reader: AccessKeys | None = None,
    ) -> None:
        self.bucket = bucket
        self.location = location
        self.endpoint = (
            os.environ.get("AWS_ENDPOINT_URL_S3") or endpoint or f"https://{location}.{PROVIDER_DOMAIN}"
        ).rstrip("/")
        self.reader = reader
        self._keys = find_keys(profile, keys)
        self._contacted = False
        with self._explained():
            self._s3 = self._connect(PATIENT)
            count_only_sent(self._s3)

    # --- models

    def resolve(self, ref: ModelRef) -> Manifest:
        """Return the release that *ref* names, by its digest, its tag, or the tag `latest`.

        Raises:
            StoreError: No such model, tag or release, or it is not what its name says.
        """
        digest = ref.digest or self._tagged_digest(ref.name, ref.tag or LATEST)
        with self.opened() as s3:
            try:
                answer = s3.get_object(Bucket=self.bucket, Key=manifest_key(ref.name, digest))
            except s3.exceptions.NoSuchKey as error:
                raise StoreError(
                    f"no release sha256:{digest} of model {ref.name!r} in bucket {self.bucket!r}; "
                    f"those there: gpu models list {ref.name}"
                ) from error
            data = answer["Body"].read()
        try:
            manifest = Manifest.parse(data)
        except StoreError as error:
            raise StoreError(f"bucket {self.bucket!r}: {manifest_key(ref.name, digest)}: {error}") from error
        if (manifest.name, manifest.digest) != (ref.name, digest):
            raise StoreError(
                f"bucket {self.bucket!r}: {manifest_key(ref.name, digest)} holds another release than its name says "
                f"({manifest.ref}); push the model again"
            )
        return manifest

    def list_models(self) -> list[str]:
        """Return the names of the models in the bucket."""
        self._contact()
        with self._explained():
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=MODELS, Delimiter="/")
            prefixes = [entry.get("Prefix", "") for page in pages for entry in page.get("CommonPrefixes", [])]
        return sorted(prefix.removeprefix(MODELS).rstrip("/") for prefix in prefixes)

    def put_manifest(self, manifest: Manifest) -> bool:
        """Make *manifest* the release that its model's name alone stands for.

        Returns:
            Whether its server can compare and swap: see `tags.UNSAFE`.
        """
        with self.opened() as s3:
            s3.put_object(
                Bucket=self.bucket, Key=manifest.key, Body=manifest.to_bytes(), ContentType="application/json"
            )
        return change_tags(self, manifest.name, lambda tags: tags | {LATEST: manifest.digest})

    def releases(self, name: str) -> list[Release]:
        """Return the model's releases, the one pushed last first.

        Raises:
            StoreError: There is no such model.
        """
        found = self.all_releases(name).get(name)
        if not found:
            raise StoreError(no_such_model(name, self.bucket, self.list_models()))
        return found

    def all_releases(self, name: str | None = None) -> dict[str, list[Release]]:
        """Return the releases of each model, the one pushed last first; *name* looks for those of one model only."""
        return group_releases(self.list_objects(f"{MODELS}{name}/" if name else MODELS))

    def _tagged_digest(self, name: str, tag: str) -> str:
        tags = read_tags(self, name).digests
        if tag in tags:
            return tags[tag]
        newest = self.releases(name)[0].ref.digest
        if tag != LATEST or newest is None:
            raise StoreError(no_such_tag(name, tag, tags))
        return newest  # its bucket was filled when there were no tags yet

    # --- objects

    @contextlib.contextmanager
    def opened(self) -> Iterator["S3Client"]:
        """Lend boto3's client, once it is known to reach the bucket; what it raises becomes a StoreError.

        Raises:
            StoreError: What went wrong, and what to change.
        """
        self._contact()
        with self.s3() as s3:
            yield s3

    def list_objects(self, prefix: str) -> Iterator[Listed]:
        """Yield every object below *prefix*."""
        with self.opened() as s3:
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
                for entry in page.get("Contents", []):
                    yield Listed(entry["Key"], entry["Size"], entry["LastModified"])

    def delete_objects(self, keys: Iterable[str]) -> None:
        """Remove objects, one by one: for many at once servers ask for checksums, each for another one."""
        with ThreadPoolExecutor(PARALLEL) as pool:
            for _ in pool.map(self._delete, keys):
                pass

    def now(self) -> datetime:
        """Return the time by the server's clock, which dates the objects."""
        with self.opened() as s3:
            answer = s3.list_objects_v2(Bucket=self.bucket, MaxKeys=1)
            return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])

    def _delete(self, key: str) -> None:
        with self.opened() as s3:
            s3.delete_object(Bucket=self.bucket, Key=key)

    # --- blobs

    def has(self, sha256: str) -> bool:
        """Say whether the blob is there."""
        return self._blob_size(sha256) is not None

    def missing(self, files: Sequence[ModelFile]) -> list[ModelFile]:
        """Return those of *files* whose blob is not there, one for each content."""
        unique = list({file.sha256: file for file in files}.values())
        sizes = self.sizes([file.sha256 for file in unique])
        return [file for file, size in zip(unique, sizes, strict=True) if size != file.size]

    def sizes(self, blobs: Sequence[str]) -> list[int | None]:
        """Return the bytes of each blob; None for one that is not there."""
        self._contact()
        with ThreadPoolExecutor(PARALLEL) as pool:
            return list(pool.map(self._blob_size, blobs))

    def put_blob(self, path: Path, sha256: str, progress: Count = lambda _: None) -> None:
        """Send one file; see `upload.Uploader`."""
        with Uploader(self, progress) as uploader:
            uploader.send(path, sha256, path.stat().st_size)

    def delete_blob(self, sha256: str) -> None:
        """Remove a blob."""
        self._delete(blob_key(sha256))

    def _blob_size(self, sha256: str) -> int | None:
        self._contact()
        with self._explained():
            try:
                return self._s3.head_object(Bucket=self.bucket, Key=blob_key(sha256))["ContentLength"]
            except self._s3.exceptions.ClientError as error:
                if failures.status_of(error) == 404:
                    return None
                raise

    # --- bucket

    def ensure_bucket(self) -> bool:
        """Create the bucket if it is missing; say whether it was."""
        try:
            self._contact()
        except failures.NoSuchBucketError:
            with self._explained(), contextlib.suppress(self._s3.exceptions.BucketAlreadyOwnedByYou):
                # No LocationConstraint: the endpoint says where, and no other value is documented.
                self._s3.create_bucket(Bucket=self.bucket)
            self._wait_for_bucket()
            return True
        return False

    def _wait_for_bucket(self) -> None:
        """Wait until the new bucket is there for everybody: creation is eventually consistent at Hetzner."""
        deadline = time.monotonic() + BUCKET_APPEARS_WITHIN.total_seconds()
        while True:
            try:
                return self._contact()
            except failures.NoSuchBucketError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    # --- the connection

    @contextlib.contextmanager
    def s3(self) -> Iterator["S3Client"]:
        """Lend the client to who works on the bucket as such; what goes wrong is explained."""
        with self._explained():
            yield self._s3

    @property
    def access_key_id(self) -> str:
        """The name of the key in use; no secret."""
        if isinstance(self._keys, str):
            with self._explained():
                return str(self._session.get_credentials().access_key)
        return self._keys.access_key_id

    def _contact(self) -> None:
        """Find out once, quickly, whether the bucket can be used: with the patient client that takes a minute."""
        if self._contacted:
            return
        with self._explained():
            self._connect(FIRST_CONTACT).list_objects_v2(Bucket=self.bucket, MaxKeys=1)
        self._contacted = True

    @property
    def ca_bundle(self) -> str | None:
        """PEM file of the authorities that the service is verified against; None for those that everybody trusts."""
        return os.environ.get("AWS_CA_BUNDLE")

    def signer(self, signature: str, style: Style, keys: AccessKeys | None = None) -> "S3Client":
        """Return a client to sign URLs with, in one form and with *keys*, None for our own: see `presign.py`."""
        with self._explained():
            return self._connect(PATIENT, signature=signature, style=style, keys=keys)

    def _connect(
        self,
        limits: dict[str, Any],
        *,
        signature: str = "s3v4",
        style: Style = "path",
        keys: AccessKeys | None = None,
    ) -> "S3Client":
        from botocore.config import Config

        config = Config(
            signature_version=signature,
            region_name=self.location,
            # boto3's own checksums are refused by Hetzner (XAmzContentSHA256Mismatch, since boto3 1.36).
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            # A signed payload is the checksum that every S3 service checks.
            s3={"addressing_style": style, "payload_signing_enabled": True},
            max_pool_connections=4 * PARALLEL,
            **limits,
        )
        session = open_session(keys) if keys else self._session
        client: S3Client = session.client("s3", endpoint_url=self.endpoint, config=config)
        return client

    @cached_property
    def _session(self) -> Any:
        return open_session(self._keys)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what boto3 raises into a message that says what to change."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (Boto3Error, BotoCoreError, ClientError, OSError, ValueError) as error:
            source = f"profile {self._keys!r}" if isinstance(self._keys, str) else self._keys.source
            raise failures.explain(error, bucket=self.bucket, endpoint=self.endpoint, keys=source) from error
