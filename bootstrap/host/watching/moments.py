"""How much time has passed, by clocks of which one may be set and the other begins anew with the machine. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LONGEST_SECONDS = 1e11
"""Three thousand years: no clock of ours is beyond, and `timedelta` can still count so far."""


@dataclass(frozen=True)
class Moment:
    """A moment by both clocks.

    Attributes:
        boot_id: Which life of the machine `boottime` belongs to.
        boottime: Seconds since it began, sleep included; nobody can set it.
        wall: Unix seconds.
    """

    boot_id: str
    boottime: float
    wall: float


def parse_moment(raw: Mapping[str, Any]) -> Moment:
    """Return the moment that was written down.

    Raises:
        ValueError: It is none.
    """
    return Moment(str(raw.get("boot_id")), parse_seconds(raw.get("boottime")), parse_seconds(raw.get("wall")))


def parse_seconds(raw: object) -> float:
    """Return a number of seconds, whatever its sign.

    Raises:
        ValueError: It is none that one can count with.
    """
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not -LONGEST_SECONDS < raw < LONGEST_SECONDS:
        raise ValueError("no number of seconds")
    return float(raw)


def seconds_between(since: Moment, now: Moment) -> float:
    """Return what has passed as far as it can be known; never less than nothing."""
    if since.boot_id == now.boot_id:
        return max(0.0, now.boottime - since.boottime)
    return max(0.0, now.wall - since.wall)


def most_between(since: Moment, now: Moment) -> float:
    """Return what has passed by the clock that says more: a clock that was set back gives nobody time."""
    return max(seconds_between(since, now), now.wall - since.wall)
