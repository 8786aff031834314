"""The rules of a lease: what is reaped, and which of two machines stays, whoever looks, in whatever order."""

import itertools
from collections.abc import Collection
from dataclasses import replace
from datetime import timedelta

import pytest

from dynamic_providers.lease.label import Phase
from dynamic_providers.lease.market import Rented
from dynamic_providers.lease.policy import MAX_LIFETIME, Action, choose_keeper, decide
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


SECOND = timedelta(seconds=1)
FLEET = a_label().fleet_id
BOOTING = a_label(expires_at=NOW + HOUR, deadline=NOW + SECOND)
UNREADABLE = "gpu-on-demand/2/what-a-later-version-writes"


@pytest.mark.parametrize(
    ("label", "age", "expected", "rule"),
    [
        pytest.param(None, 9000 * HOUR, Action.KEEP, "1", id="no-label-is-foreign-however-old"),
        pytest.param("my-training", 9000 * HOUR, Action.KEEP, "1", id="foreign-is-kept-however-old"),
        pytest.param("", HOUR, Action.KEEP, "1", id="an-empty-label-is-foreign"),
        pytest.param("gpu-on-demandish/1", 9000 * HOUR, Action.KEEP, "1", id="nearly-our-prefix-is-foreign"),
        pytest.param(
            replace(BOOTING, fleet_id="deadbeef", deadline=NOW - HOUR).render(),
            HOUR,
            Action.KEEP,
            "1",
            id="another-fleets-boot-deadline-is-not-ours-to-judge",
        ),
        pytest.param(
            replace(BOOTING, fleet_id="deadbeef", expires_at=NOW).ready().render(),
            HOUR,
            Action.REAP,
            "2",
            id="another-fleets-expired-one-is-reaped",
        ),
        pytest.param(
            replace(BOOTING, expires_at=NOW).ready().render(), HOUR, Action.REAP, "2", id="expired-for-zero-seconds"
        ),
        pytest.param(
            replace(BOOTING, expires_at=NOW + SECOND).ready().render(), HOUR, Action.KEEP, "10", id="not-yet-expired"
        ),
        pytest.param(
            replace(BOOTING, expires_at=NOW).render(), HOUR, Action.REAP, "2", id="expiry-comes-before-the-deadline"
        ),
        pytest.param(UNREADABLE, MAX_LIFETIME - SECOND, Action.KEEP, "2", id="unreadable-is-kept-for-the-maximum"),
        pytest.param(UNREADABLE, MAX_LIFETIME, Action.REAP, "2", id="unreadable-is-ended-at-the-maximum"),
        pytest.param(BOOTING.render(), HOUR, Action.KEEP, "6", id="booting-until-its-deadline"),
        pytest.param(
            replace(BOOTING, deadline=NOW).render(), HOUR, Action.REAP, "6", id="booting-at-its-deadline-is-reaped"
        ),
        pytest.param(
            replace(BOOTING, deadline=NOW - HOUR).ready().render(), HOUR, Action.KEEP, "10", id="ready-has-no-deadline"
        ),
        pytest.param(
            replace(BOOTING, deadline=NOW).render()[:64], HOUR, Action.REAP, "6", id="a-cut-label-loses-only-its-tail"
        ),
    ],
)
def test_the_verdict(label: str | None, age: timedelta, expected: Action, rule: str) -> None:
    verdict = decide(Rented(1, label, NOW - age), FLEET, NOW)
    assert (verdict.action, verdict.reason.partition(":")[0]) == (expected, rule)
    assert verdict.is_alarming == (label == UNREADABLE)


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
