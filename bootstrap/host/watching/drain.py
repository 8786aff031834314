"""The file by which the front door knows how long it is closed.

The door compares it with its own clock for each request, so that it opens by itself where the agent is dead.
Runs on the machine: standard library only, Python 3.11.
"""

from __future__ import annotations

import math

LONGEST_SECONDS = 3600
OPEN = "0"
OWN_SECONDS = 60.0
"""For how long an ending closes the door at each look; a look that hangs takes less."""


def parse_drain(body: object) -> int:
    """Return the seconds that a `PUT /control/drain` asks for.

    Raises:
        ValueError: What is wrong with it, for whoever asked.
    """
    seconds = body.get("seconds") if isinstance(body, dict) else None
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not 1 <= seconds <= LONGEST_SECONDS:
        raise ValueError(f'the body must be {{"seconds": n}}, n a whole number from 1 to {LONGEST_SECONDS}')
    return seconds


def render_drain(seconds_left: float, wall: float) -> str:
    """Return what the file says: until when, by the clock that the door has now."""
    return str(math.ceil(wall + seconds_left)) if seconds_left > 0 else OPEN
