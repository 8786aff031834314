"""Looks for secrets wherever others can look: in what was sent, said, kept, and in what runs.

A secret is found in any spelling: as it is, hex, base64 at any offset, URL-encoded, escaped in JSON, broken over lines,
packed as the market's `onstart` is.
"""

import base64
import gzip
import json
import re
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote_to_bytes

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from tests.sandbox.hosts.processes import MARK

LOOK_SECONDS = 0.01
TEXT_BYTES = 2**20
"""Bigger files are programs and weights, which nothing is written into; taking them apart takes a minute."""
GZIP_RUN = re.compile(rb"H4sI[A-Za-z0-9+/=]{20,}")
"""What begins as gzip does, in base64."""


@dataclass(frozen=True)
class Secret:
    """Something that must be found nowhere.

    Attributes:
        value: Bytes, whatever form they travel in.
    """

    name: str
    value: bytes

    @classmethod
    def of_text(cls, name: str, text: str) -> Self:
        """Return a token or a password; text in hex stands for itself as well as for the bytes that it means."""
        return cls(name, text.encode())

    @classmethod
    def of_key(cls, name: str, pem: str) -> Self:
        """Return a private key: the number itself, which every file format contains."""
        ssh = "OPENSSH" in pem
        key = load_ssh_private_key(pem.encode(), None) if ssh else load_pem_private_key(pem.encode(), None)
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return cls(name, key.private_bytes_raw())
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return cls(name, key.private_numbers().private_value.to_bytes(32))

    def spellings(self) -> Iterator[bytes]:
        """Return what to look for in the layers of a text."""
        forms = {self.value}
        if re.fullmatch(rb"([0-9a-f]{2}){16,}", self.value):
            forms.add(bytes.fromhex(self.value.decode()))
        for form in forms:
            yield form
            yield form.hex().encode()
            for offset in range(3):
                text = base64.b64encode(bytes(offset) + form)
                # The characters at both ends depend on the neighbours.
                text = text[-(-offset * 8 // 6) : (offset + len(form)) * 8 // 6]
                yield text
                yield text.translate(bytes.maketrans(b"+/", b"-_"))


def layers(data: bytes) -> Iterator[bytes]:
    """Return a text as it is, and with what may hide something in it taken away."""
    yield data
    if len(data) > TEXT_BYTES:
        return
    unescaped = re.sub(rb"\\+u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)).encode(errors="replace"), data)
    yield unquote_to_bytes(unescaped)
    squeezed = re.sub(rb"(\\+[nrt]|\\|\s)+", b"", unescaped)
    yield squeezed
    for run in GZIP_RUN.findall(squeezed):
        try:
            yield gzip.decompress(base64.b64decode(run + b"==", validate=False))
        except (OSError, EOFError, ValueError, zlib.error):
            continue


def find(secrets: Iterable[Secret], places: Mapping[str, bytes]) -> list[str]:
    """Say which secret lies where; empty means nowhere."""
    spelt = [(secret.name, set(secret.spellings())) for secret in secrets]
    found = []
    for place, data in places.items():
        seen = list(layers(data))
        found += [f"{name} in {place}" for name, words in spelt if any(word in text for word in words for text in seen)]
    return found


def requests_of(market_requests: Iterable[Mapping[str, Any]]) -> dict[str, bytes]:
    """Return what a market received, by request; the emulator keeps all of it but the `Authorization` header."""
    return {
        f"request {number}, {request['method']} {request['path']}": json.dumps(request).encode()
        for number, request in enumerate(market_requests)
    }


def files_in(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    """Return every file below a folder whose path fits, with its path: a name can tell as much as what it names."""
    found = {}
    for path in sorted(folder.rglob(pattern)):
        if path.is_file() and not path.is_symlink():
            place = str(path.relative_to(folder.parent))
            found[place] = place.encode() + b"\n" + path.read_bytes()
    return found


class ProcessWatch:
    """Sees what anybody on the machine sees of the processes that run within the `with` block.

    Args:
        hosts: The folder of the rented machines.

    Attributes:
        arguments: Every command line of every process.
        environments: Every variable of every process of a rented machine.
    """

    def __init__(self, hosts: Path) -> None:
        self._mark = f"{MARK}={hosts}/".encode()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._seen: set[tuple[str, bytes]] = set()
        self.arguments: set[bytes] = set()
        self.environments: set[bytes] = set()

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    @property
    def places(self) -> dict[str, bytes]:
        """What was seen, each under its own name."""
        return {f"an argument of {_start(line)}": line for line in self.arguments} | {
            f"the environment of {_start(line)}": line for line in self.environments
        }

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                line = (folder / "cmdline").read_bytes()
                if line and (folder.name, line) not in self._seen:
                    self._seen.add((folder.name, line))
                    self.arguments.add(line)
                    environment = (folder / "environ").read_bytes()
                    if self._mark in environment:
                        self.environments.add(line + b"\0\0" + environment)
            except OSError:  # it ended just now
                continue


def _start(line: bytes) -> str:
    words = line.split(b"\0\0")[0].replace(b"\0", b" ").decode(errors="replace")
    return words if len(words) < 80 else f"{words[:80]}…"
