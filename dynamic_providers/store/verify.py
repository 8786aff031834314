"""Reading a release back from the bucket and comparing every byte with what its manifest says."""

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from dynamic_providers.store.client import Store
from dynamic_providers.store.manifest import Manifest, ModelFile, blob_key
from dynamic_providers.store.transfer import Counter, Report
from dynamic_providers.store.upload import PARALLEL

RANGE_BYTES = 8 * 2**20
"""Of one request. So many of them as run in parallel lie in memory."""


@dataclass(frozen=True)
class Damage:
    """A file of a release that is not in the bucket as its manifest says."""

    file: ModelFile
    reason: str
    is_there: bool = True


def verify(store: Store, manifest: Manifest, report: Report) -> list[Damage]:
    """Return what is wrong with a release; nothing if a machine would get it as it was pushed.

    Raises:
        StoreError: The bucket cannot be read.
    """
    files = list({file.sha256: file for file in manifest.files}.values())
    sizes = dict(zip(files, store.sizes([file.sha256 for file in files]), strict=True))
    damages = [Damage(file, "is not there", is_there=False) for file in files if sizes[file] is None]
    damages += [
        Damage(file, f"has {size} bytes instead of {file.size}")
        for file, size in sizes.items()
        if size is not None and size != file.size
    ]
    whole = [file for file in files if sizes[file] == file.size]
    count = Counter(report, "verify", sum(file.size for file in whole))
    digests = {file: hashlib.sha256() for file in whole}
    for file, data in _read(store, whole):
        digests[file].update(data)
        count(len(data))
    found = {file: digest.hexdigest() for file, digest in digests.items()}
    damages += [Damage(file, f"has other bytes: sha256 {was}") for file, was in found.items() if was != file.sha256]
    return sorted(damages, key=lambda damage: damage.file.path)


def _read(store: Store, files: list[ModelFile]) -> Iterator[tuple[ModelFile, bytes]]:
    """Yield the contents of *files* in order, several ranges ahead of who hashes them."""
    ahead: deque[tuple[ModelFile, Future[bytes]]] = deque()
    with ThreadPoolExecutor(PARALLEL, "verify") as pool:
        try:
            for file in files:
                for start in range(0, file.size, RANGE_BYTES):
                    end = min(start + RANGE_BYTES, file.size)
                    ahead.append((file, pool.submit(_read_range, store, file.sha256, start, end)))
                    if len(ahead) > PARALLEL:
                        first, data = ahead.popleft()
                        yield first, data.result()
            while ahead:
                first, data = ahead.popleft()
                yield first, data.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _read_range(store: Store, sha256: str, start: int, end: int) -> bytes:
    with store.opened() as s3:
        answer = s3.get_object(Bucket=store.bucket, Key=blob_key(sha256), Range=f"bytes={start}-{end - 1}")
        return answer["Body"].read()
