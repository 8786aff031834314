"""Putting a folder with a model into the bucket: only what is not there yet, and the manifest last of all."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from dynamic_providers.errors import StoreError
from dynamic_providers.store.client import Store
from dynamic_providers.store.folder import ModelFolder, read_folder
from dynamic_providers.store.manifest import Manifest, ModelFile
from dynamic_providers.store.tags import UNSAFE
from dynamic_providers.store.upload import Uploader

CHUNK_BYTES = 4 * 2**20
HASHERS = 2  # the line is slower than the disk, and the other cores are the operator's

Report = Callable[[str, int, int], None]
"""Told (phase, bytes done, bytes in all); phases are `hash`, `upload`, `download`, `verify`; from several threads."""
Tell = Callable[[str], None]
"""Told a line for the operator."""


def push_folder(
    store: Store,
    folder: Path | ModelFolder,
    name: str,
    report: Report,
    *,
    allowed: Collection[str] = (),
    source: str | None = None,
    tell: Tell = lambda _: None,
) -> Manifest:
    """Put the model in *folder* into the bucket as the newest release of *name*.

    Broken off, it leaves blobs and parts that nobody names, and the next push goes on from them.

    Args:
        store: The bucket.
        folder: Where the model lies, or what `read_folder` said of it.
        name: The model's.
        report: Told the progress.
        allowed: What of `manifest.ALLOWED` may be in it.
        source: Where it came from; None keeps what an earlier push of the same said.
        tell: Told what the operator should know.

    Raises:
        StoreError: The folder is no model, changes under our hands, or the bucket says no.
    """
    model = folder if isinstance(folder, ModelFolder) else read_folder(folder, allowed)
    before = {path: _fingerprint(path) for path in model.files.values()}
    files, sent = _send_missing(store, model.files, report)
    if changed := [path for path in before if _fingerprint(path) != before[path]]:
        for blob in {file.sha256 for file in files if model.files[file.path] in changed} & sent:
            store.delete_blob(blob)  # it must hold what its name says, and may not
        raise StoreError(f"{changed[0]} changed while it was being pushed: push again when it is at rest")
    manifest = Manifest(name, tuple(files), model.allow, source, model.facts)
    if source is None:
        manifest = _with_known_source(store, manifest)
    if not store.put_manifest(manifest):
        tell(UNSAFE)
    if lost := store.missing(manifest.files):
        raise StoreError(f"{lost[0].path} was removed from the bucket while the rest was being pushed: push again")
    return manifest


def hash_file(path: Path, progress: Callable[[int], None] = lambda _: None) -> str:
    """Return the sha256 of a file, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()


class Counter:
    """Adds up the bytes that several threads count.

    Args:
        report: Told of every change.
        phase: Under this name.
        total: Bytes in all; may be lessened later.
    """

    def __init__(self, report: Report, phase: str, total: int) -> None:
        self._report, self._phase = report, phase
        self._done, self._total = 0, total
        self._lock = Lock()
        self(0)

    def __call__(self, more: int) -> None:
        """Add to what is done; less than nothing where some must be done again."""
        with self._lock:
            self._done += more
            self._report(self._phase, self._done, self._total)

    def spare(self, less: int) -> None:
        """Take off what need not be done."""
        with self._lock:
            self._total -= less
            self._report(self._phase, self._done, self._total)


def _send_missing(store: Store, paths: Mapping[str, Path], report: Report) -> tuple[list[ModelFile], set[str]]:
    """Read every file, and send it as soon as it is known and missed; return them all, and the sha256 of those sent."""
    sizes = {path: source.stat().st_size for path, source in paths.items()}
    sent = Counter(report, "upload", sum(sizes.values()))
    files: list[ModelFile] = []
    seen, missed = set[str](), set[str]()
    with Uploader(store, sent) as uploader:
        for file in _hash_files(paths, sizes, report):
            files.append(file)
            if file.sha256 in seen or not store.missing([file]):
                sent.spare(file.size)
            else:
                missed.add(file.sha256)
                uploader.send(paths[file.path], file.sha256, file.size)
            seen.add(file.sha256)
    return files, missed


def _hash_files(paths: Mapping[str, Path], sizes: Mapping[str, int], report: Report) -> Iterator[ModelFile]:
    """Yield the files in order, each as soon as it is read."""
    count = Counter(report, "hash", sum(sizes.values()))
    with ThreadPoolExecutor(HASHERS, "hash") as pool:
        try:
            for path, sha256 in zip(paths, pool.map(lambda path: hash_file(path, count), paths.values()), strict=True):
                yield ModelFile(path, sizes[path], sha256)
        except OSError as error:
            raise StoreError(f"{error.filename}: {error.strerror}") from error


def _with_known_source(store: Store, manifest: Manifest) -> Manifest:
    """Return *manifest* with the source that its release has in the bucket already."""
    try:
        known = store.resolve(manifest.ref)
    except StoreError:  # not there yet, or damaged: then this push mends it
        return manifest
    return Manifest(manifest.name, manifest.files, manifest.allow, known.source, manifest.facts)


def _fingerprint(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
