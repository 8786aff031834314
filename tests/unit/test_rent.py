"""Renting and adopting: never two machines, never one that is forgotten, never one that is not what was asked."""

import json
from datetime import datetime, timedelta
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
    World,
    adopt,
    given_back_on_error,
    mismatches,
    read_back,
    receipt,
    rent,
)
from dynamic_providers.vast.request import LeaseTerms
from tests.unit.builders import NOW, FakeVast, a_fleet, a_label, a_request, an_instance, an_instance_row, says

REQUEST = a_request()
LABEL = a_label(fleet_id=a_fleet().id)


def an_offer_row(id_: int, **change: Any) -> dict[str, Any]:
    return {
        "id": id_,
        "machine_id": 500 + id_,
        "gpu_name": "RTX 4090",
        "num_gpus": 1,
        "gpu_ram": 24564,
        "gpu_frac": 1.0,
        "dph_total": 0.30 + id_ / 1000,
        "inet_down": 900,
        "inet_down_cost": 0.0,
        "disk_space": 500,
        "reliability2": 0.99,
        "geolocation": "Sweden, SE",
        "verification": "verified",
        "cuda_max_good": 13.0,
        "compute_cap": 890,
        "direct_port_count": 10,
        "duration": 1e7,
    } | change


class Town:
    """A market with a few offers; keeps what was rented and how. `on_create` says what a create answers, in turn."""

    def __init__(
        self,
        *on_create: str | httpx.Response,
        offers: tuple[int, ...] = (1, 2, 3),
        rows: list[dict[str, Any]] | None = None,
    ):
        self.on_create = list(on_create)
        self.offers = [an_offer_row(id_) for id_ in offers]
        self.rows = {row["id"]: row for row in rows or []}
        self.created: list[tuple[int, dict[str, Any]]] = []
        self.destroyed: list[int] = []
        self.said: list[str] = []
        self.credit = 10.0
        self.appears_after = 0.0
        self.vast = FakeVast(self.answer)
        self.world = World(self.vast.client, self.said.append, self.vast.clock)

    def answer(self, request: httpx.Request) -> httpx.Response:
        path, body = request.url.path, json.loads(request.content or b"{}")
        last = path.rstrip("/").rpartition("/")[2]
        if path.endswith("/users/current"):
            return says(200, {"credit": self.credit})
        if path.endswith("/bundles/"):
            return says(200, {"offers": self.offers})
        if path.endswith("/charges/"):
            return says(200, {"results": [], "next_token": None})
        if "/asks/" in path:
            return self._create(int(last), body)
        if request.method == "DELETE":
            self.destroyed.append(int(last))
            self.rows.pop(int(last), None)
        elif request.method == "PUT":
            self.rows[int(last)]["label"] = body["label"]
        elif last == "instances":
            rows = [] if self.vast.clock.slept < self.appears_after else list(self.rows.values())
            return says(200, {"instances": rows, "next_token": None})
        else:
            return says(200, {"instances": self.rows.get(int(last))})
        return says(200, {"success": True})

    def _create(self, offer_id: int, body: dict[str, Any]) -> httpx.Response:
        self.created.append((offer_id, body))
        what = self.on_create.pop(0) if self.on_create else "yes"
        if what in ("yes", "yes, reply lost"):
            self.rows[9000 + offer_id] = an_instance_row(id=9000 + offer_id, label=body["label"])
        if what in ("yes, reply lost", "nothing, reply lost"):
            raise httpx.ReadError("closed")
        if isinstance(what, httpx.Response):
            return what
        return says(200, {"success": True, "new_contract": 9000 + offer_id})


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


# Adopting


def ours(id_: int, **change: Any) -> dict[str, Any]:
    return an_instance_row(id=id_, label=LABEL.render()) | change


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
        pytest.param([ours(9, label="somebody's")], MismatchError, "keeps the label", id="another-label"),
        pytest.param([ours(9, label=LABEL.render()[:60])], MismatchError, "keeps the label", id="label-cut-too-short"),
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
    with pytest.raises(type(error)), given_back_on_error(town.world, 9):
        raise error
    assert town.destroyed == [9]
    assert "billing stopped" in town.said[-1]


def test_a_machine_that_cannot_be_given_back_is_the_louder_error() -> None:
    town = Town(rows=[ours(9)])
    town.vast.answers = [says(401, {"error": "auth_error"})]
    with pytest.raises(LeakError, match="INSTANCE 9"), given_back_on_error(town.world, 9):
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
