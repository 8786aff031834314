"""The rules of a lease: pure, shared by whoever brings machines up, whoever takes them back, and the machine itself."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import TypeVar

from dynamic_providers.lease.label import Phase
from dynamic_providers.lease.market import Rented

MAX_LIFETIME = timedelta(hours=720)
"""The longest lease that can be asked for. What carries our prefix and says no expiry that we can read ends then."""

GRACE = timedelta(minutes=10)
"""Added to the idle limit where the machine judges itself: the reaper goes first."""

STALLED = timedelta(hours=1)
"""Requests in flight and not one token for so long are no work: an engine whose GPU hangs shows its last gauges for
ever. Longer than any prefill; a longer idle limit counts before it."""

_ZERO = timedelta(0)

AnyRented = TypeVar("AnyRented", bound=Rented)


class Action(Enum):
    """What is to be done with an instance."""

    KEEP = "keep"
    REAP = "reap"


@dataclass(frozen=True)
class Verdict:
    """What `decide` says of one instance.

    Attributes:
        action: What is to be done.
        reason: Why, for the log.
        is_alarming: Whether a person should look at it, whatever is done.
    """

    action: Action
    reason: str
    is_alarming: bool = False


def decide(machine: Rented, fleet_id: str, now: datetime) -> Verdict:
    """Say what to do with one instance. The first rule that holds wins; their numbers are the design's.

    Args:
        machine: As the market lists it.
        fleet_id: The fleet that is looked after.
        now: By the market's clock.
    """
    label = machine.parsed
    if not machine.is_ours:
        return Verdict(Action.KEEP, "1: foreign")
    if label is None:  # ours, and nobody can tell whose: it may not live for ever
        ends_at = machine.started_at + MAX_LIFETIME
        action, until = (Action.REAP, "over since") if now >= ends_at else (Action.KEEP, "kept until")
        return Verdict(action, f"2: label {machine.label!r} cannot be read, {until} {ends_at:%FT%TZ}", is_alarming=True)
    if now >= label.expires_at:
        return Verdict(Action.REAP, f"2: lease over since {label.expires_at:%FT%TZ}")
    if label.fleet_id != fleet_id:
        return Verdict(Action.KEEP, f"1: of fleet {label.fleet_id}")
    if label.phase is Phase.BOOTING:
        if now >= label.deadline:
            return Verdict(Action.REAP, f"6: nobody brings it up any more, its deadline was {label.deadline:%FT%TZ}")
        return Verdict(Action.KEEP, f"6: booting or updating until {label.deadline:%FT%TZ}")
    return Verdict(Action.KEEP, "10: nothing speaks against it")


def choose_keeper(twins: Sequence[AnyRented], busy: Collection[int] = ()) -> tuple[AnyRented | None, list[AnyRented]]:
    """Return the one machine of a lease to keep, and the others, which go.

    Busy before ready before oldest. Two parties that look at the same list choose the same.

    Args:
        twins: All instances of one lease.
        busy: Ids of those that are seen to serve somebody.
    """
    if not twins:
        return None, []

    def rank(machine: Rented) -> tuple[bool, bool, float, int]:
        label = machine.parsed
        is_ready = label is not None and label.phase is Phase.READY
        return (machine.id not in busy, not is_ready, machine.started_at.timestamp(), machine.id)

    keeper, *others = sorted(twins, key=rank)
    return keeper, others


@dataclass(frozen=True)
class Reading:
    """What the engine's own metrics say.

    Attributes:
        in_flight: Requests that run or wait.
        work: Sum of the counters that only work moves; they begin at zero with the process.
        started_at: Start of the process in unix seconds; None if the page does not say.
    """

    in_flight: int
    work: float
    started_at: float | None


@dataclass(frozen=True)
class Sample:
    """What one look shows; None where a layer cannot be read or does not make sense.

    Attributes:
        engine: Of a healthy engine. What an unhealthy one shows may be its last figures, for ever.
        at_door: Authenticated requests that the front door has handed to the engine and that are not answered yet.
    """

    engine: Reading | None
    at_door: int | None


@dataclass(frozen=True)
class Activity:
    """What all looks since the machine got ready say together.

    Attributes:
        idle_for: How long it is known that nobody was served. Stands still while that is unknown.
        unknown_for: How long it has not been known; zero after a look that tells.
        stalled_for: How long requests have been in flight without any progress.
        is_busy: Whether the last look saw work.
        baseline: The last reading that could be had.
    """

    idle_for: timedelta = _ZERO
    unknown_for: timedelta = _ZERO
    stalled_for: timedelta = _ZERO
    is_busy: bool = False
    baseline: Reading | None = None


def observe(history: Activity, sample: Sample, elapsed: timedelta) -> Activity:
    """Return the history with one more look.

    The first reading is the baseline: what was counted before, the readiness probe's work, is never activity. A counter
    that fell or another process is a restart, and counts as activity. A door that cannot be read may hide requests that
    the engine has not taken yet, so an engine at rest behind it is not known to be idle; work that is seen, by either
    witness, is work, whatever else cannot be read.

    Args:
        history: Up to the look before.
        sample: What is seen now.
        elapsed: Since the look before.
    """
    engine, before = sample.engine, history.baseline
    has_moved = engine is not None and before is not None and _progress(engine) != _progress(before)
    in_flight = (engine.in_flight if engine else 0) + (sample.at_door or 0)
    is_busy = has_moved or in_flight > 0
    is_known = is_busy or (engine is not None and sample.at_door is not None)
    idle_for, stalled_for = history.idle_for, history.stalled_for
    if is_busy:
        idle_for = _ZERO
    elif is_known and before is not None:
        idle_for += elapsed
    if engine is not None and (has_moved or not in_flight):
        stalled_for = _ZERO
    elif in_flight and before is not None:
        stalled_for += elapsed
    unknown_for = _ZERO if is_known else history.unknown_for + elapsed
    return Activity(idle_for, unknown_for, stalled_for, is_busy, engine or before)


def _progress(reading: Reading) -> tuple[float, float | None]:
    return reading.work, reading.started_at


_GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting")
_WORK = "vllm:prompt_tokens_total"
_MORE_WORK = (
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:time_to_first_token_seconds_count",
)
_START = "process_start_time_seconds"
_EXACT = 2**53
"""From here on a float does not see that one was added."""


def parse_reading(page: str) -> Reading | None:
    """Return what vLLM's `/metrics` says; None if it lacks what is needed or a figure makes no sense.

    `request_success_total` alone would miss clients that hang up, and short requests fall between two looks at the
    gauges, so everything that moves is added up. Source: vLLM 0.32, tried; its code: with several API servers the start
    of the process is not on the page.
    """
    found = {name: _sum_series(page, name) for name in (*_GAUGES, _WORK, *_MORE_WORK, _START)}
    sums = {name: value for name, value in found.items() if value is not None}
    if not sums.keys() >= {*_GAUGES, _WORK} or not all(0 <= value < _EXACT for value in sums.values()):
        return None  # what is no number compares as false
    in_flight = sum(sums[name] for name in _GAUGES)
    return Reading(int(in_flight), sum(sums.get(name, 0) for name in (_WORK, *_MORE_WORK)), sums.get(_START))


def _sum_series(page: str, name: str) -> float | None:
    """Return the sum over all label sets; None if there is no such series, NaN if one of them is no number."""
    labels = r'(?:\{(?:[^"}\n]|"(?:[^"\\\n]|\\.)*")*\})?'
    values = re.findall(rf"^{re.escape(name)}{labels}[ \t]+(\S+)", page, flags=re.MULTILINE)
    try:
        return sum(map(float, values)) if values else None
    except ValueError:
        return float("nan")


class End(Enum):
    """The rule by which a machine ends its own rental."""

    EXPIRED = "expired"
    DEADLINE = "deadline"
    IDLE = "idle"
    UNKNOWN = "unknown"
    STALLED = "stalled"


@dataclass(frozen=True)
class Left:
    """What is left of a lease, as the machine itself counts it.

    Attributes:
        phase: Booting or updating until the deadline, or ready.
        expires_in: Until the lease is over; may be negative.
        deadline_in: Until the deadline of the phase; may be negative.
        idle: The idle limit.
        grace: Added to it: others go first.
    """

    phase: Phase
    expires_in: timedelta
    deadline_in: timedelta
    idle: timedelta
    grace: timedelta = GRACE


def judge_self(left: Left, activity: Activity) -> End | None:
    """Say by which rule the machine has to end its own rental; None: it goes on. The first rule that holds wins.

    The last resort, for when the reaper and whoever rented it are gone: it asks nobody.
    """
    if left.expires_in <= _ZERO:
        return End.EXPIRED
    if left.phase is Phase.BOOTING:  # who is served meanwhile is not cut: nobody may be left to finish an update
        return End.DEADLINE if left.deadline_in <= _ZERO and not activity.is_busy else None
    limit = left.idle + left.grace
    is_known_idle = activity.unknown_for <= _ZERO and not activity.is_busy
    if is_known_idle and activity.idle_for >= limit:
        return End.IDLE
    if activity.unknown_for >= limit:
        return End.UNKNOWN
    if activity.stalled_for >= max(limit, STALLED):
        return End.STALLED
    return None
