"""The label on a rented instance: all that is needed to end it without any state.

`gpu-on-demand/1/<expires>/<b|r><deadline>/<idle min>/<fleet>/<uid>/<run>/<stack>`

At most 100 characters of `[a-z0-9/.-]`; times in unix seconds; essentials first, so that a market that cuts the tail
costs only the stack's name.
"""

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Self

PREFIX = "gpu-on-demand/"
MAX_LENGTH = 100
UID_LENGTH = 12

_PATTERN = re.compile(
    PREFIX
    + r"1/(?P<expires>\d{1,11})/(?P<phase>[br])(?P<deadline>\d{1,11})/(?P<idle>\d{1,6})/(?P<fleet>[a-z0-9]{1,16})"
    rf"/(?P<uid>[a-z0-9]{{{UID_LENGTH}}})(?![^/])(?:/(?P<run>[a-z0-9]*)(?:/(?P<stack>[a-z0-9.-]*))?)?"
)


class Phase(Enum):
    """What the machine is doing by our own account."""

    BOOTING = "b"  # or updating; past its deadline nobody brings it up any more
    READY = "r"


@dataclass(frozen=True)
class Label:
    """A readable label of ours.

    Attributes:
        expires_at: The lease's end. Past it the instance must be gone.
        phase: Booting (or updating) until `deadline`, or ready.
        deadline: Meaningful while booting.
        idle_minutes: Unused for this long, the machine goes back.
        fleet_id: Whose it is.
        uid: Which lease of that fleet.
        run: The run that last took charge of it: its start in unix seconds, base 36.
        stack: For people; may be cut.
    """

    expires_at: datetime
    phase: Phase
    deadline: datetime
    idle_minutes: int
    fleet_id: str
    uid: str
    run: str
    stack: str

    def render(self) -> str:
        """Return the text to put on the instance."""
        stack = re.sub(r"[^a-z0-9.-]+", "-", self.stack.lower())
        parts = (
            f"{PREFIX}1",
            str(_seconds(self.expires_at)),
            f"{self.phase.value}{_seconds(self.deadline)}",
            str(self.idle_minutes),
            self.fleet_id,
            self.uid,
            self.run,
            stack,
        )
        return "/".join(parts)[:MAX_LENGTH]

    def ready(self) -> Self:
        """Return the label of the same lease, serving."""
        return replace(self, phase=Phase.READY)

    def is_of_same_run_as(self, other: Self) -> bool:
        """Say whether one run of one lease wrote both."""
        return (self.fleet_id, self.uid, self.run) == (other.fleet_id, other.uid, other.run)

    def is_of_later_run_than(self, other: Self) -> bool:
        """Say whether a run that began after the other's has taken charge of the machine."""
        return (len(self.run), self.run) > (len(other.run), other.run)


def parse_label(text: str | None) -> Label | None:
    """Return what the label says, None if it is not ours or cannot be read (ask `is_ours`)."""
    match = _PATTERN.match(text or "")
    if match is None:
        return None
    return Label(
        expires_at=_instant(match["expires"]),
        phase=Phase(match["phase"]),
        deadline=_instant(match["deadline"]),
        idle_minutes=int(match["idle"]),
        fleet_id=match["fleet"],
        uid=match["uid"],
        run=match["run"] or "",
        stack=match["stack"] or "",
    )


def is_ours(text: str | None) -> bool:
    """Say whether the instance carries our prefix. What does not is never touched."""
    return (text or "").startswith(PREFIX)


def render_run(started_at: datetime) -> str:
    """Return a run's id: its start in unix seconds, base 36, so that a later run sorts after an earlier one."""
    number, digits = _seconds(started_at), ""
    while number:
        number, rest = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[rest] + digits
    return digits


def _seconds(instant: datetime) -> int:
    return int(instant.timestamp())


def _instant(seconds: str) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(seconds=int(seconds))
