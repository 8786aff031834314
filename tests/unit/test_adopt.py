"""Adopting: the machine of an earlier run is taken over, never doubled, and only where it is what is asked."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from dynamic_providers.lease.label import Phase, parse_label
from dynamic_providers.vast.rent import (
    adopt,
)
from dynamic_providers.vast.request import LeaseTerms
from tests.unit.builders import NOW, a_fleet, a_label, a_request, an_instance_row
from tests.unit.town import LABEL, REQUEST, Town, ours

FOREIGN = [
    an_instance_row(id=1, label="my-training"),
    an_instance_row(id=2, label=None),
    an_instance_row(id=3, label=a_label(fleet_id="deadbeef").render()),
    an_instance_row(id=4, label=a_label(fleet_id=a_fleet().id, uid="ffffffffffff").render()),
]


def test_the_machine_of_an_earlier_run_is_adopted_and_relabelled() -> None:
    town = Town(rows=[*FOREIGN, ours(9)])
    rental = adopt(town.world, REQUEST)
    assert rental is not None
    assert (rental.instance_id, rental.machine_id) == (9, 500)
    label = parse_label(town.rows[9]["label"])
    assert label == rental.label
    assert label is not None
    assert label.expires_at == LABEL.expires_at  # the lease goes on, it does not begin again
    assert (label.phase, label.deadline) == (Phase.BOOTING, NOW + timedelta(minutes=20))
    assert label.run != LABEL.run
    assert town.destroyed == []


@pytest.mark.parametrize(
    ("max_hours", "started_at", "expires_at"),
    [
        pytest.param(8, NOW, LABEL.expires_at, id="as-its-label-says"),
        pytest.param(8, NOW + timedelta(seconds=59), LABEL.expires_at, id="two-clocks-that-differ-a-little"),
        pytest.param(4, NOW, NOW + timedelta(hours=4), id="shorter-as-asked-since"),
        pytest.param(12, NOW, NOW + timedelta(hours=12), id="longer-as-asked-since"),
    ],
)
def test_an_adopted_lease_ends_when_it_was_said_to(
    max_hours: float, started_at: datetime, expires_at: datetime
) -> None:
    town = Town(rows=[ours(9, start_date=started_at.timestamp())])
    rental = adopt(town.world, a_request(terms=LeaseTerms(max_hours=max_hours)))
    assert rental is not None
    assert rental.label.expires_at == expires_at


def test_where_there_is_none_of_this_lease_nothing_is_touched() -> None:
    town = Town(rows=FOREIGN)
    assert adopt(town.world, REQUEST) is None
    assert town.destroyed == []
    assert {line.split()[0] for line in town.vast.lines} == {"GET"}


def test_of_two_machines_of_a_lease_one_goes() -> None:
    town = Town(rows=[*FOREIGN, ours(8), ours(9, label=LABEL.ready().render())])
    rental = adopt(town.world, REQUEST)
    assert rental is not None
    assert rental.instance_id == 9
    assert town.destroyed == [8]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"gpu_name": "RTX 3060"}, "GPU RTX 3060", id="another-gpu"),
        pytest.param({"intended_status": "stopped"}, "stopped", id="meant-to-stop"),
        pytest.param({"actual_status": "exited", "cur_state": "stopped"}, "stopped", id="stopped"),
        pytest.param({"label": a_label(fleet_id=a_fleet().id, expires_at=NOW).render()}, "lease is over", id="expired"),
    ],
)
def test_a_machine_of_the_lease_that_is_not_what_is_asked_goes(change: dict[str, Any], reason: str) -> None:
    town = Town(rows=[*FOREIGN, ours(9, **change)])
    assert adopt(town.world, REQUEST) is None
    assert town.destroyed == [9]
    assert any(reason in line for line in town.said)
