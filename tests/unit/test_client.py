"""The market's HTTP: what is sent, what is sent again, and what each answer means."""

import json
from collections.abc import Callable
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from dynamic_providers.errors import (
    AccountError,
    NotFoundError,
    RefusedError,
    UnavailableError,
    VastError,
)
from dynamic_providers.vast.client import TRIES, VastClient
from tests.unit.answers import UNANSWERED, no
from tests.unit.builders import API_KEY, NOW, FakeVast, an_instance, an_instance_row, says


def query_of(request: httpx.Request) -> dict[str, Any]:
    return {key: json.loads(value) if value[:1] in "[{" else value for key, value in request.url.params.items()}


# Asking again

REPEATABLE: list[tuple[str, Callable[[VastClient], object], dict[str, Any]]] = [
    ("credit", lambda c: c.credit_usd(), {"credit": 12.5}),
    ("search", lambda c: c.search_offers(["RTX 4090"], disk_gb=60), {"offers": []}),
    ("list", lambda c: c.list_instances(), {"instances": [], "next_token": None}),
    ("show", lambda c: c.show_instance(1), {"instances": None}),
    ("relabel", lambda c: c.relabel(1, "x"), {"success": True}),
    ("attach", lambda c: c.attach_ssh_key(1, "ssh-ed25519 x"), {"success": True}),
    ("destroy", lambda c: c.destroy_instance(1), {"success": True}),
    ("charges", lambda c: c.charge_of(1, since=NOW, until=NOW), {"results": [], "next_token": None}),
]
CALLS = [pytest.param(call, body, id=name) for name, call, body in REPEATABLE]


@pytest.mark.parametrize("trouble", UNANSWERED)
@pytest.mark.parametrize(("call", "body"), CALLS)
def test_what_may_be_repeated_is_sent_again_after_a_pause(
    call: Callable[[VastClient], object], body: dict[str, Any], trouble: httpx.Response | Exception
) -> None:
    vast = FakeVast(trouble, says(200, body))
    call(vast.client)
    assert len(vast.requests) == 2
    assert vast.requests[0].content == vast.requests[1].content
    assert vast.clock.slept == 1.0


@pytest.mark.parametrize(("call", "body"), CALLS)
def test_a_definite_no_is_not_asked_again(call: Callable[[VastClient], object], body: dict[str, Any]) -> None:
    vast = FakeVast(no(400, "invalid_args"))
    with pytest.raises(RefusedError):
        call(vast.client)
    assert len(vast.requests) == 1


def test_a_market_that_stays_silent_is_given_half_a_minute() -> None:
    vast = FakeVast(says(503, "maintenance"))
    with pytest.raises(UnavailableError, match="503 maintenance"):
        vast.client.list_instances()
    assert len(vast.requests) == TRIES
    assert vast.clock.slept == 1 + 2 + 4 + 8 + 16


def test_a_market_that_cannot_be_reached_is_named_with_the_request() -> None:
    vast = FakeVast(httpx.ConnectTimeout(""))
    with pytest.raises(UnavailableError, match="did not answer GET /api/v0/users/current: ConnectTimeout"):
        vast.client.credit_usd()


def test_a_search_quota_that_is_used_up_is_no_reason_to_wait() -> None:
    vast = FakeVast(no(429, "search_quota_exceeded", "Daily search quota exceeded"))
    with pytest.raises(AccountError, match=r"Daily search quota exceeded\n  searches are used up until midnight UTC"):
        vast.client.search_offers(["RTX 4090"], disk_gb=60)
    assert len(vast.requests) == 1


# Listing and showing


def test_the_list_is_all_pages() -> None:
    pages = [
        says(200, {"instances": [an_instance_row(id=1), an_instance_row(id=2)], "next_token": "t1"}),
        says(200, {"instances": [an_instance_row(id=3)], "next_token": "t2"}),
        says(200, {"instances": [an_instance_row(id=4)], "next_token": None}),
    ]
    vast = FakeVast(*pages)
    assert [instance.id for instance in vast.client.list_instances()] == [1, 2, 3, 4]
    assert vast.lines == ["GET /api/v1/instances/"] * 3
    assert [request.url.params.get("after_token") for request in vast.requests] == [None, "t1", "t2"]
    assert query_of(vast.requests[0]) == {
        "select_filters": {},
        "order_by": [{"col": "id", "dir": "asc"}],
        "limit": "25",
    }


@pytest.mark.parametrize(
    ("second", "error"),
    [
        pytest.param(says(500, "x"), UnavailableError, id="500"),
        pytest.param(no(400, "invalid_token"), RefusedError, id="invalid-token"),
        pytest.param(says(200, {"success": True}), UnavailableError, id="no-list"),
        pytest.param(says(200, {"instances": None}), UnavailableError, id="null"),
        pytest.param(says(200, "<html>"), UnavailableError, id="page"),
    ],
)
def test_a_part_of_the_list_is_an_error(second: httpx.Response, error: type[VastError]) -> None:
    vast = FakeVast(says(200, {"instances": [an_instance_row()], "next_token": "t1"}), second)
    with pytest.raises(error):
        vast.client.list_instances()


def test_one_instance_is_read_by_its_id() -> None:
    vast = FakeVast(says(200, {"instances": an_instance_row()}))
    assert vast.client.show_instance(4242) == an_instance()
    assert vast.lines == ["GET /api/v0/instances/4242/"]
    assert query_of(vast.requests[0]) == {"owner": "me"}


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(says(200, {"instances": None}), id="null"),
        pytest.param(no(404, "no_such_instance", "Instance 4242 not found."), id="404"),
        pytest.param(no(404, "not_found"), id="404-not-found"),
        pytest.param(no(400, "no_such_instance"), id="no-such-instance-as-400"),
    ],
)
def test_an_unknown_instance_is_none(answer: httpx.Response) -> None:
    assert FakeVast(answer).client.show_instance(4242) is None


def test_a_bad_key_does_not_read_as_gone() -> None:
    with pytest.raises(AccountError):
        FakeVast(no(404, "", "Invalid user key")).client.show_instance(4242)


def test_ports_that_the_read_of_one_shows_otherwise_come_from_the_list() -> None:
    vast = FakeVast(
        says(200, {"instances": an_instance_row(ports=[40022, 40443])}),
        says(200, {"instances": [an_instance_row()], "next_token": None}),
    )
    assert vast.client.show_instance(4242) == an_instance()
    assert vast.lines[1] == "GET /api/v1/instances/"
    assert query_of(vast.requests[1])["select_filters"] == {"id": {"eq": 4242}}


@pytest.mark.parametrize(
    "row", [{"ports": None, "actual_status": "loading"}, {"ports": {}}], ids=["null-while-loading", "empty"]
)
def test_ports_that_are_not_published_yet_cost_no_second_call(row: dict[str, Any]) -> None:
    vast = FakeVast(says(200, {"instances": an_instance_row(**row)}))
    shown = vast.client.show_instance(4242)
    assert shown is not None
    assert shown.ports == {}
    assert len(vast.requests) == 1


def test_a_list_that_lacks_rows_of_which_it_speaks_is_no_answer() -> None:
    page = {"instances": [an_instance_row()], "instances_found": 2, "next_token": None}
    vast = FakeVast(says(200, page))
    with pytest.raises(UnavailableError, match="1 of 2 instances"):
        vast.client.list_instances()


def test_an_instance_that_vanishes_between_two_reads_is_none() -> None:
    vast = FakeVast(says(200, {"instances": an_instance_row(ports=[1])}), says(200, {"instances": []}))
    assert vast.client.show_instance(4242) is None


# Changing and destroying


@pytest.mark.parametrize(
    ("call", "line", "body"),
    [
        pytest.param(
            lambda c: c.relabel(4242, "new"), "PUT /api/v0/instances/4242/", {"label": "new"}, id="relabel"
        ),
        pytest.param(
            lambda c: c.attach_ssh_key(4242, "ssh-ed25519 AAAA"),
            "POST /api/v0/instances/4242/ssh/",
            {"ssh_key": "ssh-ed25519 AAAA"},
            id="attach",
        ),
        pytest.param(lambda c: c.destroy_instance(4242), "DELETE /api/v0/instances/4242/", {}, id="destroy"),
    ],
)  # fmt: skip
def test_a_change_is_sent_as_documented(call: Callable[[VastClient], object], line: str, body: dict[str, str]) -> None:
    vast = FakeVast(says(200, {"success": True}))
    call(vast.client)
    assert vast.lines == [line]
    assert json.loads(vast.requests[0].content) == body


@pytest.mark.parametrize("code", ["not_found", "no_such_instance"])
def test_an_instance_that_is_gone_counts_as_destroyed(code: str) -> None:
    vast = FakeVast(no(404, code))
    vast.client.destroy_instance(4242)
    assert vast.lines == ["DELETE /api/v0/instances/4242/"]


def test_a_destroy_is_tried_twice_here_for_its_caller_looks_at_the_list_in_between() -> None:
    vast = FakeVast(says(500, "x"))
    with pytest.raises(UnavailableError):
        vast.client.destroy_instance(4242)
    assert len(vast.requests) == 2


def test_relabelling_what_is_gone_says_so() -> None:
    with pytest.raises(NotFoundError):
        FakeVast(no(404, "no_such_instance")).client.relabel(4242, "new")


# The account


@pytest.mark.parametrize(
    ("body", "credit"), [({"credit": 12.5}, 12.5), ({"credit": "3"}, 3.0), ({"credit": None}, 0.0), ({}, 0.0)]
)
def test_the_credit_of_the_account(body: dict[str, Any], credit: float) -> None:
    vast = FakeVast(says(200, body))
    assert vast.client.credit_usd() == credit
    assert vast.lines == ["GET /api/v0/users/current"]


def a_charge_row(instance_id: int, **change: Any) -> dict[str, Any]:
    items = [{"type": "gpu", "amount": 0.25}, {"type": "disk", "amount": 0.01}, {"type": "bwd", "amount": 0.04}]
    return {"type": "instance", "source": f"instance-{instance_id}", "amount": 0.3, "items": items} | change


def test_a_charge_is_found_on_whichever_page_it_stands() -> None:
    vast = FakeVast(
        says(200, {"results": [a_charge_row(1), a_charge_row(42424)], "next_token": "t1"}),
        says(200, {"results": [a_charge_row(4242)], "next_token": None}),
    )
    since = NOW - timedelta(hours=8)
    charge = vast.client.charge_of(4242, since=since, until=NOW)
    assert charge is not None
    assert charge.usd_by_kind == {"gpu": 0.25, "disk": 0.01, "bwd": 0.04}
    assert vast.lines == ["GET /api/v0/charges/"] * 2
    filters = query_of(vast.requests[0])["select_filters"]
    assert filters["type"] == {"in": ["instance"]}
    day = timedelta(days=1).total_seconds()
    assert filters["day"] == {"gte": since.timestamp() - day, "lte": NOW.timestamp() + day}
    assert vast.requests[1].url.params["after_token"] == "t1"


@pytest.mark.parametrize(
    ("change", "usd_by_kind"),
    [
        pytest.param({"items": []}, {"instance": 0.3}, id="no-items-the-total"),
        pytest.param(
            {"items": [{"type": "gpu", "amount": 0.1}, {"type": "gpu", "amount": "0.2"}]},
            {"gpu": pytest.approx(0.3)},
            id="two-items-of-a-kind-add-up",
        ),
        pytest.param({"items": [{"type": "sla", "amount": -0.1}]}, {"sla": -0.1}, id="a-credit-is-negative"),
    ],
)
def test_the_kinds_of_a_charge(change: dict[str, Any], usd_by_kind: dict[str, Any]) -> None:
    vast = FakeVast(says(200, {"results": [a_charge_row(4242, **change)]}))
    charge = vast.client.charge_of(4242, since=NOW, until=NOW)
    assert charge is not None
    assert charge.usd_by_kind == usd_by_kind


def test_books_that_do_not_show_it_yet_are_none_and_not_zero() -> None:
    vast = FakeVast(says(200, {"results": [a_charge_row(1)], "next_token": None}))
    assert vast.client.charge_of(4242, since=NOW, until=NOW) is None


# The key and the clock


@pytest.mark.parametrize(
    ("call", "body"), [*CALLS, pytest.param(lambda c: c.create_instance(7, {}), {"new_contract": 1}, id="create")]
)
def test_the_key_travels_in_the_header_alone(call: Callable[[VastClient], object], body: dict[str, Any]) -> None:
    vast = FakeVast(says(200, body))
    call(vast.client)
    for request in vast.requests:
        assert request.headers["Authorization"] == f"Bearer {API_KEY}"
        assert API_KEY not in str(request.url)
        assert API_KEY.encode() not in request.content


def test_an_error_never_repeats_the_key() -> None:
    with pytest.raises(UnavailableError) as caught:
        FakeVast(httpx.ConnectError("refused")).client.credit_usd()
    assert API_KEY not in str(caught.value)


@pytest.mark.parametrize("ahead", [timedelta(0), timedelta(minutes=7), -timedelta(hours=3)], ids=str)
def test_time_is_the_markets(ahead: timedelta) -> None:
    vast = FakeVast(says(200, {"credit": 1}, Date=format_datetime(NOW + ahead, usegmt=True)))
    vast.client.credit_usd()
    assert vast.client.now() == NOW + ahead
    vast.clock.sleep(60)
    assert vast.client.now() == NOW + ahead + timedelta(minutes=1)


def test_before_the_first_answer_time_is_ours() -> None:
    assert FakeVast(says()).client.now() == NOW


@pytest.mark.parametrize("url", ["http://127.0.0.1:18080", "http://127.0.0.1:18080/"])
def test_another_market_is_asked_at_its_own_address(url: str) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return says(200, {"credit": 1})

    VastClient(API_KEY, url, transport=httpx.MockTransport(answer)).credit_usd()
    assert asked == ["http://127.0.0.1:18080/api/v0/users/current"]
