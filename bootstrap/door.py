"""The front door: Caddy's configuration, which is the whole of what a machine shows to the Internet.

An exact list of endpoints, compared with the request line as it was sent: no cleaned, decoded or differently cased
path is ever taken for one of them. Two files in the working directory close it to clients, so that closing cuts no
running answer and needs no restart: `closed`, as long as it is there, and `drain`, until the moment that it names.

Routes are tried in their order. Caddy counts what runs by the first handler of a route, and only routes of the top
level; so there is one route that hands clients' requests to the engine, and what is refused is refused beside it.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bootstrap.host.watching.door import HANDED
from bootstrap.refusals import Json, both, error, error_routes, refused, route, unauthorized
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

GRACE = "20s"
"""How long a restart of the door lets running answers end. A change of its settings lets them end by themselves."""

DRAIN_LIMIT_SECONDS = 3700
"""A drain is a lease of an hour at most, and a little for clocks; what names a later moment is garbage: open."""

BODY_BYTES = 64 * 2**20
"""Pictures travel inside of requests, in base64; vLLM holds the whole of a request in memory."""
CONTROL_BODY_BYTES = 64 * 2**10
HEADER_BYTES = 16 * 2**10

CLIENT_IDLE = "2m"
ENGINE_IDLE = "3s"
"""Shorter than vLLM's own five seconds (`VLLM_HTTP_TIMEOUT_KEEP_ALIVE`, 0.32): a request that goes out on a connection
while vLLM closes it would be lost."""

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")

FORWARDED = ("Forwarded", "X-Forwarded-*", "X-Original-*", "X-Rewrite-*", "X-Http-Method*", "X-Real-Ip", "Via")
"""What proxies tell a server that trusts them. Caddy writes some of it itself: the engine is told none."""
TOKENS = ("Authorization", "X-Api-Key", "Cookie")
SWITCHING = ("Connection", "Upgrade")
"""No request may become something else, behind which nobody counts and nobody closes."""

_DRAIN = ("PUT", "DELETE")


def render_door(identity: Identity) -> str:
    """Return Caddy's configuration for a machine.

    It says itself what is loaded: after a reload, `GET /loaded` on `door.sock` answers `loaded_mark(identity)`.

    Raises:
        ValueError: A token or a name holds characters that Caddy would read as a pattern or a placeholder.
    """
    config = _config(identity)
    mark = {"match": [{"path": ["/loaded"]}], "handle": [{"handler": "static_response", "body": loaded_mark(identity)}]}
    config["apps"]["http"]["servers"]["page"]["routes"].insert(0, mark)
    return json.dumps(config, indent=1)


def loaded_mark(identity: Identity) -> str:
    """Return what tells this configuration from any other, certificate and key included."""
    parts = (json.dumps(_config(identity)), identity.certificate, identity.private_key)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def render_door_run(caddy: str) -> str:
    """Return the script that becomes Caddy. It works in `run/`, as everything does.

    A container may have its own idea of proxies; Caddy's way to the engine is a socket beside it.

    Args:
        caddy: The program, as seen from there.
    """
    return f"""\
export DOOR_LISTEN="${{GPU_BIND_ADDRESS:-}}:{DOOR_PORT}"
export XDG_DATA_HOME="$PWD/caddy" XDG_CONFIG_HOME="$PWD/caddy"
unset {" ".join((*PROXIES, *map(str.upper, PROXIES)))}
[ -e drain ] || echo 0 >drain
exec {caddy} run --config ../bundle/door/door.json
"""


def _config(identity: Identity) -> Json:
    leaf = {"certificate": "../bundle/door/certificate.pem", "key": "../bundle/door/key.pem", "tags": ["leaf"]}
    servers = {"door": _door(identity), "page": _page()}
    return {
        "admin": {"disabled": True, "config": {"persist": False}},
        "logging": {"logs": {"default": {"encoder": _encoder(), "exclude": ["http.log.access"]}, "access": _log()}},
        "apps": {
            "http": {"grace_period": GRACE, "metrics": {}, "servers": servers},
            "tls": {"certificates": {"load_files": [leaf]}},
        },
    }


def _door(identity: Identity) -> Json:
    return {
        "listen": ["{env.DOOR_LISTEN}"],
        "protocols": ["h1", "h2"],
        "automatic_https": {"disable": True},
        # Limits for whoever connects. None is for an answer as a whole: one may take as long as it is being written.
        "read_header_timeout": "10s",
        "read_idle_timeout": "30s",
        "write_idle_timeout": "1m",
        "idle_timeout": CLIENT_IDLE,
        "max_header_bytes": HEADER_BYTES,
        # Chosen by tag, not by name: clients connect to a bare address, which sends no name.
        "tls_connection_policies": [{"protocol_min": "tls1.2", "certificate_selection": {"any_tag": ["leaf"]}}],
        "logs": {"default_logger_name": "door"},
        "routes": [*_client_routes(identity.tokens), *_own_routes(identity), _nothing()],
        "errors": {"routes": error_routes()},
    }


def _page() -> Json:
    """Return the server of Caddy's own page, for the agent."""
    page = {"match": [{"path": ["/metrics"]}], "handle": [{"handler": "metrics", "disable_openmetrics": True}]}
    nothing = {"handle": [{"handler": "static_response", "status_code": 404}]}
    return {
        "listen": ["unix/door.sock|0600"],
        "protocols": ["h1"],
        "automatic_https": {"disable": True},
        "routes": [page, nothing],
    }


def _client_routes(tokens: Mapping[str, str]) -> list[Json]:
    """Return what clients may do, the one route with `HANDED` among it."""
    for name in tokens:
        if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
            raise ValueError(f"{name!r} is no client's name")
    generating = [_exactly("GET", [path for path in READ if path.startswith("/v1/")]), _exactly("POST", WRITE)]
    health = [_exactly("GET", [path for path in READ if not path.startswith("/v1/")])]
    every, known = [*generating, *health], {"vars": {"client": list(tokens)}}
    return [
        *(_named(name, token) for name, token in tokens.items()),
        route(both(every, [{"not": [known]}]), unauthorized()),
        route(both(every, _closed()), refused()),
        route(both(every, [_too_large()]), error(413, f"Larger than {BODY_BYTES} bytes.", code="request_too_large")),
        route(
            both(generating, [known]),
            {"handler": HANDED, "key": "handed_to", "value": "engine", "early": True},
            {"handler": "request_body", "max_size": BODY_BYTES},
            _proxy("engine.sock"),
        ),
        route(both(health, [known]), _proxy("engine.sock")),
    ]


def _own_routes(identity: Identity) -> list[Json]:
    """Return what the platform and the operator may do; to them the door is never closed."""
    scrape, control = _credentials(identity.scrape_token), _credentials(identity.control_token)
    engine, host = [_exactly("GET", ["/metrics/vllm"])], [_exactly("GET", ["/metrics/host"])]
    asking = [_exactly("GET", ["/control/state"]), *(_exactly(method, ["/control/drain"]) for method in _DRAIN)]
    body = {"handler": "request_body", "max_size": CONTROL_BODY_BYTES}
    return [
        route(both([*engine, *host], [{"not": scrape}]), unauthorized()),
        route(both(asking, [{"not": control}]), unauthorized()),
        route(both(engine, scrape), {"handler": "rewrite", "uri": "/metrics"}, _proxy("engine.sock")),
        route(both(host, scrape), _proxy("agent.sock")),
        route(both(asking, control), body, _proxy("agent.sock")),
    ]


def _nothing() -> Json:
    return route([], error(404, "There is nothing here.", code="not_found"))


def _named(name: str, token: str) -> Json:
    """Return a route that notes whose token it is, for the next routes and for the log, and goes on."""
    noting = {"handler": "vars", "client": name}
    # Early: what ends in the middle is logged without what would have been added at its end.
    telling = {"handler": "log_append", "key": "client", "value": name, "early": True}
    return {"match": _credentials(token), "handle": [noting, telling]}


def _exactly(method: str, paths: Sequence[str]) -> Json:
    pattern = "|".join(re.escape(path) for path in paths)
    return {
        "method": [method],
        "vars_regexp": {"{http.request.uri}": {"pattern": rf"^({pattern})(\?.*)?$"}},
    }


def _credentials(token: str) -> list[Json]:
    if not re.fullmatch(r"[\w.~+/=-]+", token, re.ASCII):
        raise ValueError("a token holds characters that do not belong into an HTTP header")
    return [{"header": {"Authorization": [f"Bearer {token}"]}}, {"header": {"X-Api-Key": [token]}}]


def _closed() -> list[Json]:
    """Return matchers for a door that is closed or drained, by two files.

    To Caddy, a file that it cannot read is an error in the log for each request, and a text that is no number an error
    of the request; hence the conditions before the comparison, and one reading for all of them.
    """
    drained = f"""
        file({{'root': '.', 'try_files': ['drain']}}) && cel.bind(
            until, {{file.drain}},
            type(until) == string && until.trim().matches('^[0-9]{{1,12}}$')
                && int(until.trim()) > int({{time.now.unix}})
                && int(until.trim()) - int({{time.now.unix}}) <= {DRAIN_LIMIT_SECONDS})"""
    return [{"file": {"root": ".", "try_files": ["closed"]}}, {"expression": drained}]


def _too_large() -> Json:
    """Return a matcher for what says itself that it is too large: the engine is not asked to begin with it."""
    length = "{http.request.header.Content-Length}"
    return {"expression": f"{length}.matches('^[0-9]{{1,18}}$') && int({length}) > {BODY_BYTES}"}


def _proxy(socket: str) -> Json:
    """Return a handler that passes a request on, without tokens and without what proxies would tell."""
    return {
        "handler": "reverse_proxy",
        "upstreams": [{"dial": f"unix/{socket}"}],
        "transport": {
            "protocol": "http",
            "compression": False,
            "keep_alive": {"idle_timeout": ENGINE_IDLE, "max_idle_conns_per_host": 256},
        },
        "headers": {"request": {"set": {"Host": ["engine"]}, "delete": [*TOKENS, *FORWARDED, *SWITCHING]}},
    }


def _log() -> Json:
    """Return the log of requests: a line each, two old files kept."""
    file = {"output": "file", "filename": "../log/access.log", "mode": "0600", "roll_size_mb": 10, "roll_keep": 2}
    return {"include": ["http.log.access"], "writer": {**file, "roll_gzip": False}, "encoder": _encoder()}


def _encoder() -> Mapping[str, Any]:
    """Return an encoder that writes no header, for tokens stand there, no query, and nobody's address.

    The whole of a request line may be an address, `GET https://…`: what is logged is its path.
    """
    told = ("request>headers", "resp_headers", "request>tls", "user_id")
    addresses = ("request>remote_ip", "request>remote_port", "request>client_ip", "request>host")
    fields: dict[str, Json] = {name: {"filter": "delete"} for name in (*told, *addresses)}
    fields["error"] = {"filter": "regexp", "regexp": r"(\d+\.){3}\d+:\d+|\[[0-9a-f:]+\]:\d+", "value": "***"}
    fields["request>uri"] = {"filter": "regexp", "regexp": r"^[A-Za-z][A-Za-z0-9+.-]*://[^/?]*|\?.*", "value": ""}
    return {"format": "filter", "wrap": {"format": "json"}, "fields": fields}
