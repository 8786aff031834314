"""Commands on a machine, and what their failing means."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from bootstrap.render import ROOT
from bootstrap.steps import COMMAND_TIMEOUT, redact
from dynamic_providers.errors import BootError

if TYPE_CHECKING:  # who logs in imports it: asyncssh takes a third of a second
    from bootstrap.ssh import Completed, Machine

LOOK_SECONDS = 0.5
FIRST_LOOK_SECONDS = 0.05
"""Small models are there at once; the pauses between looks grow from this to `LOOK_SECONDS`."""
PAUSE_GROWTH = 1.3
STOP_TIMEOUT = timedelta(minutes=2)
"""Longer than the drain of door and engine together."""
RUNNING = {"STARTING", "RUNNING"}


async def must(
    machine: Machine, step: str, command: str, *, stdin: bytes | None = None, timeout: timedelta = COMMAND_TIMEOUT
) -> str:
    """Run a command and return what it prints.

    Raises:
        BootError: It failed.
    """
    return _output(step, await machine.run(command, stdin=stdin, timeout=timeout))


async def ask(machine: Machine, command: str, *arguments: object) -> Any:
    """Run a command of `host/machine.py`; arguments and answer are JSON.

    Raises:
        BootError: It failed.
    """
    question = json.dumps([command, *arguments])
    done = await machine.ask(f"python3 {ROOT}/bundle/host/machine.py", question, timeout=STOP_TIMEOUT)
    return json.loads(_output(command, done))


def _output(step: str, done: Completed) -> str:
    if done.exit_status:
        last = "\n".join((done.stderr or done.stdout).splitlines()[-10:])
        raise BootError(step, f"a command failed on the machine (exit {done.exit_status}): {redact(last, ())}")
    return done.stdout


def growing_pauses() -> Iterator[float]:
    """Yield the pauses between looks, in seconds."""
    pause = FIRST_LOOK_SECONDS
    while True:
        yield min(pause, LOOK_SECONDS)
        pause = min(pause * PAUSE_GROWTH, LOOK_SECONDS)
