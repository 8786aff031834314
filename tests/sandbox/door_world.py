"""A front door by itself: real Caddy with our configuration, and clients that send what no decent client would."""

import contextlib
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from bootstrap.door import loaded_mark, render_door, render_door_run
from bootstrap.host.watching.door import handed_in_flight
from bootstrap.steps import DOOR_PORT, Identity
from dynamic_providers.lease.certificates import make_ca, sign_leaf
from dynamic_providers.store.binaries import CADDY, find_binary

SIGN = "33" * 32
NOW = datetime.now(UTC)
CA = make_ca(SIGN, NOW)
TOKENS = {"default": "token-a", "second": "token-b"}
SCRAPE, CONTROL = "scrape", "control"
BEARER = {"Authorization": "Bearer token-a"}
PATIENCE_SECONDS = 60.0
"""For what happens at once on a machine with nothing else to do."""


class Answer(NamedTuple):
    """A status, headers in lower case, and the body."""

    status: int
    headers: dict[str, str]
    body: str


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def an_identity(address: str, hours: float = 1) -> Identity:
    leaf = sign_leaf(SIGN, CA, uid="uid0", instance_id=1, address=address, expires_at=NOW + timedelta(hours=hours))
    return Identity("1", leaf.certificate, leaf.private_key, TOKENS, SCRAPE, CONTROL)


def wait_for(condition: Callable[[], object], what: str = "it") -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what} does not happen"
        time.sleep(0.02)


@dataclass
class Door:
    """A running front door."""

    root: Path
    address: str
    identity: Identity
    process: "subprocess.Popen[bytes]"
    context: ssl.SSLContext = field(default_factory=lambda: ssl.create_default_context(cadata=CA))

    @property
    def run(self) -> Path:
        """Its working directory."""
        return self.root / "run"

    @property
    def url(self) -> str:
        return f"https://{self.address}:{DOOR_PORT}"

    def connect(self, *protocols: str) -> ssl.SSLSocket:
        context = ssl.create_default_context(cadata=CA)
        context.set_alpn_protocols(list(protocols or ["http/1.1"]))
        plain = socket.create_connection((self.address, DOOR_PORT), timeout=PATIENCE_SECONDS)
        return context.wrap_socket(plain, server_hostname=self.address)

    def ask(self, line: str, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a request line as it stands: no client that tidies it up."""
        lines = [f"{line} HTTP/1.1", "Host: evil.example", "Connection: close", "Content-Length: 0"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        return parse(self.send(("\r\n".join(lines) + "\r\n\r\n").encode()))

    def send(self, raw: bytes) -> bytes:
        """Send bytes and return all that comes until the door closes; what it does not read is nobody's fault."""
        received = b""
        with self.connect() as tls:
            with contextlib.suppress(OSError):
                tls.sendall(raw)
            with contextlib.suppress(OSError):
                while chunk := tls.recv(65536):
                    received += chunk
        return received

    def client(self, token: str = TOKENS["default"], *, http2: bool = False) -> httpx.Client:
        return httpx.Client(
            base_url=self.url,
            headers=bearer(token),
            verify=ssl.create_default_context(cadata=CA),  # its own: httpx notes in it what it speaks
            http1=not http2,
            http2=http2,
            timeout=PATIENCE_SECONDS,
            trust_env=False,
        )

    def page(self, path: str = "/metrics") -> str:
        """Return what the door tells the agent."""
        with unix_get(self.run / "door.sock", path) as response:
            return response.read().decode()

    def handed(self) -> int | None:
        return handed_in_flight(self.page())

    def log(self) -> list[dict[str, Any]]:
        """Return the access log's lines; one that is being written is not one yet."""
        path = self.root / "log/access.log"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def own_log(self) -> str:
        """Return what Caddy says of itself."""
        return (self.root / "door.log").read_text()

    def drain_until(self, until: str) -> None:
        """Write the file as the agent does."""
        new = self.run / "drain.new"
        new.write_text(until)
        new.replace(self.run / "drain")

    def reload(self, identity: Identity) -> None:
        """Change clients, tokens or certificate as `up` does, and wait until that is loaded."""
        self.identity = identity
        write_files(self.root, identity)
        self.process.send_signal(signal.SIGUSR1)
        wait_for(lambda: self.page("/loaded") == loaded_mark(identity), "the reload")

    def with_tokens(self, tokens: Mapping[str, str]) -> Identity:
        return replace(self.identity, tokens=tokens)


@contextmanager
def unix_get(path: Path, url: str) -> Iterator[HTTPResponse]:
    """Ask over a unix socket; its path may be longer than a socket's may be."""
    folder = os.open(path.parent, os.O_PATH)
    connection = HTTPConnection("localhost")
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(PATIENCE_SECONDS)
        try:
            plain.connect(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
        connection.sock = plain
        connection.request("GET", url)
        yield connection.getresponse()


def parse(raw: bytes) -> Answer:
    head, _, body = raw.decode(errors="replace").partition("\r\n\r\n")
    first, *rest = head.split("\r\n")
    found = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    return Answer(int(first.split()[1]), found, body)


def write_files(root: Path, identity: Identity) -> None:
    files = {
        "bundle/door/door.json": render_door(identity),
        "bundle/door/certificate.pem": identity.certificate,
        "bundle/door/key.pem": identity.private_key,
        "bundle/door/run": render_door_run(str(find_binary(CADDY))),
    }
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


@contextmanager
def open_door(root: Path, change: Callable[[str], str] = str) -> Iterator[Door]:
    """Run a front door in a folder.

    Args:
        root: Of the machine.
        change: What the test makes of the configuration: shorter limits, to see what comes of them.
    """
    address = f"127.79.{random.randrange(256)}.{random.randrange(1, 255)}"
    identity = an_identity(address)
    write_files(root, identity)
    (root / "ca.pem").write_text(CA)
    config = root / "bundle/door/door.json"
    config.write_text(change(config.read_text()))
    for folder in ("run", "log"):
        (root / folder).mkdir()
    # A container may have a proxy of its own, which is not there.
    environment = {"PATH": os.environ["PATH"], "GPU_BIND_ADDRESS": address, "HTTP_PROXY": "http://127.0.0.1:9"}
    with (
        (root / "door.log").open("wb") as log,
        subprocess.Popen(
            ["bash", "../bundle/door/run"], cwd=root / "run", env=environment, stdout=log, stderr=log
        ) as process,
    ):
        door = Door(root, address, identity, process)
        try:
            wait_for(lambda: process.poll() is not None or listens(door), "the door")
            assert process.poll() is None, door.own_log()
            yield door
        finally:
            process.kill()


def listens(door: Door) -> bool:
    try:
        door.connect().close()
    except OSError:
        return False
    return True
