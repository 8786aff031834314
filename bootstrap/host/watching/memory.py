"""What the agent must know again after it was killed at any moment. Pure.

Runs on the machine: standard library and the lease's rules, Python 3.11.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

from bootstrap.host.watching.engine import Engine
from bootstrap.host.watching.lease import Use
from bootstrap.host.watching.moments import Moment, parse_moment, parse_seconds
from bootstrap.host.watching.switch import Ending
from dynamic_providers.lease.policy import Activity, End, Reading


@dataclass(frozen=True)
class Memory:
    """Everything that one look leaves to the next.

    Attributes:
        at: The last look; every duration in here counts up to then.
        lease: `lease.json` as it was read; outlives the file.
        use: Of that lease; None without one.
        activity: Since the machine got ready.
        active_at: When work was seen last, unix seconds.
        drain_left: Seconds for which a caller has the door closed.
        engine: The engine's story.
        ending: None as long as the rental goes on.
    """

    at: Moment
    lease: Mapping[str, Any] = field(default_factory=dict)
    use: Use | None = None
    activity: Activity = field(default_factory=Activity)
    active_at: float | None = None
    drain_left: float = 0.0
    engine: Engine = field(default_factory=Engine)
    ending: Ending | None = None


def render_memory(memory: Memory) -> str:
    """Return the text to keep."""
    return json.dumps(asdict(memory), default=_plain, separators=(",", ":"))


def _plain(value: object) -> object:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, End):
        return value.value
    raise TypeError(f"{value!r} cannot be kept")


def parse_memory(raw: Mapping[str, Any]) -> Memory:
    """Return what was kept.

    Raises:
        ValueError: It is not what we write.
    """
    try:
        at, use, ending, activity = (raw[name] for name in ("at", "use", "ending", "activity"))
        return Memory(
            at=parse_moment(at),
            lease=dict(raw["lease"]),
            use=use and Use(parse_seconds(use["counted"]), parse_seconds(use["used"]), parse_moment(use["at"])),
            activity=_parse_activity(activity),
            active_at=None if raw["active_at"] is None else parse_seconds(raw["active_at"]),
            drain_left=parse_seconds(raw["drain_left"]),
            engine=_parse_engine(raw["engine"]),
            ending=ending and Ending(End(ending["end"]), parse_seconds(ending["seconds"]), ending["is_final"] is True),
        )
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError("not a memory of ours") from error


def _parse_activity(raw: Mapping[str, Any]) -> Activity:
    idle, unknown, stalled = (
        timedelta(seconds=parse_seconds(raw[name])) for name in ("idle_for", "unknown_for", "stalled_for")
    )
    base = raw["baseline"]
    baseline = base and Reading(
        int(parse_seconds(base["in_flight"])),
        parse_seconds(base["work"]),
        None if base["started_at"] is None else parse_seconds(base["started_at"]),
    )
    return Activity(idle, unknown, stalled, raw["is_busy"] is True, baseline)


def _parse_engine(raw: Mapping[str, Any]) -> Engine:
    engine = Engine(**raw)
    numbers = (engine.restarts, engine.tries, engine.healthy_for, engine.sick_for, engine.started, engine.wait or 0.0)
    for number in (*numbers, *engine.exits.values()):
        parse_seconds(number)
    return engine
