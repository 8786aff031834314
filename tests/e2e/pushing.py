"""A machine by hand, as far as its metrics go: a real front door before two played pages, and a real vmagent."""

import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import NamedTuple, Self

import pytest

from bootstrap.push import BUFFER, SCRAPE_SECONDS, render_push
from dynamic_providers.lease.certificates import Leaf
from dynamic_providers.lease.monitoring import WriteTarget
from dynamic_providers.store.binaries import VMAGENT, BinaryError, find_binary
from tests.e2e.receiver import wait_for
from tests.sandbox.door_engines import Quiet
from tests.sandbox.door_world import CA, SCRAPE, Door, open_door

INTERVAL = "250ms"
"""In the place of 15 s: time runs 60 times as fast."""

LABELS = {"stack": "gpu-on", "model": "tiny/llama", "instance_id": "7", "machine_id": "55", "uid": "uid0"}


class Buffer(NamedTuple):
    """Bytes that were ever put on the disk, and those of them that wait there to be sent."""

    put: int
    waiting: int


class Page:
    """A page of metrics on a unix socket, which also says for the how manyth time it is read.

    Args:
        run: The machine's working directory.
        socket: The socket's name there.
        job: What vmagent calls it.
        text: What is on the page.

    Attributes:
        counter: Name of the metric that counts.
        read: How often it was read to the end.
    """

    def __init__(self, run: Path, socket: str, job: str, text: str) -> None:
        self._path, self.job, self.text, self.counter, self.read = run / socket, job, text, f"test_{job}_reads", 0

    def __enter__(self) -> Self:
        page = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                number = page.read + 1
                body = f"{page.text}# TYPE {page.counter} gauge\n{page.counter} {number}\n".encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                page.read = number

            def address_string(self) -> str:
                return "unix"

            def log_message(self, format: str, *args: object) -> None:
                """Print nothing."""

        folder = os.open(self._path.parent, os.O_PATH)  # a socket's path is short
        try:
            self._server = Quiet(f"/proc/self/fd/{folder}/{self._path.name}", Answer)
        finally:
            os.close(folder)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._path.unlink()


class Pusher:
    """The machine.

    Args:
        door: Its front door.
        vllm: The engine's page.
        host: The agent's page.
        target: Where it is to write.
    """

    def __init__(self, door: Door, vllm: Page, host: Page, target: WriteTarget) -> None:
        self.door, self.vllm, self.host = door, vllm, host
        self._target = target
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, buffer: str = BUFFER) -> None:
        """Start vmagent as the machine does, only quicker; what waits on its disk is sent first."""
        vmagent = self.door.root / "bin/vmagent"
        if not vmagent.exists():
            vmagent.parent.mkdir()
            shutil.copy(find_binary(VMAGENT), vmagent)
            vmagent.chmod(0o755)
        files = render_push(
            self._target, labels=LABELS, scrape_token=SCRAPE, ca_certificate=CA, vmagent=f"../bin/{vmagent.name}"
        )
        files["scrape.yaml"] = _change(files["scrape.yaml"], f'"{SCRAPE_SECONDS}s"', f'"{INTERVAL}"')
        files["run"] = _change(files["run"], f"PerURL={BUFFER}", f"PerURL={buffer}")
        folder = self.door.root / "bundle/push"
        folder.mkdir(exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
        with (self.door.root / "log/push.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["bash", "../bundle/push/run"],
                cwd=self.door.run,
                env={"PATH": os.environ["PATH"], "GPU_BIND_ADDRESS": self.door.address},
                stdout=log,
                stderr=log,
            )

    def stop(self) -> None:
        """End vmagent as the supervisor does."""
        if self.process:
            self.process.terminate()
            assert self.process.wait(60) == 0
            self.process = None

    def show(self, leaf: Leaf) -> None:
        """Give the machine another certificate, as an `up` does; vmagent is told nothing of it."""
        for name, text in (("certificate.pem", leaf.certificate), ("key.pem", leaf.private_key)):
            new = self.door.root / "bundle/door" / f"{name}.new"
            new.write_text(text)
            new.replace(new.with_suffix(""))

    def buffer(self) -> Buffer:
        """Return what vmagent tells of its disk; it tells it once a second."""
        for path in (self.door.root / "push-buffer").rglob("metainfo.json"):
            while not (text := path.read_text()).endswith("}"):
                time.sleep(0.01)  # it is writing just now
            told = json.loads(text)
            return Buffer(told["WriterOffset"], told["WriterOffset"] - told["ReaderOffset"])
        return Buffer(0, 0)

    def log(self) -> str:
        return (self.door.root / "log/push.log").read_text()

    def wait_for_reads(self, count: int) -> None:
        """Wait until both pages have been read so many times more."""
        until = [(page, page.read + count) for page in (self.vllm, self.host)]
        wait_for(lambda: all(page.read >= number for page, number in until), f"reading the pages {count} times")


@contextmanager
def open_pusher(root: Path, target: WriteTarget, vllm: str, host: str) -> Iterator[Pusher]:
    """Have a machine in a folder; its vmagent is not started yet.

    Args:
        root: The folder.
        target: Where it is to write.
        vllm: What the engine's page says.
        host: What the agent's page says.
    """
    try:
        find_binary(VMAGENT)
    except BinaryError as error:
        pytest.skip(f"needs vmagent: {error}")
    with ExitStack() as undo:
        door = undo.enter_context(open_door(root))
        engine = undo.enter_context(Page(door.run, "engine.sock", "vllm", vllm))
        agent = undo.enter_context(Page(door.run, "agent.sock", "host", host))
        pusher = Pusher(door, engine, agent, target)
        try:
            yield pusher
        finally:
            if pusher.process:
                pusher.process.kill()
                pusher.process.wait()


def listening_sockets(pid: int) -> list[str]:
    """Return the TCP and UDP sockets that a process has open and that are bound to no other end."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if found := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link)):
            inodes.add(found[1])
    sockets = list[str]()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[9] in inodes and columns[2].endswith(":0000"):
                sockets.append(f"{table} {columns[1]}")
    return sockets


def _change(text: str, before: str, after: str) -> str:
    assert text.count(before) == 1
    return text.replace(before, after)
