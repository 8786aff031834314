"""Putting a folder with a model into the bucket: only what is not there yet, and the manifest last of all."""

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from threading import Lock

from dynamic_providers.errors import StoreError
from dynamic_providers.store.client import Store
from dynamic_providers.store.manifest import Manifest, ModelFile

CHUNK_BYTES = 4 * 2**20

Report = Callable[[str, int, int], None]
"""Told (phase, bytes done, bytes in all); the phases are `hash` and `upload`; from several threads."""


def push_folder(store: Store, folder: Path, name: str, report: Report) -> Manifest:
    """Put the model in *folder* into the bucket as the newest release of *name*.

    Broken half-way it leaves blobs that nobody names, and the next push finds them there.

    Raises:
        StoreError: The folder is no model, changes under our hands, or the bucket says no.
    """
    paths = list_files(folder)
    before = {path: _fingerprint(source) for path, source in paths.items()}
    manifest = Manifest(name, tuple(_hash_files(paths, report)))
    missing = store.missing(manifest.files)
    total = sum(file.size for file in missing)
    count = _Counter(lambda done: report("upload", done, total))
    report("upload", 0, total)
    for file in missing:
        store.put_blob(paths[file.path], file.sha256, count)
        if _fingerprint(paths[file.path]) != before[file.path]:
            # A blob must hold what its name says, and this one may not.
            store.delete_blob(file.sha256)
            raise StoreError(f"{paths[file.path]} changed while it was being pushed: push again when it is at rest")
    store.put_manifest(manifest)
    return manifest


def list_files(folder: Path) -> dict[str, Path]:
    """Return the model's files: path in the model → file to read. Hidden ones are left out.

    Raises:
        StoreError: No folder, no model in it, or something in it that cannot be pushed; all problems at once.
    """
    if not folder.is_dir():
        raise StoreError(f"{folder} is no folder")
    root = folder.resolve()
    found: dict[str, Path] = {}
    problems: list[str] = []
    for base, folders, names in os.walk(
        root, onerror=lambda error: problems.append(f"{error.filename}: {error.strerror}")
    ):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [*folders, *sorted(names)]:
            path = Path(base, name)
            if name.startswith(".") or (path.is_dir() and not path.is_symlink()):
                continue
            if problem := _unusable(path, root):
                problems.append(f"{path.relative_to(root)}: {problem}")
            else:
                found[path.relative_to(root).as_posix()] = path
    if not found and not problems:
        problems.append("it is empty")
    elif "config.json" not in found:
        problems.append("no config.json: not a model as Hugging Face lays it out, or not downloaded to the end")
    if problems:
        raise StoreError("\n  - ".join([f"{folder} cannot be pushed:", *problems]))
    return found


def hash_file(path: Path, progress: Callable[[int], None] = lambda _: None) -> str:
    """Return the sha256 of a file, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()


def _hash_files(paths: dict[str, Path], report: Report) -> list[ModelFile]:
    sizes = {path: source.stat().st_size for path, source in paths.items()}
    total = sum(sizes.values())
    count = _Counter(lambda done: report("hash", done, total))
    report("hash", 0, total)
    try:
        return [ModelFile(path, sizes[path], hash_file(source, count)) for path, source in paths.items()]
    except OSError as error:
        raise StoreError(f"{error.filename}: {error.strerror}") from error


def _unusable(path: Path, root: Path) -> str:
    """Say why a file cannot be pushed; empty if it can."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a loop of links, until Python 3.13
        return "a link to nothing"
    if not target.is_relative_to(root):
        return f"a link out of the folder, to {target}; make a copy without links: cp -rL <folder> <copy>"
    if target.is_dir():
        return "a link to a folder; make a copy without links: cp -rL <folder> <copy>"
    if not stat.S_ISREG(target.stat().st_mode):
        return "no regular file"
    return "" if os.access(target, os.R_OK) else "may not be read"


def _fingerprint(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


class _Counter:
    """Adds up the bytes that several threads count."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell = tell
        self._done = 0
        self._lock = Lock()

    def __call__(self, more: int) -> None:
        with self._lock:
            self._done += more
            self._tell(self._done)
