"""What one more look does to all that the agent knows. Pure: the deeds that follow are `watch.py`'s.

Runs on the machine: the lease's rules, Python 3.11.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from bootstrap.host.watching.drain import OWN_SECONDS
from bootstrap.host.watching.engine import NOT_THERE, Engine, Program, apply_settings, note_end, observe_engine
from bootstrap.host.watching.lease import Lease, Use, begin, go_on, parse_lease, what_is_left
from bootstrap.host.watching.memory import Memory
from bootstrap.host.watching.moments import Moment, seconds_between
from bootstrap.host.watching.reasons import Reason
from bootstrap.host.watching.switch import Situation, step
from dynamic_providers.lease.label import Phase
from dynamic_providers.lease.policy import Activity, End, Left, Sample, judge_self, observe

WAITING_TICK_SECONDS = 1.0
"""From look to look while somebody waits: for the machine to come up, or for requests to be answered."""
SHORTEST_SECONDS = 0.2
LONGEST_GAP_SECONDS = 60.0
"""What counts of the time between two looks: a machine that was off was neither idle nor unknown for all of it."""


@dataclass(frozen=True)
class Look:
    """What engine and door show at one moment.

    Attributes:
        sample: What counts as activity.
        is_healthy: Whether the engine calls itself healthy; only then its figures count.
    """

    sample: Sample
    is_healthy: bool


@dataclass(frozen=True)
class Seen:
    """What one look brought.

    Attributes:
        lease: `lease.json`; None if there is none that can be read.
        settings: Hash of what is applied; None while that is being changed.
        look: At engine and door, after both were read.
        program: The engine's; None if the supervisor does not answer.
        why: Why the engine ended, if it did so by itself and that was not dealt with yet.
    """

    lease: Mapping[str, Any] | None
    settings: str | None
    look: Look
    program: Program | None
    why: Reason | None = None


def advance(memory: Memory, seen: Seen, now: Moment) -> Memory:
    """Return what is known after a look."""
    elapsed = seconds_between(memory.at, now)
    memory = _advance_lease(memory, seen.lease, now)
    lease = lease_of(memory)
    activity, ending = memory.activity, memory.ending
    if lease:
        activity = observe(activity, _sample_of(seen), timedelta(seconds=min(elapsed, LONGEST_GAP_SECONDS)))
    engine = _advance_engine(memory, seen, elapsed)
    left = left_of(memory)
    if lease and left:
        end, in_flight = judge_self(left, activity), count_in_flight(seen.look, seen.program)
        ending = step(ending, Situation(end, _overdue_seconds(lease, memory.use, end), in_flight, lease.drain, elapsed))
    return replace(
        memory,
        at=now,
        activity=activity,
        active_at=now.wall if activity.is_busy and lease and lease.phase is Phase.READY else memory.active_at,
        drain_left=max(0.0, memory.drain_left - elapsed),
        engine=engine,
        ending=ending,
    )


def _sample_of(seen: Seen) -> Sample:
    """Return what counts as activity: who asks an engine that is not there, again and again, is not served."""
    sample = seen.look.sample
    is_gone = seen.program is not None and seen.program.state in NOT_THERE
    return replace(sample, at_door=0) if is_gone and sample.at_door else sample


def _overdue_seconds(lease: Lease, use: Use | None, end: End | None) -> float:
    """Return how long ago the rule came to hold, as the lease alone tells: no restart of the agent begins it anew.

    By no clock that can be set: one that jumps ahead ends a lease, but not the drain that it grants.
    """
    since = {End.EXPIRED: lease.expires_in, End.DEADLINE: lease.deadline_in}.get(end or End.IDLE)
    return max(0.0, use.counted - since) if use and since is not None else 0.0


def _advance_lease(memory: Memory, raw: Mapping[str, Any] | None, now: Moment) -> Memory:
    """Take a new lease, or use more of the one that is known: a file that is lost or spoilt frees nobody from it."""
    told = parse_lease(raw) if raw is not None and raw != memory.lease else None
    known = lease_of(memory)
    if told and raw is not None:
        # What happened before the machine was said to be ready, the probe that found it so included, is no activity.
        is_same_phase = known is not None and known.phase is told.phase
        activity = memory.activity if is_same_phase else Activity()
        return replace(memory, lease=dict(raw), use=begin(told, now), activity=activity)
    if known is None:
        return memory
    return replace(memory, use=go_on(memory.use, known, now) if memory.use else begin(known, now))


def _advance_engine(memory: Memory, seen: Seen, elapsed: float) -> Engine:
    engine = apply_settings(memory.engine, seen.settings)
    engine = observe_engine(engine, seen.program, is_healthy=seen.look.is_healthy, elapsed=elapsed)
    if seen.why and seen.program:
        engine = note_end(engine, seen.program, seen.why.name, seen.why.message)
    return engine


def lease_of(memory: Memory) -> Lease | None:
    """Return the lease that is known."""
    return parse_lease(memory.lease)


def left_of(memory: Memory) -> Left | None:
    """Return what was left of it at the last look."""
    lease = lease_of(memory)
    return what_is_left(lease, memory.use) if lease and memory.use else None


def count_in_flight(look: Look, program: Program | None) -> int | None:
    """Return how many requests are not answered yet; None if that cannot be known.

    Neither witness alone can say that there are none: the door has not counted what ran when it was reloaded, the
    engine not what waits before it.
    """
    if program and program.state in NOT_THERE:
        return 0
    door, engine = look.sample.at_door, look.sample.engine
    if door is None or engine is None:
        return door or (engine.in_flight if engine else 0) or None
    return max(door, engine.in_flight)


def drain_seconds(memory: Memory, now: Moment) -> float:
    """Return for how long the door is to be closed from now on."""
    asked = max(0.0, memory.drain_left - seconds_between(memory.at, now))
    return max(asked, OWN_SECONDS) if memory.ending else asked


def is_idle_known(memory: Memory) -> bool:
    """Tell whether the last look could tell that nobody, or somebody, is served."""
    lease = lease_of(memory)
    return lease is not None and lease.phase is Phase.READY and memory.activity.unknown_for <= timedelta(0)


def pause_seconds(memory: Memory) -> float:
    """Return how long to wait for the next look: no limit passes unseen for long."""
    lease, left = lease_of(memory), left_of(memory)
    if lease is None or left is None:
        return WAITING_TICK_SECONDS
    limits = [lease.tick, left.expires_in.total_seconds()]
    if lease.phase is Phase.BOOTING:
        limits += [left.deadline_in.total_seconds(), WAITING_TICK_SECONDS]
    if memory.engine.wait is not None:
        limits.append(memory.engine.wait)
    if memory.ending:
        limits.append(WAITING_TICK_SECONDS)
    return max(SHORTEST_SECONDS, min(limit for limit in limits if limit > 0))
