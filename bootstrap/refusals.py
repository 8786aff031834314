"""What the front door says where it turns somebody down: always in the form that OpenAI's clients read."""

import json
from collections.abc import Sequence
from typing import Any

CLOSED_SECONDS = 30
STARTING_SECONDS = 5
UNREACHABLE = r"^(dial|read|write) unix |^EOF$|server closed"
"""How Caddy tells what went wrong between it and the engine; all else went wrong between it and the client."""

Json = dict[str, Any]


def route(match: Sequence[Json], *handlers: Json) -> Json:
    """Return a route that ends with what it answers."""
    return {"match": list(match), "handle": list(handlers), "terminal": True}


def both(some: Sequence[Json], others: Sequence[Json]) -> list[Json]:
    """Return matchers for what matches one of some and one of others; they look at different things."""
    return [{**one, **other} for one in some for other in others]


def unauthorized() -> Json:
    """Return what is said without the right token."""
    return error(401, "No valid token in Authorization: Bearer or x-api-key.", code="invalid_api_key")


def refused() -> Json:
    """Return what is said to those who may enter, while the door is closed."""
    return error(503, "The machine is being updated or drained.", code="closed", retry_after=CLOSED_SECONDS)


def error(status: int | str, message: str, *, code: str, retry_after: int | None = None) -> Json:
    """Return a handler that answers in the form that OpenAI's clients read."""
    headers: dict[str, list[str]] = {"Content-Type": ["application/json"]}
    if status == 401:
        headers["Www-Authenticate"] = ["Bearer"]
    if retry_after:
        headers["Retry-After"] = [str(retry_after)]
    kind = "server_error" if isinstance(status, int) and status >= 500 else "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return {"handler": "static_response", "status_code": status, "headers": headers, "body": json.dumps(body)}


def error_routes() -> list[Json]:
    """Return what is said when engine or agent cannot be reached, and when Caddy itself fails or turns down."""
    unreachable = {"vars_regexp": {"{http.error.message}": {"pattern": UNREACHABLE}}}
    unreadable = {"vars": {"{http.error.status_code}": ["502", "503", "504"]}}
    ours = {"vars_regexp": {"{http.request.orig_uri}": {"pattern": "^/(control/|metrics/host)"}}}
    failed = {"vars_regexp": {"{http.error.status_code}": {"pattern": "^5"}}}
    return [
        route(
            both([unreachable], [ours]),
            error(503, "The agent is not up.", code="agent_unavailable", retry_after=STARTING_SECONDS),
        ),
        route(
            [unreachable],
            error(503, "The engine is not up yet.", code="engine_unavailable", retry_after=STARTING_SECONDS),
        ),
        route([unreadable], error(400, "The request could not be read to its end.", code="bad_request")),
        route([failed], error(500, "The front door failed.", code="internal_error")),
        route([], error("{http.error.status_code}", "{http.error.status_text}", code="bad_request")),
    ]
