"""A machine for the agent alone: the real bundle under a real supervisor, beside a played engine and door."""

import asyncio
import contextlib
import http.client
import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self

import httpx

from bootstrap.bundle import carried
from bootstrap.host.watching.clock import read_moment
from tests.sandbox.hosts.processes import MARK, end_processes
from tests.sandbox.market_client import GOOD_OFFER, ORDER
from tests.sandbox.vast.server import VastEmulator

PATIENCE_SECONDS = 60.0
"""For what comes by itself; a machine that tests run on may be slow."""

PYTHON = str(Path(sys.base_prefix) / "bin/python3")
CONF = """\
[unix_http_server]
file = /proc/self/cwd/supervisor.sock
chmod = 0600

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisord]
logfile = ../log/supervisor.log
pidfile = supervisor.pid
umask = 077
nocleanup = true

[program:agent]
command = bash -c '{limits}exec {python} -S ../bundle/host/agent.py'
autorestart = true
startsecs = 0
redirect_stderr = true
stdout_logfile = ../log/agent.log

[program:engine]
command = bash ../bundle/host/program.sh engine
autorestart = false
startretries = 0
killasgroup = true
redirect_stderr = true
stdout_logfile = ../log/engine.log
"""
START = """\
import sys
sys.path.insert(0, "../bundle")
from supervisor.supervisord import main
main(["-n", "-c", "../bundle/supervisord.conf"])
"""
SERVING = "exec sleep 3600\n"
FULL_DISK = "ulimit -f 0; "
"""No file can get longer than nothing: every write fails, while sockets and times of files do as before."""


class Page(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """A program on its unix socket: answers each path with what the test says; None: never."""

    daemon_threads = True

    def __init__(self, folder: Path, name: str, answers: dict[str, tuple[int, str] | None]) -> None:
        self.answers = answers
        self._ended = threading.Event()
        # A socket's path may not exceed 107 bytes; a test's folder may.
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            super().__init__(f"/proc/self/fd/{descriptor}/{name}", _Answer)
        finally:
            os.close(descriptor)
        self._path = folder / name
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def hang(self) -> None:
        """Say nothing until the world ends."""
        self._ended.wait()

    def end(self) -> None:
        if not self._ended.is_set():
            self._ended.set()
            self.shutdown()
            self.server_close()
            self._path.unlink(missing_ok=True)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that gave up is none of our business."""


class _Answer(BaseHTTPRequestHandler):
    server: Page

    def do_GET(self) -> None:
        answer = self.server.answers.get(self.path, (404, ""))
        if answer is None:
            self.server.hang()
            return
        status, text = answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


def engine_page(*, running: int = 0, tokens: int = 100, started_at: float = 1000.0) -> str:
    return f"""\
vllm:num_requests_running{{engine="0"}} {running}
vllm:num_requests_waiting{{engine="0"}} 0.0
vllm:prompt_tokens_total{{engine="0"}} {tokens}
vllm:generation_tokens_total{{engine="0"}} 0.0
process_start_time_seconds {started_at}
"""


def door_page(in_flight: int = 0) -> str:
    """Anonymous connections, scrapes and refusals are counted under other names, as Caddy does."""
    return f"""\
caddy_http_requests_in_flight{{handler="subroute",server="door"}} 1000
caddy_http_requests_in_flight{{handler="log_append",server="door"}} {in_flight}
"""


class World:
    """A machine's folder and all that runs in it.

    Args:
        root: The folder. A door that somebody else opened may run in it already.
        market_url: Where the agent finds the market.
        instance_id: What it is there.
        key: Its own.
        is_disk_full: No file takes a byte from the agent.
    """

    def __init__(self, root: Path, *, market_url: str, instance_id: int, key: str, is_disk_full: bool = False) -> None:
        self.root, self.run, self.instance_id = root, root / "run", instance_id
        self._market_url = market_url
        self._mark = f"agent-{uuid.uuid4().hex}"
        self._supervisor: subprocess.Popen[bytes] | None = None
        for name in ("run/started", "run/control", "log", "bundle/agent", "bundle/engine"):
            (root / name).mkdir(parents=True, exist_ok=True)
        for path, content in carried().items():
            (root / "bundle" / path).parent.mkdir(parents=True, exist_ok=True)
            (root / "bundle" / path).write_bytes(content)
        limits = FULL_DISK if is_disk_full else ""
        (root / "bundle/supervisord.conf").write_text(CONF.format(python=PYTHON, limits=limits))
        (root / "bundle/agent/agent.json").write_text(json.dumps({"instance_id": str(instance_id), "uid": "abc"}))
        (root / "container.env").write_bytes(f"CONTAINER_ID={instance_id}\0CONTAINER_API_KEY={key}\0".encode())
        self.plays(SERVING)
        self.is_applied("some-settings")
        self._played: list[Page] = []

    def play(self) -> Self:
        """Play engine and door: `engine` and `door` answer what a test says."""
        self.engine = Page(self.run, "engine.sock", {"/metrics": (200, engine_page()), "/health": (200, "")})
        self.door = Page(self.run, "door.sock", {"/metrics": (200, door_page())})
        self._played = [self.engine, self.door]
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for page in self._played:
            page.end()
        asyncio.run(end_processes(self._mark))
        if self._supervisor:
            self._supervisor.wait(PATIENCE_SECONDS)

    def start(self) -> Self:
        """Start the supervisor, and with it agent and engine."""
        self._supervisor = subprocess.Popen(
            [PYTHON, "-S", "-c", START],
            cwd=self.run,
            env={"PATH": os.environ["PATH"], "VAST_URL": self._market_url, MARK: self._mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return self

    def plays(self, script: str) -> None:
        """What the engine is from its next start on."""
        (self.root / "bundle/engine/run").write_text(script)

    def is_applied(self, settings: str | None) -> None:
        self._put("control/state.json", {"settings": settings, "instance": "7"})

    def lease(self, *, behind: float = 0.0, **changes: Any) -> None:
        """Tell the agent its lease.

        Args:
            behind: The wall clock was set back by so many seconds since.
            **changes: To a lease that does not end while a test runs; its limits are short, so looks come quickly.
        """
        now = read_moment()
        at = {"boot_id": now.boot_id, "boottime": now.boottime, "wall": now.wall + behind}
        lasting = {"phase": "b", "expires_in": 3600, "deadline_in": 3600, "idle_seconds": 1, "grace_seconds": 1}
        self._put("lease.json", {**lasting, "drain_seconds": 60, **changes, "at": at})

    def _put(self, name: str, value: object) -> None:
        new = self.run / f"{name}.test"
        new.write_text(json.dumps(value))
        new.replace(self.run / name)

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Ask the agent; JSON where it answers JSON."""
        connection = http.client.HTTPConnection("localhost", timeout=PATIENCE_SECONDS)
        descriptor = os.open(self.run, os.O_RDONLY)
        try:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(PATIENCE_SECONDS)
            connection.sock.connect(f"/proc/self/fd/{descriptor}/agent.sock")
            with contextlib.suppress(BrokenPipeError):  # what is too long is answered before all of it is read
                connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            text = answer.read().decode()
            is_json = answer.getheader("Content-Type") == "application/json"
            return answer.status, json.loads(text) if is_json else text
        finally:
            os.close(descriptor)
            connection.close()

    def state(self) -> dict[str, Any]:
        """Return the state; empty while there is no agent to ask."""
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            status, said = self.ask("GET", "/control/state")
            return dict(said) if status == 200 else {}
        return {}

    def heartbeat(self) -> int:
        path = self.run / "heartbeat"
        return path.stat().st_mtime_ns if path.exists() else 0

    def wait_for_looks(self, count: int = 1) -> None:
        """Wait until the agent has looked so many times more; a look that has begun does not count."""
        for _ in range(count + 1):
            before = self.heartbeat()
            wait_until(lambda before=before: self.heartbeat() != before)  # type: ignore[misc]

    def drain_file(self) -> str:
        path = self.run / "drain"
        return path.read_text() if path.exists() else ""

    def agent_pids(self) -> list[int]:
        """Return the agent's process; none while it is being started anew."""
        return list(self._pids("bundle/host/agent.py"))

    def _pids(self, argument: str) -> Iterator[int]:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    is_ours = self._mark.encode() in (entry / "environ").read_bytes()
                    if is_ours and any(word.endswith(argument.encode()) for word in words[1:3]):
                        yield int(entry.name)

    def log(self, name: str = "agent") -> str:
        path = self.root / f"log/{name}.log"
        return path.read_text() if path.exists() else ""


class Market:
    """The emulator, and machines rented from it."""

    def __init__(self, folder: Path) -> None:
        self.emulator = VastEmulator()
        self._folder = folder
        self._lock = threading.Lock()

    def rent(self, root: Path | None = None, *, is_disk_full: bool = False, key: str | None = None) -> World:
        """Rent a machine whose agent is not started yet; in a folder of its own, with engine and door played."""
        with self._lock, httpx.Client(base_url=self.emulator.url) as client:
            client.headers["Authorization"] = f"Bearer {self.emulator.api_key}"
            offer = client.post("/api/v0/bundles/", json=GOOD_OFFER).raise_for_status().json()["offers"][0]
            created = client.put(f"/api/v0/asks/{offer['id']}/", json=ORDER).raise_for_status().json()
        world = World(
            root or self._folder / str(created["new_contract"]),
            market_url=self.emulator.url,
            instance_id=created["new_contract"],
            key=key or created["instance_api_key"],
            is_disk_full=is_disk_full,
        )
        return world if root else world.play()

    def ended_at(self, world: World) -> float | None:
        """Return when the bill of a machine ended."""
        rows = self.emulator.ledger()["instances"]
        ended: float | None = next(row["to"] for row in rows if row["id"] == world.instance_id)
        return ended


def wait_until(is_so: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.05)


def named(state: Mapping[str, Any], *path: str) -> Any:
    """Return a value inside a state that may be empty."""
    value: Any = state
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
