"""Machines that exist in memory alone, yet answer every SSH command and HTTPS request that the bootstrap makes.

For tests that need hundreds of boots: what is real is everything down to the connection; what a machine does with a
command is a model of `bootstrap/host/machine.py`, small enough to be compared with it by eye.
"""

import asyncio
import hashlib
import itertools
import json
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import asyncssh
import httpx
import pytest

from bootstrap import closing, ready, run, ssh, weights
from bootstrap.render import PROGRAMS, fingerprint
from bootstrap.steps import Engine
from dynamic_providers.clock import Clock
from tests.sandbox.vast.hosts import Address, FakeHosts, HostSpec

Watch = Callable[[str], AbstractContextManager[None]]
"""Stands around each request, told its name."""

HOST_KEY = "ssh-ed25519 AAAAplayed"


class FakeMachine:
    """One machine: its files, what runs on it, and whether its door is open."""

    def __init__(self, spec: HostSpec) -> None:
        self.gpus = spec.gpus
        self.bundle: dict[str, bytes] = {}
        self.there: set[str] = set()
        self.programs: dict[str, dict[str, Any]] = {}
        self.is_closed = False
        self.state: dict[str, Any] | None = None
        self.lease: dict[str, Any] = {}
        self.progress: dict[str, Any] | None = None
        self._pids = itertools.count(100)

    def serves(self, engine: Engine) -> bool:
        """Say whether clients would be answered, by exactly this engine."""
        is_up = {name for name, program in self.programs.items() if program["state"] == "RUNNING"}
        is_asked = (self.state or {}).get("settings") == engine.settings_hash()
        is_left_alone = self.lease.get("phase") == "r"
        return (
            {"agent", "door", "engine"} <= is_up
            and is_asked
            and is_left_alone
            and not self.is_closed
            and self._runs_what_lies_there()
        )

    def _runs_what_lies_there(self) -> bool:
        return all(self.programs[name]["started"] == self._fingerprint(name) for name in ("agent", "door", "engine"))

    def _fingerprint(self, name: str) -> str:
        own = f"{name}/"
        return fingerprint({p.removeprefix(own): c for p, c in self.bundle.items() if p.startswith(own)})

    def answer(self, command: str, stdin: bytes) -> tuple[int, str]:
        """Run a command; return exit status and output."""
        if "nvidia-smi" in command:
            return 0, "".join(f"{gpu.name}, {gpu.memory_mib}\n" for gpu in self.gpus)
        if "sha256sum" in command:
            digests = {path: hashlib.sha256(content).hexdigest() for path, content in self.bundle.items()}
            return 0, "".join(f"{digest}  ./{path}\n" for path, digest in digests.items())
        if "tar -xzf" in command:
            self.state = {"settings": None}
            self.bundle |= {path: content.encode("latin1") for path, content in json.loads(stdin).items()}
        elif "host/start.py" in command:
            self.programs = self.programs or {name: _stopped() for name in PROGRAMS}
        elif "touch closed" in command:
            self.is_closed, self.state = True, {"settings": None}
        else:
            return 127, f"no such command: {command}"
        return 0, ""

    def ask(self, command: str, *arguments: Any) -> Any:
        """Do what `machine.py` does on a command.

        Raises:
            LookupError: No supervisor runs.
        """
        if not self.programs and command not in {"halt", "lease"}:
            raise LookupError("no supervisor")
        return getattr(self, f"do_{command}")(*arguments)

    def do_status(self) -> dict[str, Any]:
        healthy = self.programs["engine"]["state"] == "RUNNING"
        return {"programs": self.programs, "healthy": healthy, "fetch": self.progress}

    def do_lease(self, remaining: dict[str, Any]) -> dict[str, Any]:
        self.lease = remaining
        return {}

    def do_ready(self, remaining: dict[str, Any], provisioning: dict[str, Any] | None) -> dict[str, Any]:
        assert provisioning is None or provisioning["phases"].keys() >= {"ssh", "engine", "first token"}
        return self.do_lease(remaining)

    def do_state(self) -> dict[str, Any]:
        if self.programs["agent"]["state"] != "RUNNING":
            return {}
        return {**(self.state or {}), "phase": self.lease.get("phase"), "armed": True, "in_flight": 0}

    def do_reload_door(self) -> dict[str, Any]:
        assert self.programs["door"]["state"] == "RUNNING"
        self.programs["door"]["started"] = self._fingerprint("door")
        return {"reloaded": True}

    def do_missing(self, files: list[dict[str, Any]]) -> dict[str, Any]:
        wanted = {item["path"] for item in files}
        # The disk holds one release: for another one there is no room before the first has gone.
        short = int(bool(wanted - self.there and self.there - wanted))
        absent = [item for item in files if item["path"] not in self.there]
        return {"files": absent, "short_bytes": short, "need_bytes": 0, "free_bytes": 0}

    def do_prune(self, files: list[dict[str, Any]]) -> dict[str, Any]:
        self.there &= {item["path"] for item in files}
        return {}

    def do_fetch(self, job: dict[str, Any]) -> dict[str, Any]:
        self.there |= {item["path"] for item in job["files"]}
        self.progress = {"state": "done", "job": job["id"]}
        return {}

    def do_naming_code(self, paths: list[str]) -> list[str]:
        assert set(paths) <= self.there
        return []

    def do_link(self, folder: str, links: list[dict[str, Any]]) -> dict[str, Any]:
        assert {item["blob"] for item in links} <= self.there
        is_new = folder not in self.there
        self.there.add(folder)
        return {"changed": is_new}

    def do_start(self, name: str) -> dict[str, Any]:
        pid = next(self._pids)
        self.programs[name] = {"state": "RUNNING", "pid": pid, "started": self._fingerprint(name)}
        return {"pid": pid}

    def do_stop(self, name: str) -> dict[str, Any]:
        self.programs[name] = _stopped()
        return {}

    def do_halt(self) -> dict[str, Any]:
        self.programs = {}
        return {}

    def do_open_door(self, state: dict[str, Any]) -> dict[str, Any]:
        self.state, self.is_closed = state, False
        return {}


def _stopped() -> dict[str, Any]:
    return {"state": "STOPPED", "pid": 0, "started": None}


@dataclass
class FakeMachines(FakeHosts):
    """The hosts of a market, with a machine behind each that runs; no two at one address."""

    machines: dict[int, FakeMachine] = field(default_factory=dict)

    async def start(self, spec: HostSpec) -> Address:
        address = await super().start(spec)
        self.machines.setdefault(spec.instance_id, FakeMachine(spec))
        # The range that standards set aside for benchmarks: nothing ever answers there.
        high, low = divmod(spec.instance_id % 2**16, 256)
        return Address(f"198.18.{high}.{low}", address.ports)

    async def destroy(self, instance_id: int) -> None:
        await super().destroy(instance_id)
        self.machines.pop(instance_id, None)

    def at(self, address: str) -> tuple[int, FakeMachine]:
        """Return the machine that runs at an address.

        Raises:
            ConnectionRefusedError: None does.
        """
        high, low = map(int, address.split(".")[2:])
        for id_, machine in self.machines.items():
            if id_ % 2**16 == high * 256 + low and id_ in self.running:
                return id_, machine
        raise ConnectionRefusedError(address)


@dataclass
class _Connection:
    """As much of asyncssh's connection as `bootstrap.ssh` uses."""

    machines: FakeMachines
    address: str
    watch: Watch
    pause: Callable[[], Any]

    async def run(self, command: str, *, input: bytes, encoding: None) -> Any:
        _, machine = self.machines.at(self.address)
        with self.watch(f"ssh {_name_of(command)}"):
            status, output = machine.answer(command, input)
        await self.pause()
        return types.SimpleNamespace(exit_status=status, stdout=output.encode(), stderr=b"")

    async def create_process(self, program: str, encoding: None) -> "_Program":
        return _Program(self)

    def close(self) -> None:
        """Nothing is open."""

    abort = close

    async def wait_closed(self) -> None:
        """Nothing is open."""


class _Program:
    """`machine.py` as asyncssh shows it: a question goes in, an answer comes out."""

    def __init__(self, connection: _Connection) -> None:
        self.stdin = self.stdout = self
        self._connection = connection
        self._question = b""
        self._error = ""

    def write(self, question: bytes) -> None:
        self._question = question

    async def readline(self) -> bytes:
        """Do what was asked; nothing comes where it fails."""
        command, *arguments = json.loads(self._question)
        _, machine = self._connection.machines.at(self._connection.address)
        with self._connection.watch(f"ssh {command}"):
            try:
                answer = json.dumps(machine.ask(command, *arguments)).encode()
            except LookupError as error:
                answer, self._error = b"", str(error)
        await self._connection.pause()
        return answer

    async def wait(self) -> Any:
        return types.SimpleNamespace(exit_status=1, stderr=self._error.encode())


def _name_of(command: str) -> str:
    words = ("nvidia-smi", "sha256sum", "tar -xzf", "start.py", "touch closed")
    return next((word for word in words if word in command), command)


async def _go_on() -> None:
    """Pause for nobody."""


@contextmanager
def fake_machines(
    machines: FakeMachines,
    clock: Clock,
    watch: Watch = lambda name: nullcontext(),
    pause: Callable[[], Any] = _go_on,
) -> Iterator[None]:
    """Let the bootstrap reach these machines, in the time of *clock*.

    Args:
        machines: The hosts of the market.
        clock: What the bootstrap's waits go by.
        watch: Stands around each request to a machine.
        pause: Awaited after each, where a real machine would have taken its time.
    """

    async def login(target: ssh.Target, seconds: float) -> ssh.Machine:
        with watch("ssh login"):
            id_, _ = machines.at(target.address)
            if not any(_is_key(target.client_key, key) for key in machines.keys.get(id_, ())):
                raise asyncssh.PermissionDenied("no such key")
        await pause()
        connection: Any = _Connection(machines, target.address, watch, pause)
        return ssh.Machine(target, connection, HOST_KEY)

    async def respond(request: httpx.Request) -> httpx.Response:
        try:
            with watch(f"door {request.method} {request.url.path.rpartition('/')[2]}"):
                _, machine = machines.at(request.url.host)
                response = _respond(machine, request.url.path)
        except ConnectionError as error:
            raise httpx.ReadError(str(error), request=request) from error
        await pause()
        return response

    def client(*_: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(respond), trust_env=False)

    async def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        await asyncio.sleep(0.0005)  # the market's own thread goes on meanwhile

    played_time = types.SimpleNamespace(monotonic=clock.monotonic)
    played_asyncio = types.SimpleNamespace(**{**vars(asyncio), "sleep": sleep})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssh, "_login", login)
        patch.setattr(ready, "_client", client)
        patch.setattr(run, "pack", _pack)
        for module in (ssh, run, closing, weights, ready):
            patch.setattr(module, "time", played_time)
            patch.setattr(module, "asyncio", played_asyncio)
        yield


def _respond(machine: FakeMachine, path: str) -> httpx.Response:
    is_up = machine.programs.get("door", {}).get("state") == "RUNNING"
    if not is_up:
        raise ConnectionRefusedError(path)
    if path.startswith("/control/"):
        return httpx.Response(200, json=machine.do_state()) if machine.do_state() else httpx.Response(502)
    if machine.is_closed or machine.programs["engine"]["state"] != "RUNNING":
        return httpx.Response(503)
    return httpx.Response(200, json={"choices": [{"text": " hello"}]})


def _pack(files: Mapping[str, bytes]) -> bytes:
    # To compress the bundle takes longer than all the rest of a played boot.
    return json.dumps({path: content.decode("latin1") for path, content in files.items()}).encode()


@lru_cache(maxsize=64)
def _is_key(private: str, public: str) -> bool:
    return asyncssh.import_private_key(private).export_public_key().decode().split()[:2] == public.split()[:2]
