"""What the lease's rules need of any market: list, relabel, destroy."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from dynamic_providers.lease.label import Label, is_ours, parse_label


@dataclass(frozen=True)
class Rented:
    """One instance of our account, as much of it as the rules look at.

    Attributes:
        id: The market's id.
        label: As the market keeps it; None if it has none.
        started_at: When it was rented.
    """

    id: int
    label: str | None
    started_at: datetime

    @property
    def is_ours(self) -> bool:
        """Whether it carries our prefix, readable or not."""
        return is_ours(self.label)

    @property
    def parsed(self) -> Label | None:
        """What its label says, None if unreadable or not ours."""
        return parse_label(self.label)

    def belongs_to(self, fleet_id: str, uid: str) -> bool:
        """Say whether it was rented for this lease."""
        label = self.parsed
        return label is not None and (label.fleet_id, label.uid) == (fleet_id, uid)


class Market(Protocol):
    """A market that machines are rented on."""

    def list(self) -> Sequence[Rented]:
        """Return every instance of the account, all pages or an error."""

    def relabel(self, instance_id: int, label: str) -> None:
        """Replace an instance's label."""

    def destroy(self, instance_id: int) -> None:
        """End an instance and verify that it is gone.

        Raises:
            LeakError: It may still be billed.
        """
