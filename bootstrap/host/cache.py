"""The engine's compile caches: pack them, send them off, and put back what was sent.

Runs on the machine: standard library only, Python 3.10. Every command reads its arguments as JSON from stdin, for URLs
are secrets, and prints JSON: `{"why": "…"}` says that nothing was done, which is never a reason not to serve. What is
put back is code that the engine executes: it comes from this very machine, and is taken only byte for byte as it went.
"""

import base64
import contextlib
import gzip
import hashlib
import http.client
import json
import os
import shutil
import ssl
import sys
import tarfile
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHUNK_BYTES = 2**20
TIMEOUT_SECONDS = 20
COMPRESSION = 1
"""Kernels and graphs shrink to a third at once; more would cost a start more than the line gives back."""
UNPACKED_SHARE = 8
"""A cache that unpacks to more than so many times its packed bytes is no cache."""

Answer = dict[str, Any]


class CacheError(Exception):
    """Nothing comes of it; the message says why, without the URL."""


def pack(folder: str, archive: str, most_bytes: int) -> Answer:
    """Make an archive of a folder; return its size and digests. Links are left behind."""
    source, new = Path(folder), Path(archive + ".new")
    if not any(source.rglob("*")):
        raise CacheError("the engine has left none")
    new.parent.mkdir(parents=True, exist_ok=True)
    with Digesting(new, most_bytes) as target, gzip.GzipFile("", "wb", COMPRESSION, target) as packed:
        add_files(source, packed)
    new.replace(archive)
    return target.digests()


def add_files(source: Path, packed: gzip.GzipFile) -> None:
    """Write what lies in a folder as a tar; only what `unpack` takes."""
    with tarfile.open(fileobj=packed, mode="w|") as tar:
        for path in sorted(source.rglob("*")):
            if not path.is_symlink() and (path.is_file() or path.is_dir()):
                tar.add(path, path.relative_to(source).as_posix(), recursive=False)


def send(archive: str, url: str, md5: str) -> Answer:
    """Put the archive where *url* allows, and remove it."""
    path = Path(archive)
    try:
        with path.open("rb") as body, answering("PUT", url, {"Content-MD5": md5}, body, path.stat().st_size):
            return {}
    finally:
        path.unlink(missing_ok=True)


def restore(folder: str, archive: str, url: str, size: int, sha256: str) -> Answer:
    """Fetch an archive and make it the folder, whole or not at all; a folder that is there stays."""
    target, fetched = Path(folder), Path(archive)
    if target.exists():
        return {"there": True}
    fetched.parent.mkdir(parents=True, exist_ok=True)
    try:
        with Digesting(fetched, size) as copy, answering("GET", url, {}) as response:
            while chunk := response.read(CHUNK_BYTES):
                copy.write(chunk)
        found = copy.digests()
        if (found["size"], found["sha256"]) != (size, sha256):
            raise CacheError("it is not what was sent off from here")
        unpack(fetched, target, most_bytes=size * UNPACKED_SHARE)
        return {}
    finally:
        fetched.unlink(missing_ok=True)


def unpack(archive: Path, target: Path, most_bytes: int) -> None:
    """Make *target* of the plain files and folders in an archive.

    Written by hand because the image's Python may lack `tarfile`'s filters, and they would allow links.

    Raises:
        CacheError: Something else is in it, or a path that leads out of it, or too much.
    """
    new = target.with_name(target.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    left = most_bytes
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                path = inside(new, member.name)
                if member.isdir():
                    path.mkdir(parents=True, exist_ok=True)
                    continue
                content = tar.extractfile(member) if member.isreg() else None
                left -= member.size
                if content is None or left < 0:
                    raise CacheError(f"{member.name!r} is {'too much' if content else 'no plain file'}")
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as file:
                    shutil.copyfileobj(content, file, CHUNK_BYTES)
                path.chmod(member.mode & 0o700)
        new.replace(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def inside(folder: Path, name: str) -> Path:
    """Return where a member of an archive goes; there are no links in *folder*, so its name alone decides."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise CacheError(f"{name!r} leads out of the folder")
    return folder.joinpath(*parts)


class Digesting:
    """A file that is written once, in order, and knows its digests; refuses more than *most_bytes*."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        self.path, self.most_bytes, self.size = path, most_bytes, 0
        self.sha256, self.md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)

    def __enter__(self) -> "Digesting":
        self.file = self.path.open("wb")
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.file.close()
        if kind:
            self.path.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> int:
        """Take the next bytes."""
        self.size += len(chunk)
        if self.size > self.most_bytes:
            raise CacheError(f"it has more than {self.most_bytes / 1e6:.1f} MB")
        self.sha256.update(chunk)
        self.md5.update(chunk)
        return self.file.write(chunk)

    def flush(self) -> None:
        """Do nothing: it is closed soon."""

    def digests(self) -> Answer:
        """Return size and digests; MD5 in base64, as HTTP has it."""
        md5 = base64.b64encode(self.md5.digest()).decode()
        return {"size": self.size, "sha256": self.sha256.hexdigest(), "md5": md5}


@contextlib.contextmanager
def answering(
    method: str, url: str, headers: dict[str, str], body: Any = None, size: int = 0
) -> Iterator[http.client.HTTPResponse]:
    """Send a request and yield its answer, which is 200; no error names the URL."""
    parts = urllib.parse.urlsplit(url)
    connection = connect(parts)
    try:
        if method == "PUT":
            headers = {**headers, "Content-Length": str(size)}
        connection.request(method, f"{parts.path}?{parts.query}", body=body, headers=headers)
        response = connection.getresponse()
        if response.status != 200:
            code = response.read(4096).decode(errors="replace").partition("<Code>")[2].partition("</Code>")[0]
            raise CacheError(f"the store answers {response.status} {code if code.isalnum() else ''}".strip())
        yield response
    except (OSError, http.client.HTTPException) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__
        raise CacheError(reason) from None
    finally:
        connection.close()


def connect(parts: urllib.parse.SplitResult) -> http.client.HTTPConnection:
    """Return a connection to the store, verified as every other of this machine."""
    if parts.scheme != "https":
        return http.client.HTTPConnection(parts.netloc, timeout=TIMEOUT_SECONDS)
    return http.client.HTTPSConnection(parts.netloc, timeout=TIMEOUT_SECONDS, context=trusted())


def trusted() -> ssl.SSLContext:
    """Return a context that trusts what the downloads trust."""
    from bootstrap.host.fetching.line import tls_context

    return tls_context()


COMMANDS: dict[str, Callable[..., Answer]] = {f.__name__: f for f in (pack, send, restore)}


def main(root: Path, command: str, arguments: list[Any]) -> None:
    """Run one command in the working directory of everything."""
    os.umask(0o077)
    os.chdir(root / "run")
    try:
        answer = COMMANDS[command](*arguments)
    except (CacheError, OSError, EOFError, tarfile.TarError) as error:
        answer = {"why": str(error) or type(error).__name__}
    print(json.dumps(answer))


if __name__ == "__main__":
    home = Path(__file__).resolve().parents[2]
    sys.path.insert(0, str(home / "bundle"))
    main(home, sys.argv[1], json.load(sys.stdin))
