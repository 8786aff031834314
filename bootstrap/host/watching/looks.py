"""Ask what runs beside us over its unix socket, with an end to every wait.

Runs on the machine: standard library and the lease's rules, Python 3.11.
"""

from __future__ import annotations

import http.client
import time

from bootstrap.host.watching.door import handed_in_flight
from bootstrap.host.watching.mind import Look
from bootstrap.host.watching.sockets import UnixConnection
from dynamic_providers.lease.policy import Sample, parse_reading

TIMEOUT_SECONDS = 3.0
PAGE_BYTES = 8 * 2**20
PIECE_BYTES = 65536


def get(path: str, target: str) -> str | None:
    """Return what is answered with 200 within the time; None if nothing is."""
    connection = UnixConnection(path, TIMEOUT_SECONDS)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        if answer.status != 200:
            return None
        pieces, size = [], 0
        # A server that dribbles keeps every single wait short; what counts is all of them.
        while piece := answer.read1(PIECE_BYTES):
            pieces.append(piece)
            size += len(piece)
            if size > PAGE_BYTES or time.monotonic() > deadline:
                return None
        if answer.length:  # it broke off
            return None
        return b"".join(pieces).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def look_around() -> Look:
    """Look at engine and door."""
    page = get("engine.sock", "/metrics")
    is_healthy = page is not None and get("engine.sock", "/health") is not None
    door = get("door.sock", "/metrics")
    sample = Sample(
        engine=parse_reading(page) if page is not None and is_healthy else None,
        at_door=handed_in_flight(door) if door is not None else None,
    )
    return Look(sample, is_healthy)
