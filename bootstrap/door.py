"""The front door: Caddy's configuration, which is the whole of what a machine shows to the Internet.

An exact list of endpoints, compared with the request line as it was sent: no cleaned, decoded or differently cased
path is ever taken for one of them. The door is closed by a file named `closed` in the working directory, so that
closing cuts no running answer and needs no restart.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bootstrap.steps import DOOR_PORT, Identity

READ = ("/v1/models", "/health")
WRITE = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
)
"""What the clients of OpenAI and Anthropic call and vLLM answers. Whatever is not named here is answered 404."""

CLOSED_SECONDS = 30
STARTING_SECONDS = 5
GRACE = "20s"
"""How long a restart of the door lets running answers end."""

Json = dict[str, Any]


def render_door(identity: Identity) -> str:
    """Return Caddy's configuration for a machine.

    Raises:
        ValueError: A token holds characters that Caddy would read as a pattern or a placeholder.
    """
    clients = _credentials(identity.tokens.values())
    server = {
        "listen": ["{env.DOOR_LISTEN}"],
        "protocols": ["h1", "h2"],
        "automatic_https": {"disable": True},
        "read_header_timeout": "10s",
        # Chosen by tag, not by name: clients connect to a bare address, which sends no name.
        "tls_connection_policies": [{"protocol_min": "tls1.2", "certificate_selection": {"any_tag": ["leaf"]}}],
        "logs": {},
        "routes": [
            _guarded([_exactly("GET", READ), _exactly("POST", WRITE)], clients, [_closed(), _engine()]),
            _guarded([_exactly("GET", ["/metrics/vllm"])], _credentials([identity.scrape_token]), [_metrics()]),
            _guarded([_exactly("GET", ["/control/state"])], _credentials([identity.control_token]), [_state()]),
            {"handle": [_error(404, "There is nothing here.", code="not_found")]},
        ],
        "errors": {"routes": _error_routes()},
    }
    leaf = {"certificate": "../bundle/door/certificate.pem", "key": "../bundle/door/key.pem", "tags": ["leaf"]}
    config = {
        "admin": {"disabled": True, "config": {"persist": False}},
        "logging": {"logs": {"default": {"encoder": _log_encoder()}}},
        "apps": {
            "http": {"grace_period": GRACE, "servers": {"door": server}},
            "tls": {"certificates": {"load_files": [leaf]}},
        },
    }
    return json.dumps(config, indent=1)


def render_door_run(caddy: str) -> str:
    """Return the script that becomes Caddy. It works in `run/`, as everything does.

    Args:
        caddy: The program, as seen from there.
    """
    return f"""\
export DOOR_LISTEN="${{GPU_BIND_ADDRESS:-}}:{DOOR_PORT}"
export XDG_DATA_HOME="$PWD/caddy" XDG_CONFIG_HOME="$PWD/caddy"
exec {caddy} run --config ../bundle/door/door.json
"""


def _exactly(method: str, paths: Sequence[str]) -> Json:
    pattern = "|".join(re.escape(path) for path in paths)
    return {
        "method": [method],
        "vars_regexp": {"{http.request.uri}": {"pattern": rf"^({pattern})(\?.*)?$"}},
    }


def _credentials(tokens: Any) -> list[Json]:
    tokens = list(tokens)
    for token in tokens:
        if not re.fullmatch(r"[\w.~+/=-]+", token, re.ASCII):
            raise ValueError("a token holds characters that do not belong into an HTTP header")
    return [{"header": {"Authorization": [f"Bearer {token}" for token in tokens]}}, {"header": {"X-Api-Key": tokens}}]


def _guarded(match: Sequence[Json], credentials: Sequence[Json], routes: Sequence[Json]) -> Json:
    refused = _error(401, "No valid token in Authorization: Bearer or x-api-key.", code="invalid_api_key")
    inside = [{"match": [{"not": credentials}], "handle": [refused]}, *routes]
    return {"match": match, "handle": [{"handler": "subroute", "routes": inside}], "terminal": True}


def _closed() -> Json:
    answer = _error(503, "The machine is being updated or drained.", code="closed", retry_after=CLOSED_SECONDS)
    return {"match": [{"file": {"root": ".", "try_files": ["closed"]}}], "handle": [answer]}


def _engine() -> Json:
    return {"handle": [_proxy()]}


def _metrics() -> Json:
    return {"handle": [{"handler": "rewrite", "uri": "/metrics"}, _proxy()]}


def _state() -> Json:
    return {"handle": [{"handler": "rewrite", "uri": "/state.json"}, {"handler": "file_server", "root": "control"}]}


def _proxy() -> Json:
    return {
        "handler": "reverse_proxy",
        "upstreams": [{"dial": "unix/engine.sock"}],
        "flush_interval": -1,
        "headers": {"request": {"set": {"Host": ["engine"]}, "delete": ["Authorization", "X-Api-Key", "Cookie"]}},
    }


def _error(status: int, message: str, *, code: str, retry_after: int | None = None) -> Json:
    """Return a handler that answers in the form that OpenAI's clients read."""
    headers: dict[str, list[str]] = {"Content-Type": ["application/json"]}
    if status == 401:
        headers["Www-Authenticate"] = ["Bearer"]
    if retry_after:
        headers["Retry-After"] = [str(retry_after)]
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return {"handler": "static_response", "status_code": status, "headers": headers, "body": json.dumps(body)}


def _error_routes() -> list[Json]:
    """Return what is said when the engine cannot be reached, or when Caddy itself fails."""
    starting = _error(503, "The engine is not up yet.", code="engine_unavailable", retry_after=STARTING_SECONDS)
    unreachable = {"vars": {"{http.error.status_code}": ["502", "503", "504"]}}
    return [
        {"match": [unreachable], "handle": [starting]},
        {"handle": [_error(500, "The front door failed.", code="internal_error")]},
    ]


def _log_encoder() -> Mapping[str, Any]:
    """Return an encoder that writes no header, for tokens stand there, and no query."""
    fields: dict[str, Json] = {
        name: {"filter": "delete"} for name in ("request>headers", "resp_headers", "request>tls")
    }
    fields["request>uri"] = {"filter": "regexp", "regexp": r"\?.*", "value": ""}
    return {"format": "filter", "wrap": {"format": "json"}, "fields": fields}
