"""What the agent asks of the supervisor, and what it does to the engine where there is none any more.

Runs on the machine: standard library only, Python 3.11.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import xmlrpc.client
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

from bootstrap.host.watching.engine import NOT_THERE, Program
from bootstrap.host.watching.looks import TIMEOUT_SECONDS
from bootstrap.host.watching.sockets import open_supervisor

LOG_BYTES = 65536
ERRORS = (OSError, http.client.HTTPException, xmlrpc.client.Error, ExpatError)


def _ask(method: str, *arguments: object) -> Any:
    with open_supervisor(TIMEOUT_SECONDS) as proxy:
        return getattr(proxy.supervisor, method)(*arguments)


def read_program(name: str) -> Program | None:
    """Return how a program is doing; None if the supervisor does not answer."""
    try:
        info = _ask("getProcessInfo", name)
    except ERRORS:
        return None
    return Program(info["statename"], info["start"], info["stop"])


def start(name: str) -> bool:
    """Have a program started; does not wait for it. Says whether the supervisor took it on."""
    try:
        _ask("startProcess", name, False)
    except ERRORS:
        return False
    return True


def end_engine() -> bool:
    """Have the engine end, by the supervisor or without it; does not wait for it. Says whether it is gone."""
    program = read_program("engine")
    if program is None:
        return _kill_group(Path("engine.group"))
    if program.state in NOT_THERE:
        return True
    with contextlib.suppress(*ERRORS):
        _ask("stopProcess", "engine", False)
    return False


def _kill_group(note: Path) -> bool:
    """Kill what `program.sh` started last; True once nothing of it is left."""
    try:
        os.killpg(int(note.read_text()), signal.SIGKILL)
    except (OSError, ValueError) as error:
        return not isinstance(error, PermissionError)
    return False


def last_words(name: str) -> list[str]:
    """Return the last lines that the program printed since it was started last."""
    try:
        with Path("../log", f"{name}.log").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return text.rpartition(f"=== {name} starts as ")[2].splitlines()
