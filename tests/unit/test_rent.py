"""Renting: never two machines, never one that is forgotten, never one that is not what was asked."""

import json
from datetime import timedelta
from typing import Any

import httpx
import pytest

from dynamic_providers.errors import (
    AccountError,
    BootError,
    LeakError,
    MismatchError,
    NoOfferError,
    RefusedError,
    StackError,
)
from dynamic_providers.lease.label import Phase, parse_label
from dynamic_providers.vast.rent import (
    APPEARS_WITHIN,
    Rental,
    given_back_on_error,
    mismatches,
    read_back,
    receipt,
    rent,
)
from tests.unit.builders import NOW, a_fleet, a_label, an_instance, says
from tests.unit.town import LABEL, REQUEST, Town, ours


def taken(**more: Any) -> httpx.Response:
    return says(404, {"success": False, "error": "invalid_args", "msg": "no_such_ask"} | more)


def refused(error: str, **more: Any) -> httpx.Response:
    return says(400, {"success": False, "error": error} | more)


# Renting


def test_the_best_offer_is_rented_on_demand_with_a_label_that_can_end_it() -> None:
    town = Town()
    rental = rent(town.world, REQUEST, "#!/bin/sh\n")
    assert (rental.instance_id, rental.machine_id) == (9001, 501)
    [(offer_id, body)] = town.created
    assert offer_id == 1
    assert body["price"] is None
    assert body["cancel_unavail"] is True
    assert (body["image"], body["disk"], body["onstart"]) == (REQUEST.image, 60.0, "#!/bin/sh\n")
    assert body["env"] == {"-p 8443:8443": "1"}
    label = parse_label(body["label"])
    assert label == rental.label
    assert label is not None
    assert (label.fleet_id, label.uid, label.stack) == (a_fleet().id, REQUEST.uid, "gpu-on")
    assert (label.expires_at, label.deadline) == (NOW + timedelta(hours=8), NOW + timedelta(minutes=20))
    assert (label.phase, label.idle_minutes) == (Phase.BOOTING, 15)


def test_no_secret_is_in_what_the_market_shows() -> None:
    town = Town()
    rent(town.world, REQUEST, "")
    sent = json.dumps(town.created)
    assert a_fleet().sign not in sent
    assert a_fleet().observe not in sent


@pytest.mark.parametrize(
    ("on_create", "rented", "offers_asked", "destroyed"),
    [
        pytest.param(["yes"], 9001, [1], [], id="at-once"),
        pytest.param([taken(), "yes"], 9002, [1, 2], [], id="taken-the-next"),
        pytest.param([taken(), taken(), "yes"], 9003, [1, 2, 3], [], id="taken-twice"),
        pytest.param([taken(new_contract=77), "yes"], 9002, [1, 2], [77], id="taken-and-made-all-the-same"),
        pytest.param(["yes, reply lost"], 9001, [1], [], id="reply-lost-after-success"),
        pytest.param(["nothing, reply lost", "yes"], 9002, [1, 2], [], id="reply-lost-and-nothing-rented"),
    ],
)
def test_one_machine_is_rented_whatever_the_market_answers(
    on_create: list[Any], rented: int, offers_asked: list[int], destroyed: list[int]
) -> None:
    town = Town(*on_create)
    assert rent(town.world, REQUEST, "").instance_id == rented
    assert [offer_id for offer_id, _ in town.created] == offers_asked
    assert town.destroyed == destroyed
    assert list(town.rows) == [rented]


def test_a_machine_that_shows_up_late_is_found_and_not_rented_twice() -> None:
    town = Town("yes, reply lost")
    town.appears_after = 45.0
    assert rent(town.world, REQUEST, "").instance_id == 9001
    assert len(town.created) == 1


def test_before_another_offer_is_tried_the_lost_one_is_looked_for_a_whole_minute() -> None:
    town = Town("nothing, reply lost", "yes")
    rent(town.world, REQUEST, "")
    assert town.vast.clock.slept >= APPEARS_WITHIN.total_seconds()


@pytest.mark.parametrize(
    ("answer", "error", "destroyed"),
    [
        pytest.param(refused("insufficient_credit"), AccountError, [], id="no-credit-no-other-offer"),
        pytest.param(refused("invalid_args"), RefusedError, [], id="refused-no-other-offer"),
        pytest.param(refused("invalid_price", new_contract=77), RefusedError, [77], id="refused-and-made-all-the-same"),
        pytest.param(refused("insufficient_credit", new_contract=77), AccountError, [77], id="no-credit-and-made"),
    ],
)
def test_a_refusal_ends_the_renting_and_leaves_nothing(
    answer: httpx.Response, error: type[StackError], destroyed: list[int]
) -> None:
    town = Town(answer)
    with pytest.raises(error):
        rent(town.world, REQUEST, "")
    assert len(town.created) == 1
    assert town.destroyed == destroyed


def test_when_all_that_fits_is_taken_it_says_so() -> None:
    town = Town(taken(), taken(), taken())
    with pytest.raises(NoOfferError, match="was taken while we looked"):
        rent(town.world, REQUEST, "")
    assert len(town.created) == 3


def test_a_machine_to_avoid_is_not_rented() -> None:
    assert rent((town := Town()).world, REQUEST, "", avoid={501}).instance_id == 9002
    assert len(town.created) == 1


@pytest.mark.parametrize("credit", [0.0, -1.0])
def test_without_credit_nothing_is_rented(credit: float) -> None:
    town = Town()
    town.credit = credit
    with pytest.raises(AccountError, match="add credit"):
        rent(town.world, REQUEST, "")
    assert town.created == []


@pytest.mark.parametrize(("credit", "enough"), [(0.30, False), (0.301, False), (0.302, True)])
def test_credit_must_outlast_the_first_hour(credit: float, enough: bool) -> None:
    # The best offer takes 0.301 USD an hour. With less the market stops the machine, and keeps charging for its disk.
    town = Town()
    town.credit = credit
    if enough:
        assert rent(town.world, REQUEST, "").instance_id == 9001
        return
    with pytest.raises(AccountError, match="the first hour of the best offer"):
        rent(town.world, REQUEST, "")
    assert town.created == []


def test_what_is_weighed_is_shown_before_anything_is_rented() -> None:
    town = Town()
    rent(town.world, REQUEST, "")
    assert town.said[0].startswith("3 of 3 offers fit")
    assert town.said[-1] == "renting offer 1 (machine 501)"


# Verifying


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        pytest.param({}, [], id="as-asked"),
        pytest.param({"gpu_ram": 24 * 1024 * 0.98}, [], id="a-nominal-24-gb"),
        pytest.param({"gpu_ram": 24 * 1024 * 0.97}, ["23.3 GiB of GPU memory"], id="less-memory"),
        pytest.param({"gpu_name": "RTX 3060"}, ["GPU RTX 3060"], id="another-gpu"),
        pytest.param({"num_gpus": 2}, ["2 GPUs"], id="more-gpus"),
        pytest.param({"disk_space": 59.0}, ["59 GB of disk"], id="less-disk"),
        pytest.param({"dph_total": 0.51}, ["0.5100 USD/h"], id="dearer"),
        pytest.param({"geolocation": "Texas, US"}, ["country US"], id="another-region"),
        pytest.param({"geolocation": None}, ["country ?"], id="no-region"),
        pytest.param({"num_gpus": 0, "dph_total": 9}, ["0 GPUs", "9.0000 USD/h"], id="all-faults-are-told"),
    ],
)
def test_what_is_rented_is_held_against_what_was_asked(change: dict[str, Any], faults: list[str]) -> None:
    assert mismatches(an_instance(**change), REQUEST) == faults


RENTAL = Rental(9, 500, LABEL)


def test_the_instance_is_read_back() -> None:
    assert read_back(Town(rows=[ours(9)]).world, REQUEST, RENTAL).id == 9


@pytest.mark.parametrize(
    ("rows", "error", "reason"),
    [
        pytest.param([ours(9, gpu_name="RTX 3060")], MismatchError, "GPU RTX 3060", id="another-gpu"),
        pytest.param([ours(9, label="somebody's")], RefusedError, "keeps the label", id="another-label"),
        pytest.param([ours(9, label=LABEL.render()[:60])], RefusedError, "keeps the label", id="label-cut-too-short"),
        pytest.param([], BootError, "does not show it 60 s after", id="never-appears"),
    ],
)
def test_an_instance_that_is_something_else_is_not_taken(
    rows: list[dict[str, Any]], error: type[StackError], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        read_back(Town(rows=rows).world, REQUEST, RENTAL)


# Giving back


@pytest.mark.parametrize("error", [BootError("ssh", "dead"), KeyboardInterrupt(), ZeroDivisionError()], ids=repr)
def test_whatever_goes_wrong_the_machine_goes_back_and_the_error_goes_on(error: BaseException) -> None:
    town = Town(rows=[ours(9)])
    with pytest.raises(type(error)), given_back_on_error(town.world, Rental(9, 1, a_label())):
        raise error
    assert town.destroyed == [9]
    assert "billing stopped" in town.said[-1]


def test_a_machine_that_a_later_run_has_taken_over_is_left_to_it() -> None:
    town = Town(rows=[ours(9, label=a_label(run="toufzz").render())])
    with pytest.raises(BootError), given_back_on_error(town.world, Rental(9, 1, a_label(run="toufaa"))):
        raise BootError("ssh", "dead")
    assert town.destroyed == []


def test_a_machine_that_cannot_be_given_back_is_the_louder_error() -> None:
    town = Town(rows=[ours(9)])
    town.vast.answers = [says(401, {"error": "auth_error"})]
    with pytest.raises(LeakError, match="INSTANCE 9"), given_back_on_error(town.world, Rental(9, 1, a_label())):
        raise BootError("ssh", "dead")


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        pytest.param(
            says(200, {"results": [{"source": "instance-9", "items": [{"type": "gpu", "amount": 0.25}]}]}),
            "instance 9 is destroyed, billing stopped: 0.250000 USD",
            id="in-the-books",
        ),
        pytest.param(says(200, {"results": []}), "do not show its cost yet", id="not-yet-in-the-books"),
        pytest.param(says(403, {"error": "forbidden"}), "what it cost could not be read", id="no-right-to-read-them"),
    ],
)
def test_a_receipt_says_what_the_books_say_and_no_more(answer: httpx.Response, line: str) -> None:
    town = Town()
    town.vast.answers = [answer]
    [said] = receipt(town.world, an_instance(id=9))
    assert line in said
    assert "billing stopped" in said
