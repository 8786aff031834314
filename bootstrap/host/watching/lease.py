"""The machine's own lease: how much of it is used up, whatever happened to clocks, agent and machine meanwhile. Pure.

Runs on the machine: standard library and the lease's rules, Python 3.11.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from bootstrap.host.watching.moments import Moment, most_between, parse_moment, parse_seconds, seconds_between
from dynamic_providers.lease.label import Phase
from dynamic_providers.lease.policy import MAX_LIFETIME, Left

TICK_SECONDS = 5.0
SHORTEST_TICK_SECONDS = 0.2
LOOKS_PER_LIMIT = 10


@dataclass(frozen=True)
class Lease:
    """What the machine was told, by `machine.py lease`: seconds from the moment `at`.

    Attributes:
        phase: Booting or updating until the deadline, or ready.
        expires_in: Until it is over.
        deadline_in: Until nobody brings the machine up any more.
        idle: The idle limit.
        grace: Added to it.
        drain: How long running requests may take when the rental ends.
        at: When it was told.
    """

    phase: Phase
    expires_in: float
    deadline_in: float
    idle: float
    grace: float
    drain: float
    at: Moment

    @property
    def tick(self) -> float:
        """Seconds from look to look: often enough for the shortest limit."""
        shortest = min(self.idle + self.grace, max(self.expires_in, 0.0))
        return min(max(shortest / LOOKS_PER_LIMIT, SHORTEST_TICK_SECONDS), TICK_SECONDS)


def parse_lease(raw: Mapping[str, Any]) -> Lease | None:
    """Return what `lease.json` says; None if it cannot be read. No figure counts for more than the longest lease."""
    try:
        seconds = {
            name: min(parse_seconds(raw.get(f"{name}{unit}")), MAX_LIFETIME.total_seconds())
            for name, unit in (
                ("expires_in", ""),
                ("deadline_in", ""),
                ("idle", "_seconds"),
                ("grace", "_seconds"),
                ("drain", "_seconds"),
            )
        }
        return Lease(phase=Phase(raw.get("phase")), at=parse_moment(raw.get("at") or {}), **seconds)
    except (ValueError, AttributeError):
        return None


@dataclass(frozen=True)
class Use:
    """How much of a lease is used up.

    Attributes:
        counted: Seconds that were counted since it was told, by no clock that can be set.
        used: As `counted`, or as the wall clock has it if that is more.
        at: Up to when.
    """

    counted: float
    used: float
    at: Moment


def begin(lease: Lease, now: Moment) -> Use:
    """Return what is used up of a lease that is seen for the first time."""
    used = most_between(lease.at, now)
    return Use(seconds_between(lease.at, now), used, now)


def go_on(use: Use, lease: Lease, now: Moment) -> Use:
    """Return the use up to *now*.

    A machine that was started anew lost count of the time between; what was used up before stays used up. A wall clock
    that ran ahead and was put right counts no longer.
    """
    former = use.counted if use.at.boot_id == now.boot_id else max(use.counted, use.used)
    counted = former + seconds_between(use.at, now)
    return replace(use, counted=counted, used=max(counted, most_between(lease.at, now)), at=now)


def what_is_left(lease: Lease, use: Use) -> Left:
    """Return what the rules judge by."""
    return Left(
        lease.phase,
        expires_in=timedelta(seconds=lease.expires_in - use.used),
        deadline_in=timedelta(seconds=lease.deadline_in - use.used),
        idle=timedelta(seconds=lease.idle),
        grace=timedelta(seconds=lease.grace),
    )
