"""What the market answers about the account: SSH keys, secrets, money."""

import json
import re
from collections.abc import Mapping
from typing import Any

from tests.sandbox.vast.account import parse_public_key
from tests.sandbox.vast.billing import Bill
from tests.sandbox.vast.call import Call
from tests.sandbox.vast.errors import ApiError
from tests.sandbox.vast.market import Market
from tests.sandbox.vast.paging import choose_page, decode_token
from tests.sandbox.vast.query import choose_rows

Json = Mapping[str, Any]

SUCCESS: Json = {"success": True}
USER_ID = 4711
MAX_SECRETS = 100
"""The market's own bound is not documented, only that there is one (`max_secrets`)."""
_SECRET = re.compile(r"[a-zA-Z0-9_\-.]+")
DAY_SECONDS = 86_400


async def list_instance_keys(market: Market, call: Call) -> Json:
    rental = market.rentals.find(call.numbers[0])
    keys = [{"id": key_id, "public_key": text} for key_id, text in rental.keys.items()]
    # A string that holds JSON: so the market documents it.
    return {"success": True, "ssh_keys": json.dumps(keys)}


async def attach_key(market: Market, call: Call) -> Json:
    rental = market.rentals.find(call.numbers[0])
    text = parse_public_key(call.fields().get("ssh_key"))
    if text not in rental.keys.values():
        rental.keys[market.account.next_key_id()] = text
        market.rentals.authorize(rental)
    return {"success": True, "msg": "SSH key attached successfully"}


async def detach_key(market: Market, call: Call) -> Json:
    rental = market.rentals.find(call.numbers[0])
    if rental.keys.pop(call.numbers[1], None) is None:
        raise ApiError(404, "no_such_ssh_key", f"SSH key {call.numbers[1]} not found.")
    market.rentals.authorize(rental)
    return {"success": True, "msg": "SSH key removed from instance."}


async def list_account_keys(market: Market, call: Call) -> list[Json]:
    return [_account_key(key_id, text) for key_id, text in market.account.keys.items()]


async def create_account_key(market: Market, call: Call) -> Json:
    text = parse_public_key(call.fields().get("ssh_key"))
    if market.quirks.is_team_key:
        text = "Team SSH keys are not supported. SSH keys can only be created in personal context."
        raise ApiError(400, "team_ssh_keys_not_supported", text)
    if text in market.account.keys.values():
        raise ApiError(400, "invalid_args", "duplicate key")
    key_id = market.account.next_key_id()
    market.account.keys[key_id] = text
    if market.quirks.account_keys_reach_running:
        for rental in market.rentals.alive.values():
            rental.keys[key_id] = text
            market.rentals.authorize(rental)
    return {"success": True, "key": _account_key(key_id, text)}


async def update_account_key(market: Market, call: Call) -> Json:
    key_id = _known_key(market, call.numbers[0])
    market.account.keys[key_id] = parse_public_key(call.fields().get("ssh_key"))
    return {"success": True, "key": _account_key(key_id, market.account.keys[key_id])}


async def delete_account_key(market: Market, call: Call) -> Json:
    del market.account.keys[_known_key(market, call.numbers[0])]
    return SUCCESS


async def list_secrets(market: Market, call: Call) -> Json:
    return {"success": True, "secrets": dict.fromkeys(market.account.secrets, "*****")}


async def write_secret(market: Market, call: Call) -> Json:
    """Answer POST, for a new one, and PUT, for a known one; names are kept in capitals."""
    fields, known = call.fields(), market.account.secrets
    key, value = fields.get("key"), fields.get("value")
    if not isinstance(key, str) or not isinstance(value, str) or not key or not _SECRET.fullmatch(value):
        raise ApiError(400, "missing_input", "a secret needs a key, and a value of letters, digits, _, - and .")
    is_new = call.method == "POST"
    if is_new and key.upper() in known:
        raise ApiError(400, "existing_key", f"{key.upper()} exists already")
    if not is_new and key.upper() not in known:
        raise ApiError(400, "nonexistent_key", f"{key.upper()} does not exist")
    if is_new and len(known) >= MAX_SECRETS:
        raise ApiError(400, "max_secrets", f"an account has at most {MAX_SECRETS} secrets")
    known[key.upper()] = value
    return {"success": True, "msg": f"{key.upper()} {'created' if is_new else 'updated'}"}


async def delete_secret(market: Market, call: Call) -> Json:
    key = str(call.fields().get("key", "")).upper()
    if market.account.secrets.pop(key, None) is None:
        raise ApiError(400, "nonexistent_key", f"{key} does not exist")
    return {"success": True, "msg": f"{key} deleted"}


async def show_user(market: Market, call: Call) -> Json:
    credit = market.rentals.credit()
    return {
        "id": USER_ID,
        "username": "sandbox",
        "email": "sandbox@example.invalid",
        "balance": 0.0,
        "credit": credit,
        "ssh_key": None,
        "sid": "sandbox",
        "host_agreement_accepted": False,
    }


async def list_charges(market: Market, call: Call) -> Json:
    """Answer `GET /charges/`: a row for each instance that was there on one of the days asked for."""
    filters = call.parameter("select_filters", {})
    days = filters.get("day")
    if not isinstance(days, dict) or not {"gte", "lte"} <= set(days):
        raise ApiError(400, "invalid_request", "Error in query parameters: select_filters needs day gte and lte")
    now = market.clock()
    first, last = float(days["gte"]) // DAY_SECONDS, float(days["lte"]) // DAY_SECONDS
    bills = [bill for bill in market.rentals.bills() if _was_there(bill, first, last, now)]
    rows = choose_rows(
        [bill.charge(now) | {"id": bill.instance_id} for bill in bills],
        {"type": filters["type"]} if "type" in filters else {},
    )
    direction = "desc" if call.query.get("latest_first", "").lower() == "true" else "asc"
    limit = max(1, min(call.parameter("limit", 20), 100))
    page, token = choose_page(rows, [("start", direction)], limit, decode_token(call.query.get("after_token")))
    results = [{name: value for name, value in row.items() if name != "id"} for row in page]
    return {"success": True, "results": results, "count": len(page), "total": len(rows), "next_token": token}


def _known_key(market: Market, key_id: int) -> int:
    if key_id not in market.account.keys:
        raise ApiError(404, "no_such_ssh_key", f"SSH key {key_id} not found.")
    return key_id


def _account_key(key_id: int, text: str) -> Json:
    return {"id": key_id, "user_id": USER_ID, "public_key": text, "created_at": None, "deleted_at": None}


def _was_there(bill: Bill, first_day: float, last_day: float, now: float) -> bool:
    until = now if bill.meter.until is None else bill.meter.until
    return bill.meter.since // DAY_SECONDS <= last_day and until // DAY_SECONDS >= first_day
