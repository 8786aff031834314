"""How a rental is ended from inside: close the door, look again, then destroy, for ever. Pure.

Runs on the machine: the lease's rules, Python 3.11.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dynamic_providers.lease.policy import End


@dataclass(frozen=True)
class Ending:
    """An ending under way.

    Attributes:
        end: The rule that asked for it.
        seconds: For how long.
        is_final: The market has been asked, or may have been: there is no way back.
    """

    end: End
    seconds: float
    is_final: bool = False


@dataclass(frozen=True)
class Situation:
    """What one look says of ending the rental.

    Attributes:
        end: The rule that asks for it; None: none does.
        overdue: For how long the rule has held in seconds, as the lease alone tells.
        in_flight: Requests that are not answered yet; None if unknown.
        drain: Seconds that they may take.
        elapsed: Seconds since the look before.
    """

    end: End | None
    overdue: float
    in_flight: int | None
    drain: float
    elapsed: float


def step(ending: Ending | None, now: Situation) -> Ending | None:
    """Return the ending after one more look; None: there is none, the door may open.

    The first look closes the door. Only a look with the door shut may destroy: what was let in before is seen by then,
    and makes the machine busy. A lease that is over grants the requests that run their time and no more, even where
    the agent is killed again and again and can write nothing down.
    """
    if ending and ending.is_final:
        return replace(ending, seconds=ending.seconds + now.elapsed)
    if now.end is None:
        return None
    seconds = max(ending.seconds + now.elapsed if ending else 0.0, now.overdue)
    was_shut = ending is not None or now.overdue >= now.drain > 0
    # What could not be known for so long that it ends the rental, a little more waiting does not tell either.
    is_empty = now.in_flight == 0 or (now.in_flight is None and now.end is End.UNKNOWN)
    return Ending(now.end, seconds, is_final=was_shut and (is_empty or seconds >= now.drain))
