"""Finding and ending every process of a host, daemons included.

A host's processes carry a mark in their environment, which children inherit however they detach. A child that
was started with a cleared environment is found as long as one of its parents is.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

MARK = "SANDBOX_HOST"
GRACE_SECONDS = 1.0
"""From TERM to KILL. Less than supervisord takes to end its children: what it leaves, KILL ends."""
KILL_SECONDS = 3.0
POLL_SECONDS = 0.03


def find_processes(mark: str) -> set[int]:
    """Find the processes of the host with this mark, or of every host whose mark begins so if it ends in a slash."""
    wanted = f"{MARK}={mark}".encode()
    parents: dict[int, int] = {}
    found: set[int] = set()
    for pid in _pids():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
            environ = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:  # it ended just now, or is another user's
            continue
        state, parent = stat.rpartition(")")[2].split()[:2]
        if state == "Z":
            continue
        parents[pid] = int(parent)
        if any(item.startswith(wanted) if mark.endswith("/") else item == wanted for item in environ.split(b"\0")):
            found.add(pid)
    return _with_children(found, parents) - {os.getpid()}


async def end_processes(mark: str) -> None:
    """End the processes: TERM, and KILL for those that take too long over it.

    Raises:
        OSError: Some would not die.
    """
    deadline = time.monotonic() + GRACE_SECONDS
    known = find_processes(mark)
    _signal(known, signal.SIGTERM)
    while known := find_processes(mark) | _alive(known):
        if time.monotonic() > deadline:
            _signal(known, signal.SIGKILL)
        if time.monotonic() > deadline + KILL_SECONDS:
            raise OSError(f"processes {sorted(known)} of {mark} do not end")
        await asyncio.sleep(POLL_SECONDS)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _with_children(found: set[int], parents: dict[int, int]) -> set[int]:
    everything = set(found)
    while more := {pid for pid, parent in parents.items() if parent in everything} - everything:
        everything |= more
    return everything


def _alive(pids: Iterable[int]) -> set[int]:
    """Those of them that still run; a process that was found once is followed even when its parent has gone."""
    alive = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            alive.add(pid)
    return alive


def _signal(pids: Iterable[int], signum: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            continue
