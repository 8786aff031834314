"""HTTP in front of the market: keys, routes, the record of what came in, and the form of every reply."""

import asyncio
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

from aiohttp import web

from tests.sandbox.vast.api import ROUTES
from tests.sandbox.vast.call import Call, Route
from tests.sandbox.vast.controls import CONTROLS
from tests.sandbox.vast.errors import ApiError, gateway_error, too_often
from tests.sandbox.vast.market import Market
from tests.sandbox.vast.rate_limits import SECONDS_BETWEEN

MARKET: web.AppKey[Market] = web.AppKey("market", Market)


def make_app(market: Market) -> web.Application:
    """Put a market behind HTTP."""
    app = web.Application(client_max_size=4 * 1024 * 1024)
    app[MARKET] = market
    app.router.add_route("*", "/{path:.*}", _serve)
    return app


@dataclass
class _Reply:
    """What is answered; None for a connection that closes without a word."""

    status: int
    content: Any
    headers: Mapping[str, str] = field(default_factory=dict)


async def _serve(request: web.Request) -> web.StreamResponse:
    market = request.app[MARKET]
    text = (await request.read()).decode(errors="replace")
    record = _record(market, request, text)
    await market.rentals.advance()
    reply = await _play(market, request, text)
    if reply is None:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=503)
    record["status"] = reply.status
    response = _render(reply)
    response.headers["Date"] = format_datetime(datetime.fromtimestamp(market.clock(), UTC), usegmt=True)
    return response


async def _play(market: Market, request: web.Request, text: str) -> _Reply | None:
    """Answer a request, with the faults that are armed for it."""
    route = _find_route(request)
    if route is None:
        refusal = ApiError(404, "not_found", f"no such endpoint: {request.method} {request.path}")
        return _Reply(refusal.status, refusal.body)
    names = route.names(_parse(text))
    if market.faults.take("request_lost", on=names):
        return None
    if slow := market.faults.take("slow", on=names, where="before"):
        await asyncio.sleep(slow.seconds)
    try:
        _refuse_by_fault(market, names, "before")
        _refuse_by_limit(market, request, route)
        reply = _Reply(200, await _answer(market, request, route, text))
        _refuse_by_fault(market, names, "after")
        if market.faults.take("reply_lost", on=names):
            return None
    except ApiError as refusal:
        reply = _Reply(refusal.status, refusal.body, refusal.headers)
    if slow := market.faults.take("slow", on=names, where="after"):
        await asyncio.sleep(slow.seconds)
    return reply


def _refuse_by_fault(market: Market, names: frozenset[str], where: str) -> None:
    if where == "before":
        if market.faults.take("unavailable", on=names):
            raise ApiError(502, "bad_gateway", "Something went wrong on our side.")
        if fault := market.faults.take("rate_limited", on=names):
            raise too_often(fault.form, retry_after=fault.retry_after)
    if fault := market.faults.take("server_error", on=names, where=where):
        raise gateway_error(fault.status)


def _refuse_by_limit(market: Market, request: web.Request, route: Route) -> None:
    caller = f"{request.headers.get('Authorization', '')} {request.remote}"
    wait = market.limits.seconds_to_wait(route, caller)
    if wait:
        quirks = market.quirks
        retry_after = math.ceil(wait) if quirks.tells_when_to_retry else None
        threshold = SECONDS_BETWEEN.get((route.method, route.path))
        raise too_often(quirks.too_often, threshold=threshold, retry_after=retry_after)


def _render(reply: _Reply) -> web.Response:
    """Make the response; the official client takes no other content type than exactly `application/json`."""
    if isinstance(reply.content, str):
        kind = "text/html" if reply.content.startswith("<html>") else "text/plain"
        return web.Response(status=reply.status, text=reply.content, content_type=kind, headers=reply.headers)
    body = json.dumps(reply.content).encode()
    return web.Response(status=reply.status, body=body, content_type="application/json", headers=reply.headers)


async def _answer(market: Market, request: web.Request, route: Route, text: str) -> Any:
    numbers = route.match(request.method, request.path) or ()
    owner = _check_right(market, request, route, numbers)
    try:
        body = json.loads(text) if text.strip() else None
    except ValueError:
        raise ApiError(400, "invalid_request", "Invalid json body") from None
    return await route.handler(market, Call(numbers, dict(request.query), body, owner, request.method))


def _find_route(request: web.Request) -> Route | None:
    for route in (*ROUTES, *CONTROLS):
        if route.match(request.method, request.path) is not None:
            return route
    return None


def _check_right(market: Market, request: web.Request, route: Route, numbers: tuple[int, ...]) -> str:
    """Say who calls.

    Raises:
        ApiError: The key is in the URL, is nobody's, or does not permit the call.
    """
    if _has_key_in_url(market, request):
        # The market itself would take it. Here it fails: URLs end up in logs.
        raise ApiError(400, "key_in_url", "A key travels in the Authorization header, never in a URL")
    header = request.headers.get("Authorization")
    if header is None and route.who == "anyone":
        return "nobody"
    scheme, _, key = (header or "").partition(" ")
    owner = market.owner_of(key) if scheme == "Bearer" else None
    if owner is None:
        raise ApiError(market.quirks.bad_key_status, "auth_error", "Invalid user key")
    name, own_id = owner
    if name == "instance" and route.who != "anyone" and (route.who != "instance" or numbers != (own_id,)):
        raise ApiError(403, "forbidden", "This key does not permit the call")
    return name


def _has_key_in_url(market: Market, request: web.Request) -> bool:
    url = request.path_qs
    keys = [market.account.api_key, *(rental.api_key for rental in market.rentals.alive.values())]
    return "api_key" in request.query or any(key in url for key in keys)


def _record(market: Market, request: web.Request, text: str) -> dict[str, Any]:
    """Remember a request; the key itself is not kept, only whose it was."""
    _, _, key = request.headers.get("Authorization", "").partition(" ")
    owner = market.owner_of(key) if key else None
    record = {
        "at": market.clock(),
        "method": request.method,
        "path": request.path,
        "query": dict(request.query),
        "body": _parse(text),
        "headers": {name: value for name, value in request.headers.items() if name != "Authorization"},
        "user_agent": request.headers.get("User-Agent", ""),
        "key_of": owner[0] if owner else ("nobody" if not key else "unknown"),
        "key_in_url": _has_key_in_url(market, request),
        "status": None,
    }
    market.requests.append(record)
    return record


def _parse(text: str) -> Any:
    """Read a body as JSON, or as the text it is."""
    try:
        return json.loads(text) if text.strip() else None
    except ValueError:
        return text
