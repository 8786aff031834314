"""HTTP in front of the market: keys, routes, the record of what came in, and the form of every reply."""

import asyncio
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any
from urllib.parse import parse_qsl, unquote

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


@dataclass(frozen=True)
class Asked:
    """A request, however it came.

    Attributes:
        target: Path and query.
        caller: Address it came from.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    text: str
    caller: str | None = None

    @property
    def path(self) -> str:
        return unquote(self.target.partition("?")[0])

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self.target.partition("?")[2], keep_blank_values=True))


@dataclass
class Reply:
    """What is answered."""

    status: int
    content: Any
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def content_type(self) -> str:
        """The official client takes no other than exactly `application/json`."""
        if isinstance(self.content, str):
            return "text/html" if self.content.startswith("<html>") else "text/plain"
        return "application/json"

    @property
    def charset(self) -> str | None:
        return "utf-8" if isinstance(self.content, str) else None

    @property
    def body(self) -> bytes:
        return (self.content if isinstance(self.content, str) else json.dumps(self.content)).encode()


async def answer(market: Market, asked: Asked) -> Reply | None:
    """Answer a request; None for a connection that closes without a word."""
    record = _record(market, asked)
    await market.rentals.advance()
    reply = await _play(market, asked)
    if reply is None:
        return None
    record["status"] = reply.status
    date = format_datetime(datetime.fromtimestamp(market.clock(), UTC), usegmt=True)
    return replace(reply, headers={**reply.headers, "Date": date})


async def _serve(request: web.Request) -> web.StreamResponse:
    text = (await request.read()).decode(errors="replace")
    asked = Asked(request.method, request.path_qs, request.headers, text, request.remote)
    reply = await answer(request.app[MARKET], asked)
    if reply is None:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=503)
    return web.Response(
        status=reply.status,
        body=reply.body,
        content_type=reply.content_type,
        charset=reply.charset,
        headers=reply.headers,
    )


async def _play(market: Market, asked: Asked) -> Reply | None:
    """Answer a request, with the faults that are armed for it."""
    route = _find_route(asked)
    if route is None:
        refusal = ApiError(404, "not_found", f"no such endpoint: {asked.method} {asked.path}")
        return Reply(refusal.status, refusal.body)
    names = route.names(_parse(asked.text))
    if market.faults.take("request_lost", on=names):
        return None
    if slow := market.faults.take("slow", on=names, where="before"):
        await asyncio.sleep(slow.seconds)
    try:
        _refuse_by_fault(market, names, "before")
        _refuse_by_limit(market, asked, route)
        reply = Reply(200, await _answer(market, asked, route))
        _refuse_by_fault(market, names, "after")
        if market.faults.take("reply_lost", on=names):
            return None
    except ApiError as refusal:
        reply = Reply(refusal.status, refusal.body, refusal.headers)
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


def _refuse_by_limit(market: Market, asked: Asked, route: Route) -> None:
    caller = f"{asked.headers.get('Authorization', '')} {asked.caller}"
    wait = market.limits.seconds_to_wait(route, caller)
    if wait:
        quirks = market.quirks
        retry_after = math.ceil(wait) if quirks.tells_when_to_retry else None
        threshold = SECONDS_BETWEEN.get((route.method, route.path))
        raise too_often(quirks.too_often, threshold=threshold, retry_after=retry_after)


async def _answer(market: Market, asked: Asked, route: Route) -> Any:
    numbers = route.match(asked.method, asked.path) or ()
    owner = _check_right(market, asked, route, numbers)
    try:
        body = json.loads(asked.text) if asked.text.strip() else None
    except ValueError:
        raise ApiError(400, "invalid_request", "Invalid json body") from None
    return await route.handler(market, Call(numbers, asked.query, body, owner, asked.method))


def _find_route(asked: Asked) -> Route | None:
    for route in (*ROUTES, *CONTROLS):
        if route.match(asked.method, asked.path) is not None:
            return route
    return None


def _check_right(market: Market, asked: Asked, route: Route, numbers: tuple[int, ...]) -> str:
    """Say who calls.

    Raises:
        ApiError: The key is in the URL, is nobody's, or does not permit the call.
    """
    if _has_key_in_url(market, asked):
        # The market itself would take it. Here it fails: URLs end up in logs.
        raise ApiError(400, "key_in_url", "A key travels in the Authorization header, never in a URL")
    header = asked.headers.get("Authorization")
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


def _has_key_in_url(market: Market, asked: Asked) -> bool:
    url = asked.target
    keys = [market.account.api_key, *(rental.api_key for rental in market.rentals.alive.values())]
    return "api_key" in asked.query or any(key in url for key in keys)


def _record(market: Market, asked: Asked) -> dict[str, Any]:
    """Remember a request; the key itself is not kept, only whose it was."""
    _, _, key = asked.headers.get("Authorization", "").partition(" ")
    owner = market.owner_of(key) if key else None
    record = {
        "at": market.clock(),
        "method": asked.method,
        "path": asked.path,
        "query": asked.query,
        "body": _parse(asked.text),
        "headers": {name: value for name, value in asked.headers.items() if name != "Authorization"},
        "user_agent": asked.headers.get("User-Agent", ""),
        "key_of": owner[0] if owner else ("nobody" if not key else "unknown"),
        "key_in_url": _has_key_in_url(market, asked),
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
