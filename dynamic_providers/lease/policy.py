"""The rules of a lease: pure, shared by whoever brings machines up and whoever takes them back."""

from collections.abc import Collection, Sequence
from typing import TypeVar

from dynamic_providers.lease.label import Phase
from dynamic_providers.lease.market import Rented

AnyRented = TypeVar("AnyRented", bound=Rented)


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
