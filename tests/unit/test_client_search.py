"""Searching over HTTP: what the market is asked for, page after page, and where it ends."""

import json
from typing import Any

import httpx
import pytest

from dynamic_providers.vast.client import SEARCH_PAGE, SEARCH_PAGES
from tests.unit.builders import FakeVast, says


def an_offer_row(id_: int, usd_per_hour: float) -> dict[str, Any]:
    return {"id": id_, "machine_id": id_, "gpu_name": "RTX 4090", "dph_total": usd_per_hour}


def a_page(first: int, usd_per_hour: float, count: int = SEARCH_PAGE) -> httpx.Response:
    return says(200, {"offers": [an_offer_row(first + n, usd_per_hour + n / 1000) for n in range(count)]})


def test_a_search_asks_only_for_what_the_market_is_trusted_with() -> None:
    vast = FakeVast(a_page(1, 0.1, count=3))
    offers = vast.client.search_offers(["RTX 4090", "RTX 3090"], disk_gb=72.0)
    assert [offer.id for offer in offers] == [1, 2, 3]
    assert vast.lines == ["POST /api/v0/bundles/"]
    assert json.loads(vast.requests[0].content) == {
        "gpu_name": {"in": ["RTX 4090", "RTX 3090"]},
        "rentable": {"eq": True},
        "rented": {"eq": False},
        "external": {"eq": False},
        "dph_total": {"gte": 0.0},
        "order": [["dph_total", "asc"]],
        "type": "on-demand",
        "limit": 64,
        "allocated_storage": 72.0,
    }


def test_the_next_page_of_a_search_begins_at_the_last_price_and_nothing_is_twice() -> None:
    vast = FakeVast(a_page(1, 0.1), a_page(64, 0.163, count=10))  # offer 64 ends one page and begins the next
    offers = vast.client.search_offers(["RTX 4090"], disk_gb=60)
    assert sorted(offer.id for offer in offers) == list(range(1, 74))
    prices = [json.loads(request.content)["dph_total"]["gte"] for request in vast.requests]
    assert prices == [0.0, pytest.approx(0.163)]


def test_a_search_ends_when_a_page_brings_nothing_new() -> None:
    vast = FakeVast(a_page(1, 0.1))
    assert len(vast.client.search_offers(["RTX 4090"], disk_gb=60)) == SEARCH_PAGE
    assert len(vast.requests) == 2


def test_a_search_stays_within_the_markets_limit() -> None:
    pages = iter(range(1, 100))
    vast = FakeVast(lambda _: a_page(next(pages) * 1000, next(pages)))
    assert len(vast.client.search_offers(["RTX 4090"], disk_gb=60)) == SEARCH_PAGE * SEARCH_PAGES
    assert len(vast.requests) == SEARCH_PAGES


@pytest.mark.parametrize("body", [{"offers": []}, {"offers": None}, {}], ids=["empty", "null", "missing"])
def test_a_market_without_offers_has_none(body: dict[str, Any]) -> None:
    assert FakeVast(says(200, body)).client.search_offers(["RTX 4090"], disk_gb=60) == []


def test_an_offer_without_a_price_does_not_end_the_search() -> None:
    rows = [an_offer_row(n, 0.1) for n in range(SEARCH_PAGE - 1)] + [{"id": 900, "machine_id": 900}]
    vast = FakeVast(says(200, {"offers": rows}), says(200, {"offers": []}))
    assert len(vast.client.search_offers(["RTX 4090"], disk_gb=60)) == SEARCH_PAGE
