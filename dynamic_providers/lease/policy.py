"""The rules of a lease: pure, shared by whoever brings machines up and whoever takes them back."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import TypeVar

from dynamic_providers.lease.label import Phase
from dynamic_providers.lease.market import Rented

MAX_LIFETIME = timedelta(hours=720)
"""The longest lease that can be asked for. What carries our prefix and says no expiry that we can read ends then."""

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
