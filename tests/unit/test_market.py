"""A destroy that does not believe a 200: asked until a complete list has lacked the instance twice."""

from typing import Any

import httpx
import pytest

from dynamic_providers.errors import LeakError
from dynamic_providers.vast.market import DESTROY_WITHIN, VastMarket
from tests.unit.builders import FakeVast, an_instance_row, says

OURS = 4242
DONE = says(200, {"success": True})
GONE = says(404, {"success": False, "error": "no_such_instance"})
FAILS = says(500, {"success": False, "error": "internal"})
LISTED, ABSENT = [an_instance_row(id=1), an_instance_row(id=OURS)], [an_instance_row(id=1)]


class Books:
    """A market that answers destroys and lists from two scripts, the last line of each for ever."""

    def __init__(self, destroys: list[httpx.Response], lists: list[Any]) -> None:
        self.scripts = {"DELETE": list(destroys), "GET": list(lists)}
        self.vast = FakeVast(self._answer)
        self.market = VastMarket(self.vast.client, self.vast.clock)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        script = self.scripts[request.method]
        line = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(line, list):
            line = {"instances": line, "next_token": None}
        return says(200, line) if isinstance(line, dict) else says(line.status_code, line.text)

    def count(self, method: str) -> int:
        return sum(request.method == method for request in self.vast.requests)


@pytest.mark.parametrize(
    ("destroys", "lists", "asked", "looked"),
    [
        pytest.param([DONE], [ABSENT], 1, 2, id="gone-at-once"),
        pytest.param([GONE], [ABSENT], 1, 2, id="gone-already"),
        pytest.param([DONE], [LISTED, LISTED, ABSENT], 3, 4, id="lingers-in-the-list"),
        pytest.param([DONE], [ABSENT, LISTED, ABSENT], 2, 4, id="absent-once-is-not-gone"),
        pytest.param([FAILS, FAILS, FAILS, DONE], [LISTED, ABSENT], 5, 3, id="fails-three-times"),
        pytest.param([DONE], [FAILS, FAILS, ABSENT], 1, 4, id="the-list-fails-for-a-while"),
        pytest.param([DONE], [ABSENT, *[FAILS] * 6, ABSENT], 2, 9, id="absent-and-then-nobody-knows-counts-anew"),
        pytest.param([DONE], [{"success": True}, ABSENT], 2, 3, id="an-answer-without-a-list-is-no-absence"),
    ],
)
def test_destroyed_is_said_only_after_two_absences(
    destroys: list[httpx.Response], lists: list[Any], asked: int, looked: int
) -> None:
    books = Books(destroys, lists)
    books.market.destroy(OURS)
    assert (books.count("DELETE"), books.count("GET")) == (asked, looked)
    assert {line for line in books.vast.lines if line.startswith("DELETE")} == {f"DELETE /api/v0/instances/{OURS}/"}
    assert books.vast.clock.slept < DESTROY_WITHIN.total_seconds()


@pytest.mark.parametrize(
    ("destroys", "lists", "reason"),
    [
        pytest.param([DONE], [LISTED], "lists it all the same", id="says-yes-and-does-nothing"),
        pytest.param([FAILS], [LISTED], "vast.ai said 500", id="never-says-yes"),
        pytest.param([DONE], [FAILS], "vast.ai said 500", id="nobody-can-be-asked"),
        pytest.param([says(400, "invalid instance_id")], [LISTED], "invalid instance_id", id="refuses"),
    ],
)
def test_what_cannot_be_ended_in_time_calls_a_human(
    destroys: list[httpx.Response], lists: list[Any], reason: str
) -> None:
    books = Books(destroys, lists)
    with pytest.raises(LeakError, match=reason) as caught:
        books.market.destroy(OURS)
    assert caught.value.instance_id == OURS
    limit = DESTROY_WITHIN.total_seconds()
    assert limit < books.vast.clock.slept < limit + 60  # a last round of tries may cross it
    assert 5 < books.count("DELETE") < 100  # neither given up early nor hammered


def test_with_a_key_that_is_refused_no_minute_is_wasted() -> None:
    books = Books([says(401, '{"success": false, "error": "auth_error"}')], [LISTED])
    with pytest.raises(LeakError, match="VAST_API_KEY"):
        books.market.destroy(OURS)
    assert books.vast.clock.slept == 0


def test_an_instance_that_is_absent_when_time_is_up_is_looked_for_once_more() -> None:
    books = Books([DONE], [LISTED])

    def answer(request: httpx.Request) -> httpx.Response:
        is_over = books.vast.clock.slept > DESTROY_WITHIN.total_seconds()
        return says(200, {"instances": ABSENT if is_over else LISTED} if request.method == "GET" else {"success": True})

    books.vast.answers = [answer]
    books.market.destroy(OURS)


def test_no_absence_is_taken_from_the_first_page_alone() -> None:
    pages = [
        {"instances": ABSENT, "next_token": "t1"},
        {"instances": [an_instance_row(id=OURS)], "next_token": None},
        ABSENT,
    ]
    books = Books([DONE], pages)
    books.market.destroy(OURS)
    assert (books.count("DELETE"), books.count("GET")) == (2, 4)


def test_relabel_and_list_pass_through() -> None:
    books = Books([DONE], [LISTED])
    assert [instance.id for instance in books.market.list()] == [1, OURS]
