"""Which of two machines of one lease stays: busy before ready before oldest, whoever looks, in whatever order."""

import itertools
from collections.abc import Collection
from datetime import timedelta

import pytest

from dynamic_providers.lease.label import Phase
from dynamic_providers.lease.market import Rented
from dynamic_providers.lease.policy import choose_keeper
from tests.unit.builders import NOW, UID, a_label

HOUR = timedelta(hours=1)


def a_machine(id_: int, *, phase: Phase = Phase.BOOTING, age: timedelta = HOUR, label: str | None = None) -> Rented:
    return Rented(id_, label if label is not None else a_label(phase=phase).render(), NOW - age)


@pytest.mark.parametrize(
    ("twins", "busy", "kept"),
    [
        pytest.param([a_machine(1)], [], 1, id="the-only-one"),
        pytest.param([a_machine(1, age=HOUR), a_machine(2, age=2 * HOUR)], [], 2, id="oldest"),
        pytest.param([a_machine(2), a_machine(1)], [], 1, id="same-age-lowest-id"),
        pytest.param(
            [a_machine(1, phase=Phase.READY, age=HOUR), a_machine(2, age=2 * HOUR)], [], 1, id="ready-before-older"
        ),
        pytest.param(
            [a_machine(1, phase=Phase.READY, age=HOUR), a_machine(2, phase=Phase.READY, age=2 * HOUR)],
            [],
            2,
            id="both-ready-oldest",
        ),
        pytest.param([a_machine(1, phase=Phase.READY), a_machine(2)], [2], 2, id="busy-before-ready"),
        pytest.param([a_machine(1, age=2 * HOUR), a_machine(2)], [1, 2], 1, id="both-busy-oldest"),
        pytest.param(
            [a_machine(1, label="gpu-on-demand/?", age=2 * HOUR), a_machine(2, phase=Phase.READY)],
            [],
            2,
            id="unreadable-is-not-ready",
        ),
        pytest.param([a_machine(1), a_machine(2)], [77], 1, id="a-busy-stranger-changes-nothing"),
    ],
)
def test_the_keeper(twins: list[Rented], busy: Collection[int], kept: int) -> None:
    for order in itertools.permutations(twins):
        keeper, others = choose_keeper(order, busy)
        assert keeper is not None
        assert keeper.id == kept
        assert {keeper.id, *(other.id for other in others)} == {twin.id for twin in twins}
        assert len(others) == len(twins) - 1


def test_of_no_machines_none_is_kept() -> None:
    assert choose_keeper([]) == (None, [])


@pytest.mark.parametrize(
    ("label", "ours", "belongs"),
    [
        pytest.param(a_label().render(), True, True, id="this-lease"),
        pytest.param(a_label(stack="another", run="x").ready().render(), True, True, id="whatever-its-run-and-phase"),
        pytest.param(a_label(uid="ffffffffffff").render(), True, False, id="another-lease"),
        pytest.param(a_label(fleet_id="deadbeef").render(), True, False, id="another-fleet"),
        pytest.param("gpu-on-demand/1/garbage", True, False, id="unreadable"),
        pytest.param("my-training", False, False, id="foreign"),
        pytest.param(None, False, False, id="no-label"),
    ],
)
def test_whose_a_machine_is(label: str | None, ours: bool, belongs: bool) -> None:
    machine = Rented(1, label, NOW)
    assert machine.is_ours == ours
    assert machine.belongs_to("c0ffee12", UID) == belongs
