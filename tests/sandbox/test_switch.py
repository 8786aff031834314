"""With reaper and laptop dead, a machine ends its own rental by each of its rules, whatever else goes wrong on it.

Real hosts: SSH, supervisor, Caddy, agent; the market keeps the books. Time is scaled: a machine that serves is told of
a lease of seconds, in the words in which `up` tells of hours.
"""

import asyncio
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from bootstrap import remote
from bootstrap.steps import Remaining
from dynamic_providers.vast.machine import _log_in
from tests.sandbox.clocks import SwiftClock
from tests.sandbox.hosts.processes import find_processes
from tests.sandbox.stage import Bucket, Machine, Stage, WatchedHosts, open_stage

pytestmark = pytest.mark.timeout(240)

LONG = timedelta(hours=1)
PATIENCE_SECONDS = 90
"""Before a test says that something will not happen any more; a machine that is busy with others takes its time."""
AT_ONCE = Remaining(lease=LONG, boot=LONG, idle=LONG, grace=LONG, drain=timedelta(seconds=2))


@dataclass(frozen=True)
class Rule:
    """One way in which a rental ends.

    Attributes:
        remaining: What the machine is told of its lease.
        is_ready: Whether it is told that it is ready.
        seconds: Before that it must not end.
        prepare: What has to happen on the machine for the rule to hold.
    """

    remaining: Remaining
    is_ready: bool
    seconds: float
    prepare: Callable[[Machine], None] = lambda machine: None


def stop_engine(machine: Machine) -> None:
    """Let the engine hang, as on a GPU that is wedged: it holds its socket and answers nobody."""
    for pid in pids_of(machine, "engine.sock"):
        os.kill(pid, signal.SIGSTOP)


IDLE = replace(AT_ONCE, idle=timedelta(seconds=2), grace=timedelta(seconds=1))
RULES = {
    "expired": Rule(replace(AT_ONCE, lease=timedelta(seconds=3)), True, 3),
    "idle": Rule(IDLE, True, 3),
    "unknown": Rule(IDLE, True, 3, stop_engine),
    "never-ready": Rule(replace(AT_ONCE, boot=timedelta(seconds=3)), False, 3),
}


@pytest.fixture(scope="module", autouse=True)
def quick_looks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "LOOK_SECONDS", 0.15)
        yield


class Clockwork:
    """A clock of a host that can be set: what its Pythons take for the time of day."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._offset = folder, folder / "offset"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(
            "import time as _time\n"
            "_real = _time.time\n"
            "def _told():\n"
            f"    with open({str(self._offset)!r}) as file:\n"
            "        return _real() + float(file.read())\n"
            "_time.time = _told\n"
        )
        self.set_by(0)

    def set_by(self, seconds: float) -> None:
        new = self._offset.with_suffix(".new")
        new.write_text(str(seconds))
        new.rename(self._offset)


@dataclass
class Town:
    """A market whose hosts lie on a disk of their own, if this may be made, and go by a clock that can be set."""

    stage: Stage
    clock: Clockwork
    disk: Path | None

    def fill_disk(self) -> None:
        """Leave no room on it: it shrinks to what is taken."""
        assert self.disk
        told = os.statvfs(self.disk)
        taken = (told.f_blocks - told.f_bfree) * told.f_frsize
        subprocess.run(["mount", "-o", f"remount,size={taken}", str(self.disk)], check=True)
        assert os.statvfs(self.disk).f_bavail == 0


@pytest.fixture
def town(bucket: Bucket, tmp_path: Path) -> Iterator[Town]:
    with ExitStack() as undo:
        clock, root = Clockwork(tmp_path / "clock"), tmp_path / "disk"
        root.mkdir()
        disk = root if undo.enter_context(small_disk(root)) else None
        hosts = WatchedHosts(root / "hosts", {**bucket.host_environment, "PYTHONPATH": str(clock.folder)})
        yield Town(undo.enter_context(open_stage(bucket, hosts, SwiftClock())), clock, disk)


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Put a small file system there; say whether that was allowed."""
    command = ["mount", "-t", "tmpfs", "-o", "size=1g,mode=700", "tmpfs", str(folder)]
    is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def hosts_of(stage: Stage) -> WatchedHosts:
    assert isinstance(stage.market.hosts, WatchedHosts)
    return stage.market.hosts


def pids_of(machine: Machine, word: str) -> list[int]:
    """Return the host's processes whose command line has this word."""
    found = []
    for pid in find_processes(f"{hosts_of(machine.stage).root}/{machine.id}"):
        with suppress(OSError):
            if any(part.endswith(word) for part in Path(f"/proc/{pid}/cmdline").read_text().split("\0")):
                found.append(pid)
    return found


def tell_lease(machine: Machine, remaining: Remaining, *, is_ready: bool) -> None:
    """Tell the machine how long it may last, as `up` does."""

    async def tell() -> None:
        async with await _log_in(machine.request, machine.instance, None, timedelta(seconds=30)) as there:
            await remote.ask(there, "lease", remaining.to_json(is_ready=is_ready))

    asyncio.run(tell())


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < until, what
        time.sleep(0.05)


def wait_until_gone(stage: Stage) -> None:
    wait_until(lambda: not stage.show(), "the rental does not end")
    assert all(row["to"] for row in stage.market.ledger()["instances"])


@contextmanager
def again_and_again(deed: Callable[[], None], seconds: float) -> Iterator[None]:
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(seconds):
            deed()

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def trouble(town: Town, machine: Machine, kinds: Sequence[str]) -> Iterator[None]:
    """Let a machine suffer from all of these at once."""

    def kill_agent() -> None:
        for pid in pids_of(machine, "../bundle/host/agent.py"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    with ExitStack() as undo:
        if "killed-agent" in kinds:
            undo.enter_context(again_and_again(kill_agent, 5.0))  # longer than a look at an engine that hangs
        if "full-disk" in kinds:
            town.fill_disk()
        if "market-down" in kinds:
            town.stage.market.fail("unavailable", on="destroy", times=3)
        if "clock-back" in kinds:
            town.clock.set_by(-86_400)
        yield


TROUBLES = ("killed-agent", "full-disk", "market-down", "clock-back")


QUICK = {("idle", ())}
"""For `make test`; tests/sandbox/test_agent.py has each rule there, with an agent and nothing else."""


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        pytest.param(
            *(name, kinds),
            id=f"{name}-{'whatever-goes-wrong' if kinds else 'plainly'}",
            marks=[] if (name, kinds) in QUICK else [pytest.mark.real],
        )
        for name in RULES
        for kinds in ((), TROUBLES)
    ],
)
def test_each_rule_ends_the_rental(town: Town, name: str, kinds: Sequence[str]) -> None:
    check(town, RULES[name], kinds)


@pytest.mark.real
@pytest.mark.parametrize("kind", TROUBLES)
@pytest.mark.parametrize("name", ["expired", "idle"])
def test_no_single_trouble_stops_a_rule(town: Town, name: str, kind: str) -> None:
    check(town, RULES[name], [kind])


def check(town: Town, rule: Rule, kinds: Sequence[str]) -> None:
    if "full-disk" in kinds and town.disk is None:
        pytest.skip("a small disk of the test's own cannot be mounted here: that takes root")
    machine = town.stage.create()
    rule.prepare(machine)
    began = time.monotonic()
    tell_lease(machine, rule.remaining, is_ready=rule.is_ready)
    with trouble(town, machine, kinds):
        wait_until_gone(town.stage)
        assert time.monotonic() - began >= rule.seconds
    deletes = town.stage.calls("DELETE", f"/api/v0/instances/{machine.id}")
    assert len(deletes) >= (4 if "market-down" in kinds else 1)


@pytest.mark.real
def test_work_is_never_cut_by_the_idle_rule(town: Town) -> None:
    machine = town.stage.create()
    tell_lease(machine, IDLE, is_ready=True)
    question = {"model": "tiny", "prompt": "Hello", "max_tokens": 700, "stream": True, "ignore_eos": True}
    headers = {"Authorization": f"Bearer {machine.outputs['client_token']}"}
    context = httpx.create_ssl_context(verify=False)
    with httpx.Client(verify=context, trust_env=False, timeout=60) as client:
        url = f"{machine.outputs['endpoint']}/v1/completions"
        with client.stream("POST", url, json=question, headers=headers) as answer:
            text = answer.read().decode()
    assert answer.status_code == 200
    assert text.endswith("data: [DONE]\n\n"), "seven seconds of tokens, the limit is three"
    wait_until_gone(town.stage)


@pytest.mark.real
def test_a_supervisor_and_an_agent_that_are_killed_are_followed_by_the_shell(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dynamic_providers.vast import lifecycle

    monkeypatch.setattr(lifecycle, "GRACE", timedelta(seconds=-50))  # one minute of idling and this: ten seconds
    machine = town.stage.create(town.stage.request(idle_minutes=1))
    for word in ("bundle/host/start.py", "bundle/host/agent.py"):
        for pid in pids_of(machine, word):
            os.kill(pid, signal.SIGKILL)
    assert town.stage.show()
    wait_until_gone(town.stage)
