"""Renting over HTTP: sent exactly once, whatever the market answers, and every answer understood."""

import json

import httpx
import pytest

from dynamic_providers.errors import (
    AccountError,
    OfferTakenError,
    RefusedError,
    UnavailableError,
    VastError,
)
from tests.unit.answers import UNANSWERED, no
from tests.unit.builders import FakeVast, says

TAKEN = "error 404/3603: no_such_ask Instance type by id 7 is not available."


def test_a_rental_is_asked_for_as_documented_and_its_id_returned() -> None:
    vast = FakeVast(says(200, {"success": True, "new_contract": 7835610, "instance_api_key": "secret"}))
    assert vast.client.create_instance(777, {"image": "x", "price": None}) == 7835610
    assert vast.lines == ["PUT /api/v0/asks/777/"]
    assert json.loads(vast.requests[0].content) == {"image": "x", "price": None}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        pytest.param(no(400, "invalid_args", "error 400/3467: Invalid args: x", ask_id=7), RefusedError, id="invalid"),
        pytest.param(no(400, "invalid_price"), RefusedError, id="invalid-price"),
        pytest.param(no(400, "no_ssh_key_for_vm"), RefusedError, id="no-ssh-key-for-vm"),
        pytest.param(no(400, "insufficient_credit", "Your account lacks credit"), AccountError, id="credit"),
        pytest.param(no(400, "", "Your account lacks credit; see billing"), AccountError, id="credit-in-words"),
        pytest.param(no(400, "spend_rate_limit"), AccountError, id="spend-rate-limit"),
        pytest.param(no(429, "spend_rate_limit"), AccountError, id="spend-rate-limit-as-429"),
        pytest.param(no(401, "auth_error", "Invalid user key"), AccountError, id="bad-key"),
        pytest.param(says(401, "Unauthorized"), AccountError, id="bad-key-as-text"),
        pytest.param(no(404, "", "Invalid user key"), AccountError, id="bad-key-as-404"),
        pytest.param(no(404, "", "Session expired. Please log in again."), AccountError, id="session-expired"),
        pytest.param(no(403, "auth_error", "This action requires login."), AccountError, id="no-key-as-403"),
        pytest.param(no(403, "invalid_args", "error 403/3586: Offer 7 is not your own."), RefusedError, id="not-own"),
        pytest.param(no(404, "invalid_args", TAKEN, ask_id=7), OfferTakenError, id="taken-404"),
        pytest.param(no(400, "invalid_args", TAKEN.replace("ask ", "ask  ")), OfferTakenError, id="taken-400"),
        pytest.param(no(410, "no_such_ask", "Instance type 7 is no longer available."), OfferTakenError, id="taken"),
        pytest.param(says(410, "Gone"), OfferTakenError, id="taken-410-text"),
        pytest.param(no(409, "", "offer no longer available"), OfferTakenError, id="taken-409"),
        pytest.param(no(200, "no_such_ask"), OfferTakenError, id="taken-200"),
        pytest.param(no(200, "invalid_args"), RefusedError, id="no-with-status-200"),
        pytest.param(no(500, "internal", "no_such_ask"), UnavailableError, id="500-whatever-it-says"),
        pytest.param(says(200, {"success": True}), UnavailableError, id="yes-without-an-instance"),
        *[pytest.param(*one.values, UnavailableError, id=str(one.id)) for one in UNANSWERED],
    ],
)  # fmt: skip
def test_a_no_to_a_rental_is_understood_and_never_asked_twice(
    answer: httpx.Response | Exception, error: type[VastError]
) -> None:
    vast = FakeVast(answer)
    with pytest.raises(VastError) as caught:
        vast.client.create_instance(7, {})
    assert type(caught.value) is error
    assert vast.lines == ["PUT /api/v0/asks/7/"]
    assert vast.clock.slept == 0


def test_a_refusal_keeps_the_markets_words_and_what_was_made_all_the_same() -> None:
    vast = FakeVast(no(400, "invalid_price", "bid too low", new_contract=99))
    with pytest.raises(RefusedError, match="invalid_price bid too low") as caught:
        vast.client.create_instance(7, {})
    assert (caught.value.status, caught.value.code, caught.value.new_contract) == (400, "invalid_price", 99)


@pytest.mark.parametrize(
    ("answer", "advice"),
    [(no(401, "auth_error"), "set VAST_API_KEY"), (no(400, "insufficient_credit"), "add credit")],
    ids=["key", "credit"],
)
def test_a_refusal_of_the_account_says_what_to_do(answer: httpx.Response, advice: str) -> None:
    with pytest.raises(AccountError, match=advice):
        FakeVast(answer).client.create_instance(7, {})
