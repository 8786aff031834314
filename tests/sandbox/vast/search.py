"""What the market answers to who looks for an offer."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.sandbox.vast.call import Call
from tests.sandbox.vast.catalogue import GPU_KINDS
from tests.sandbox.vast.errors import ApiError
from tests.sandbox.vast.market import Market
from tests.sandbox.vast.query import OFFER_COLUMNS, choose_rows, parse_number, parse_order_by, sort_rows

Json = Mapping[str, Any]

DEFAULT_STORAGE_GB = 8.0
DAY_SECONDS = 86_400

_NOT_FILTERS = frozenset(
    {
        "allocated_storage",
        "disable_bundling",
        "extra_ids",
        "gpu_option",
        "limit",
        "order",
        "show_incompatible",
        "sort_option",
        "template_id",
        "type",
    }
)
_TYPES = frozenset({"on-demand", "ondemand", "bid", "reserved"})


async def search(market: Market, call: Call) -> Json:
    """Answer `POST /bundles/`, whose body is the query itself."""
    return {"offers": _search(market, call.fields())}


async def search_by_url(market: Market, call: Call) -> Json:
    """Answer `GET /bundles/?q=…`, the older form of the same."""
    return {"offers": _search(market, call.parameter("q", {}))}


async def search_asks(market: Market, call: Call) -> Json:
    """Answer `PUT /search/asks/`, which wraps the query."""
    return {"offers": _search(market, call.fields().get("q") or {})}


async def list_gpu_names(market: Market, call: Call) -> Json:
    names = {row["gpu_name"] for row in market.board.rows(0.0, market.clock())}
    return {"gpu_names": sorted(names)}


async def list_gpu_types(market: Market, call: Call) -> Json:
    return {"gpu_types": [{"canonical_name": kind.name, "gpu_ram_mb": kind.memory_mib} for kind in GPU_KINDS]}


def _search(market: Market, query: dict[str, Any]) -> list[Json]:
    if market.faults.take("search_quota"):
        midnight = (market.clock() // DAY_SECONDS + 1) * DAY_SECONDS
        reset = {"X-RateLimit-Reset": f"{midnight:.0f}"}
        raise ApiError(429, "search_quota_exceeded", "Daily search quota exceeded", headers=reset)
    kind = query.get("type", "on-demand")
    if kind not in _TYPES:
        raise ApiError(400, "invalid_request", f"Error in query parameters: {kind!r} is not a type")
    storage_gb = parse_number(query.get("allocated_storage", DEFAULT_STORAGE_GB))
    rows: Sequence[Json] = market.board.rows(storage_gb, market.clock())
    if kind == "bid":
        rows = [_as_bid(row) for row in rows]
    filters = {name: value for name, value in query.items() if name not in _NOT_FILTERS}
    if reliability := filters.pop("target_reliability", None):
        filters["expected_reliability"] = reliability
    found = choose_rows(rows, filters, OFFER_COLUMNS)
    found = [row for row in found if row["disk_space"] >= storage_gb]
    order = parse_order_by(query.get("order") or [["score", "desc"]])
    cap = market.quirks.search_cap
    return sort_rows(found, order)[: min(int(parse_number(query.get("limit") or cap)), cap)]


def _as_bid(row: Json) -> Json:
    """An offer as who bids sees it: at the lowest price that may win."""
    return {**row, "is_bid": True, "dph_base": row["min_bid"], "dph_total": row["min_bid"] + row["storage_total_cost"]}
