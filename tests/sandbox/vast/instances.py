"""What the market answers to who rents: create, read, change, destroy."""

from collections.abc import Mapping
from typing import Any

from tests.sandbox.vast.call import Call
from tests.sandbox.vast.errors import ApiError
from tests.sandbox.vast.market import Market
from tests.sandbox.vast.order import parse_order
from tests.sandbox.vast.paging import choose_page, decode_token
from tests.sandbox.vast.query import choose_rows, parse_order_by

Json = Mapping[str, Any]

PAGE = 25
LABEL_LIMIT = 1024
SUCCESS: Json = {"success": True}

_STORED_COLUMNS = frozenset(
    {
        "actual_status",
        "cur_state",
        "gpu_name",
        "host_id",
        "id",
        "image_uuid",
        "intended_status",
        "label",
        "machine_id",
        "start_date",
        "verification",
    }
)


async def create(market: Market, call: Call) -> Json:
    return _create(market, call.numbers[0], call.body)


async def create_many(market: Market, call: Call) -> Json:
    """Answer `POST /asks/bulk/`. That each offer succeeds or fails for itself, and the reply's form, are our guess."""
    order = call.fields()
    offers, results = order.pop("ids", []), []
    for offer_id in offers:
        try:
            results.append({**_create(market, offer_id, order), "ask_id": offer_id})
        except ApiError as refusal:
            results.append({**refusal.body, "ask_id": offer_id})
    return {"success": all(result["success"] for result in results), "results": results}


async def show(market: Market, call: Call) -> Json:
    """Answer a read by id; of an instance that is not there the market says null with status 200, or 404."""
    instance_id, quirks = call.numbers[0], market.quirks
    rows = [row for row in _rows(market, "show", quirks.show_lag_seconds) if row["id"] == instance_id]
    if not rows and quirks.unknown_by_id == "404":
        raise ApiError(404, quirks.gone_word, f"Instance {instance_id} not found.")
    if not rows:
        return {"instances": None}
    row = rows[0]
    if quirks.ports_by_id == "missing":
        row = {name: value for name, value in row.items() if name != "ports"}
    elif quirks.ports_by_id == "numbers":
        row = {**row, "ports": [int(there[0]["HostPort"]) for there in (row.get("ports") or {}).values()]}
    return {"instances": row}


async def list_v0(market: Market, call: Call) -> Json:
    """Answer the deprecated list, which knows no pages."""
    rows = _rows(market, "list", market.quirks.list_lag_seconds)
    return {"instances_found": len(rows), "instances": rows}


async def list_v1(market: Market, call: Call) -> Json:
    filters = call.parameter("select_filters", {})
    for column in filters:
        if column not in _STORED_COLUMNS:
            text = f"Error in query parameters: {column} is not a valid search key"
            raise ApiError(400, "invalid_request", text)
    everything = _rows(market, "list", market.quirks.list_lag_seconds)
    found = choose_rows(everything, filters)
    order = parse_order_by([[item.get("col"), item.get("dir", "asc")] for item in call.parameter("order_by", [])])
    limit = call.parameter("limit", PAGE)
    page, token = choose_page(
        found, order, min(limit, PAGE) if limit > 0 else 5, decode_token(call.query.get("after_token"))
    )
    if page and market.faults.take("page_missing"):
        page = []
    columns = call.parameter("select_cols", ["*"])
    labels = [row["label"] or "" for row in everything]
    return {
        "success": True,
        "instances_found": len(found),
        "total_instances": len(everything),
        "label_counts": {label: labels.count(label) for label in labels},
        "next_token": token,
        "instances": page if "*" in columns else [{name: row.get(name) for name in columns} for row in page],
    }


async def list_filters(market: Market, call: Call) -> Json:
    columns = ("actual_status", "gpu_name", "verification")
    rows = _rows(market, "filters", market.quirks.list_lag_seconds)
    return {"filters": [{name: row[name] for name in columns} for row in rows]}


async def change(market: Market, call: Call) -> Json:
    """Answer `PUT /instances/N/`: a new label, or stop and start."""
    rental, fields = market.rentals.find(call.numbers[0]), call.fields()
    if "label" in fields:
        label = fields["label"]
        if not isinstance(label, str) or len(label) > LABEL_LIMIT:
            raise ApiError(400, "label_too_long", f"a label is text of at most {LABEL_LIMIT} characters")
        rental.label = market.rentals.kept_label(label)
        return SUCCESS
    return _set_state(market, rental.id, fields.get("state"))


async def change_many(market: Market, call: Call) -> Json:
    fields = call.fields()
    for instance_id in fields.get("ids", []):
        _set_state(market, instance_id, fields.get("state"))
    return SUCCESS


async def destroy(market: Market, call: Call) -> Json:
    rental = market.rentals.find(call.numbers[0])
    _destroy(market, rental.id)
    return {"success": True, "msg": "Instance destroyed successfully"}


async def destroy_many(market: Market, call: Call) -> Json:
    for instance_id in call.fields().get("instance_ids", []):
        if instance_id in market.rentals.alive:
            _destroy(market, instance_id)
    return SUCCESS


async def reboot(market: Market, call: Call) -> Json:
    market.rentals.restart(market.rentals.find(call.numbers[0]))
    return SUCCESS


async def recycle(market: Market, call: Call) -> Json:
    market.rentals.restart(market.rentals.find(call.numbers[0]), recycle=True)
    return SUCCESS


async def change_bid(market: Market, call: Call) -> Json:
    """Answer `PUT /instances/bid_price/N/`; without a price the market takes one that wins."""
    price = call.fields().get("price")
    if price is not None and (not isinstance(price, int | float) or not 0.001 <= price <= 128):
        raise ApiError(400, "invalid_price", f"a bid is a number between 0.001 and 128, not {price!r}")
    market.rentals.change_bid(market.rentals.find(call.numbers[0]), price)
    return SUCCESS


def _create(market: Market, offer_id: int, body: Any) -> Json:
    try:
        order = parse_order(body, offer_id, takes_text_numbers=market.quirks.takes_text_numbers)
        rental = market.rentals.create(offer_id, order)
    except ApiError as refusal:
        is_taken = "no_such_ask" in f"{refusal.body['error']} {refusal.body['msg']}"
        if not is_taken:
            refusal.status = market.quirks.refused_create_status or refusal.status
        raise
    return {"success": True, "new_contract": rental.id, "instance_api_key": rental.api_key}


def _rows(market: Market, call: str, lag_seconds: float) -> list[Json]:
    """Render the instances that this call knows of; it may be late."""
    if fault := market.faults.take("list_lags", on=(call,)):
        lag_seconds = fault.seconds
    now = market.clock()
    return [rental.row(now) for rental in market.rentals.known_at(now - lag_seconds)]


def _set_state(market: Market, instance_id: int, state: object) -> Json:
    rental = market.rentals.find(instance_id)
    if state == "stopped":
        market.rentals.stop(rental)
    elif state == "running":
        market.rentals.start(rental)
    else:
        raise ApiError(400, "invalid_args", f"state is running or stopped, not {state!r}")
    return SUCCESS


def _destroy(market: Market, instance_id: int) -> None:
    if market.faults.take("destroy_fails"):
        raise ApiError(500, "internal_error", "Something went wrong on our side.")
    if not market.faults.take("destroy_lies"):
        market.rentals.destroy(market.rentals.find(instance_id))
