"""The bucket: releases of models and the blobs that they are made of, over the S3 protocol."""

import contextlib
import difflib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamic_providers.errors import StoreError
from dynamic_providers.store import failures
from dynamic_providers.store.manifest import MODELS, Manifest, ModelFile, ModelRef, digest_of_key, manifest_key

if TYPE_CHECKING:  # boto3 takes a third of a second to import: only when a bucket is really used
    from mypy_boto3_s3 import S3Client

PROVIDER_DOMAIN = "your-objectstorage.com"
PRESIGN_LIMIT = timedelta(days=7)  # of signature version 4; the server enforces it
PART_BYTES = 64 * 2**20  # 10,000 parts at most, so files up to 625 GiB; few enough requests for 750/s a bucket
PARALLEL = 8  # of 256 sessions that one address may hold
BUCKET_APPEARS_WITHIN = timedelta(seconds=30)
# A first answer, or the clear error that there is none, within about ten seconds; after it, patience.
FIRST_CONTACT = {"connect_timeout": 4, "read_timeout": 10, "retries": {"mode": "standard", "total_max_attempts": 2}}
PATIENT = {"connect_timeout": 10, "read_timeout": 60, "retries": {"mode": "adaptive", "total_max_attempts": 8}}


@dataclass(frozen=True)
class AccessKeys:
    """A pair of keys for the bucket, and where they came from, for messages."""

    access_key_id: str
    secret_access_key: str
    source: str = "the stack's settings"
    session_token: str | None = None


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
    ) -> None:
        self.bucket = bucket
        self.location = location
        self.endpoint = (
            os.environ.get("AWS_ENDPOINT_URL_S3") or endpoint or f"https://{location}.{PROVIDER_DOMAIN}"
        ).rstrip("/")
        self._keys = find_keys(profile, keys)
        self._contacted = False
        with self._explained():
            self._s3 = self._connect(PATIENT)

    # --- models

    def resolve(self, ref: ModelRef) -> Manifest:
        """Return the release that *ref* names: the one pushed last, or exactly the one with its digest.

        Raises:
            StoreError: No such model or release, or its bytes are not what its name says.
        """
        self._contact()
        digest = ref.digest or self._newest_digest(ref.name)
        with self._explained():
            try:
                answer = self._s3.get_object(Bucket=self.bucket, Key=manifest_key(ref.name, digest))
            except self._s3.exceptions.NoSuchKey as error:
                raise StoreError(
                    f"no release sha256:{digest} of model {ref.name!r} in bucket {self.bucket!r}; "
                    f"write the name alone for the release pushed last"
                ) from error
            data = answer["Body"].read()
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise StoreError(
                f"bucket {self.bucket!r}: {manifest_key(ref.name, digest)} holds other bytes than its name says "
                f"(sha256 {found}); push the model again"
            )
        manifest = Manifest.parse(data)
        if manifest.name != ref.name:
            raise StoreError(f"bucket {self.bucket!r}: {manifest_key(ref.name, digest)} is of model {manifest.name!r}")
        return manifest

    def list_models(self) -> list[str]:
        """Return the names of the models in the bucket."""
        self._contact()
        with self._explained():
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=MODELS, Delimiter="/")
            prefixes = [entry.get("Prefix", "") for page in pages for entry in page.get("CommonPrefixes", [])]
        return sorted(prefix.removeprefix(MODELS).rstrip("/") for prefix in prefixes)

    def put_manifest(self, manifest: Manifest) -> None:
        """Make *manifest* the release pushed last, also if it was there before."""
        self._contact()
        for _ in range(3):
            with self._explained():
                self._s3.put_object(
                    Bucket=self.bucket, Key=manifest.key, Body=manifest.to_bytes(), ContentType="application/json"
                )
            if self._newest_digest(manifest.name) == manifest.digest:
                return
            time.sleep(1.1)  # S3 dates objects by the second: another release was pushed in this very one

    def _newest_digest(self, name: str) -> str:
        with self._explained():
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"{MODELS}{name}/")
            releases = [
                (entry["LastModified"], digest)
                for page in pages
                for entry in page.get("Contents", [])
                if (digest := digest_of_key(entry["Key"]))
            ]
        if not releases:
            raise StoreError(self._no_such_model(name))
        return max(releases)[1]

    def _no_such_model(self, name: str) -> str:
        there = self.list_models()
        lines = [f"no model {name!r} in bucket {self.bucket!r}"]
        if near := difflib.get_close_matches(name, there, n=1):
            lines[0] += f"; did you mean {near[0]!r}?"
        lines.append(f"  models there: {', '.join(there)}" if there else "  the bucket holds no model yet")
        lines.append(f"  to put it there: gpu models push <folder> --as {name}")
        return "\n".join(lines)

    # --- blobs

    def has(self, sha256: str) -> bool:
        """Say whether the blob is there."""
        return self._blob_size(sha256) is not None

    def missing(self, files: Sequence[ModelFile]) -> list[ModelFile]:
        """Return those of *files* whose blob is not there, one for each content."""
        self._contact()
        unique = list({file.sha256: file for file in files}.values())
        with ThreadPoolExecutor(PARALLEL) as pool:
            sizes = list(pool.map(self._blob_size, [file.sha256 for file in unique]))
        return [file for file, size in zip(unique, sizes, strict=True) if size != file.size]

    def presign(self, sha256: str, expires: timedelta) -> str:
        """Return a URL that reads this one blob, and nothing else, until it expires (7 days at most)."""
        with self._explained():
            return self._s3.generate_presigned_url(
                "get_object",
                Params={"Bucket": self.bucket, "Key": blob_key(sha256)},
                ExpiresIn=int(min(expires, PRESIGN_LIMIT).total_seconds()),
            )

    def put_blob(self, path: Path, sha256: str, progress: Callable[[int], None] | None = None) -> None:
        """Upload a file, in parallel parts if it is big.

        Args:
            path: The file; must not change meanwhile.
            sha256: Of its contents.
            progress: Called with the bytes sent since the last call, from several threads.
        """
        self._contact()
        with self._explained():
            self._s3.upload_file(
                str(path), self.bucket, blob_key(sha256), Callback=progress, Config=self._transfer_config
            )

    def delete_blob(self, sha256: str) -> None:
        """Remove a blob."""
        self._contact()
        with self._explained():
            self._s3.delete_object(Bucket=self.bucket, Key=blob_key(sha256))

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

    def _contact(self) -> None:
        """Find out once, quickly, whether the bucket can be used: with the patient client that takes a minute."""
        if self._contacted:
            return
        with self._explained():
            self._connect(FIRST_CONTACT).list_objects_v2(Bucket=self.bucket, MaxKeys=1)
        self._contacted = True

    def _connect(self, limits: dict[str, Any]) -> "S3Client":
        from botocore.config import Config

        config = Config(
            signature_version="s3v4",
            region_name=self.location,
            # boto3's own checksums are refused by Hetzner (XAmzContentSHA256Mismatch, since boto3 1.36).
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            # A signed payload is the checksum that every S3 service checks.
            s3={"addressing_style": "path", "payload_signing_enabled": True},
            max_pool_connections=4 * PARALLEL,
            **limits,
        )
        client: S3Client = self._session.client("s3", endpoint_url=self.endpoint, config=config)
        return client

    @cached_property
    def _session(self) -> Any:
        import boto3
        from botocore.session import Session

        from dynamic_providers.store.loader import SlimLoader

        session = Session(profile=self._keys if isinstance(self._keys, str) else None)
        session.register_component("data_loader", SlimLoader(include_default_search_paths=True))
        if not isinstance(self._keys, str):
            session.set_credentials(
                self._keys.access_key_id, self._keys.secret_access_key, token=self._keys.session_token
            )
        return boto3.Session(botocore_session=session)

    @cached_property
    def _transfer_config(self) -> Any:
        from boto3.s3.transfer import TransferConfig

        return TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=PARALLEL)

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


def blob_key(sha256: str) -> str:
    """Return the place of a content in the bucket."""
    return f"blobs/sha256/{sha256}"


def find_keys(profile: str | None = None, keys: AccessKeys | None = None) -> AccessKeys | str:
    """Return the keys to use, or the name of the profile that holds them: environment, *profile*, *keys*.

    Raises:
        StoreError: There are none.
    """
    access, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if access and secret:
        return AccessKeys(access, secret, "AWS_ACCESS_KEY_ID", os.environ.get("AWS_SESSION_TOKEN"))
    if access or secret:
        lacking = "AWS_SECRET_ACCESS_KEY" if access else "AWS_ACCESS_KEY_ID"
        raise StoreError(f"{lacking} is not set, but the other one of the pair is: set both, or neither")
    found = profile or os.environ.get("AWS_PROFILE") or keys
    if found is None:
        raise StoreError(
            "no keys for the bucket. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (Hetzner Console: project, "
            "Security, S3 credentials),\n  or name a profile of the AWS credentials file as `store.profile`, or put "
            "them into the stack:\n  pulumi config set --secret s3_access_key_id … and s3_secret_access_key …"
        )
    return found
