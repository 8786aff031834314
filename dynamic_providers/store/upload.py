"""Sending files into the bucket in parallel parts, going on after any interruption where the last run ended.

What has arrived is asked of the server and nowhere written down here: an upload in parts stays open there until it
is completed or cleared away, and each part that it holds is compared with the file before it is believed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from dynamic_providers.errors import StoreError
from dynamic_providers.store import failures
from dynamic_providers.store.manifest import blob_key

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, MultipartUploadTypeDef

    from dynamic_providers.store.client import Store

PART_BYTES = 16 * 2**20  # what is in flight when a push is killed is sent again: little of it
PARTS_AT_MOST = 10_000
PARALLEL = 8  # of 256 sessions that one address may hold
FILES_AT_ONCE = 4
READ_BYTES = 2**20

Count = Callable[[int], None]
"""Told how many bytes more have been sent; less than none when some must be sent again. From several threads."""


class BrokenOff(BaseException):
    """Nobody waits for this part any more: another one failed, or somebody pressed Ctrl-C.

    No `Exception`: boto3 would try again.
    """


class Uploader:
    """Sends files until its block ends; then all have arrived, or the first error is raised.

    Args:
        store: Where to.
        count: Told the progress.
    """

    def __init__(self, store: Store, count: Count) -> None:
        self._store = store
        self._count = count
        self._stop = Event()
        self._files = ThreadPoolExecutor(FILES_AT_ONCE, "upload-file")
        self._parts = ThreadPoolExecutor(PARALLEL, "upload-part")
        self._sent: list[Future[None]] = []
        self._failures: list[BaseException] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                wait(self._sent)
        finally:
            self._stop.set()
            self._files.shutdown(cancel_futures=True)
            self._parts.shutdown(cancel_futures=True)
        if error is None:
            self._raise_failure()

    def send(self, path: Path, sha256: str, size: int) -> None:
        """Begin to send a file of so many bytes; it must not change meanwhile.

        Raises:
            StoreError: An earlier one has failed.
        """
        self._raise_failure()
        self._sent.append(self._files.submit(self._send, path, sha256, size))

    def _raise_failure(self) -> None:
        if self._failures:
            raise self._failures[0]

    def _send(self, path: Path, sha256: str, size: int) -> None:
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != size:
                    raise StoreError(f"{path} changed while it was being pushed: push again when it is at rest")
                if size <= PART_BYTES:
                    self._parts.submit(self._put, file.fileno(), size, sha256).result()
                else:
                    self._send_parts(file.fileno(), size, sha256)
        except BrokenOff:
            return
        except OSError as error:
            self._fail(StoreError(f"{path}: {error.strerror}"))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._failures.append(error)  # the first of them counts; what follows from it comes later
        self._stop.set()

    def _put(self, descriptor: int, size: int, sha256: str) -> None:
        with self._store.opened() as s3, Slice(descriptor, 0, size, self._count, self._stop) as body:
            s3.put_object(Bucket=self._store.bucket, Key=blob_key(sha256), Body=body)

    def _send_parts(self, descriptor: int, size: int, sha256: str) -> None:
        key, bucket = blob_key(sha256), self._store.bucket
        length = part_length(size)
        with self._store.opened() as s3:
            upload_id, there, others = _open_upload(s3, bucket, key)
        jobs = []
        for number, offset in enumerate(range(0, size, length), start=1):
            part = Slice(descriptor, offset, min(length, size - offset), self._count, self._stop)
            jobs.append(self._parts.submit(self._send_part, key, upload_id, number, part, there.get(number)))
        try:
            parts: list[CompletedPartTypeDef] = [
                {"PartNumber": number, "ETag": job.result()} for number, job in enumerate(jobs, start=1)
            ]
            with self._store.opened() as s3:
                s3.complete_multipart_upload(
                    Bucket=bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": parts}
                )
                for other in others:
                    s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=other)
        except failures.NoSuchUploadError:
            if not self._store.has(sha256):
                raise
            # Another push of the same file has completed it, and cleared ours away.

    def _send_part(self, key: str, upload_id: str, number: int, part: Slice, there: tuple[int, str] | None) -> str:
        """Return the ETag of a part, sent only if the server does not hold it."""
        if there is not None and there[0] == len(part) and there[1].strip('"') == part.md5():
            self._count(len(part))
            return there[1]
        with self._store.opened() as s3, part as body:
            sent = s3.upload_part(Bucket=self._store.bucket, Key=key, UploadId=upload_id, PartNumber=number, Body=body)
        return sent["ETag"]


class Slice:
    """A part of a file, as boto3 takes it for a body: read anew from the start for every try.

    Args:
        descriptor: The open file.
        offset: Where the part begins.
        size: Its bytes.
        count: Told what is sent; not what is read to be signed.
        stop: Set when nobody waits for it any more.
    """

    def __init__(self, descriptor: int, offset: int, size: int, count: Count, stop: Event) -> None:
        self._descriptor, self._offset, self._size = descriptor, offset, size
        self._count, self._stop = count, stop
        self._at = self._counted = 0
        self.is_signed = False

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            self._count(-self._counted)

    def __len__(self) -> int:
        return self._size

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes. More than asked for: http.client asks for 16 kB, a hundred thousand times a part."""
        if self._stop.is_set():
            raise BrokenOff
        data = os.pread(self._descriptor, min(READ_BYTES, self._size - self._at), self._offset + self._at)
        self._at += len(data)
        if self.is_signed:
            self._counted += len(data)
            self._count(len(data))
        return data

    def tell(self) -> int:
        """Return how much has been read."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place; what was sent from there on will be sent again."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = base + offset
        if self._counted > self._at:
            self._count(self._at - self._counted)
            self._counted = self._at
        return self._at

    def md5(self) -> str:
        """Return the md5 of its bytes, hex: what a server calls a part by. No guard against anybody."""
        digest = hashlib.md5(usedforsecurity=False)
        for at in range(0, self._size, READ_BYTES):
            if self._stop.is_set():
                raise BrokenOff
            digest.update(os.pread(self._descriptor, min(READ_BYTES, self._size - at), self._offset + at))
        return digest.hexdigest()


def part_length(size: int) -> int:
    """Return the bytes of each part of a file: the same in every run, or nothing would be found again."""
    least = -(-size // PARTS_AT_MOST)
    return max(PART_BYTES, -(-least // READ_BYTES) * READ_BYTES)


def count_only_sent(s3: S3Client) -> None:
    """Tell each Slice when it has been read for its signature, and what is read from now on is sent."""

    def mark(is_signed: bool) -> Callable[..., None]:
        def handle(request: Any, **_: object) -> None:
            if isinstance(request.body, Slice):
                request.body.is_signed = is_signed

        return handle

    s3.meta.events.register_first("request-created.s3", mark(False))
    s3.meta.events.register_last("request-created.s3", mark(True))


def open_uploads(s3: S3Client, bucket: str, prefix: str) -> Iterator[MultipartUploadTypeDef]:
    """Yield the uploads in parts below *prefix* that are not completed."""
    for page in s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
        yield from page.get("Uploads", [])


def _open_upload(s3: S3Client, bucket: str, key: str) -> tuple[str, dict[int, tuple[int, str]], list[str]]:
    """Return an upload of *key*, its parts (number → size, ETag), and other uploads of the same.

    It is the one that has most of it, or a new one.
    """
    found: dict[str, dict[int, tuple[int, str]]] = {}
    for upload in open_uploads(s3, bucket, key):
        pages = s3.get_paginator("list_parts").paginate(Bucket=bucket, Key=key, UploadId=upload["UploadId"])
        found[upload["UploadId"]] = {
            part["PartNumber"]: (part["Size"], part["ETag"]) for page in pages for part in page.get("Parts", [])
        }
    if not found:
        return s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"], {}, []
    best = max(found, key=lambda upload_id: len(found[upload_id]))
    return best, found[best], [upload_id for upload_id in found if upload_id != best]
