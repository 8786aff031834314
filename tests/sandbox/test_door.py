"""The front door: real Caddy with our configuration before an engine that tells what it was sent."""

import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from bootstrap.door import BODY_BYTES, DRAIN_LIMIT_SECONDS, READ, WRITE
from bootstrap.steps import DOOR_PORT
from tests.sandbox.door_engines import Engine
from tests.sandbox.door_world import BEARER, CA, CONTROL, SCRAPE, Door, bearer, open_door, wait_for

CONTROL_LINES = ("GET /control/state", "PUT /control/drain", "DELETE /control/drain")


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with open_door(tmp_path_factory.mktemp("door")) as door:
        yield door


@pytest.fixture
def engine(door: Door) -> Iterator[Engine]:
    with Engine(door.run) as engine:
        yield engine


@pytest.fixture
def agent(door: Door) -> Iterator[Engine]:
    with Engine(door.run, "agent.sock") as agent:
        yield agent


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("line", [*(f"GET {path}" for path in READ), *(f"POST {path}" for path in WRITE)])
def test_an_endpoint_of_the_list_needs_a_token_and_then_reaches_the_engine(door: Door, line: str) -> None:
    assert json.loads(door.ask(line, BEARER).body)["line"] == line
    assert json.loads(door.ask(line, {"x-api-key": "token-b"}).body)["line"] == line
    assert json.loads(door.ask(line + "?beta=true", BEARER).body)["line"] == line + "?beta=true"
    refused = door.ask(line)
    assert refused.status == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert json.loads(refused.body)["error"]["code"] == "invalid_api_key"


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Authorization": "Bearer token-c"}, id="unknown"),
        pytest.param({"Authorization": "Bearer token"}, id="beginning-of-one"),
        pytest.param({"Authorization": "Bearer *"}, id="pattern"),
        pytest.param({"Authorization": "token-a"}, id="without-scheme"),
        pytest.param({"Authorization": "Basic token-a"}, id="other-scheme"),
        pytest.param({"Authorization": "Bearer "}, id="empty"),
        pytest.param({"x-api-key": ""}, id="empty-key"),
        pytest.param({"Authorization": "Bearer scrape"}, id="scrape-token"),
        pytest.param({"Authorization": "Bearer control"}, id="control-token"),
    ],
)
def test_a_wrong_token_opens_nothing(door: Door, headers: dict[str, str]) -> None:
    assert door.ask("GET /v1/models", headers).status == 401


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    "line",
    [
        "POST /invocations",
        "POST /tokenize",
        "POST /detokenize",
        "GET /docs",
        "GET /openapi.json",
        "GET /metrics",
        "GET /version",
        "GET /ping",
        "GET /load",
        "POST /scale_elastic_ep",
        "GET /",
        "GET /v1",
        "GET /v1/",
        "GET /v1/models/",
        "GET /v1/models/tiny",
        "GET //v1/models",
        "GET /v1//models",
        "GET /V1/models",
        "GET /v1/./models",
        "GET /v1/../v1/models",
        "POST /v1/../invocations",
        "POST /v1/completions/../../invocations",
        "POST /v1/%2e%2e/invocations",
        "POST /v1%2fcompletions",
        "GET /v1/%6dodels",
        "GET /v1/models%00",
        "GET /v1/models%3Fa",
        "GET /v1/models;a",
        "GET /v1/models%0a",
        "POST /v1/models",
        "GET /v1/completions",
        "PUT /v1/completions",
        "DELETE /v1/models",
        "POST /health",
        "POST /v1/audio/transcriptions",
        "POST /v1/load_lora_adapter",
        "POST /metrics/vllm",
        "GET /metrics/host/",
        "POST /metrics/host",
        "GET /metrics/",
        "GET /loaded",
        "GET /control/",
        "GET /control/drain",
        "POST /control/drain",
        "PUT /control/state",
        "DELETE /control/state",
        "GET /control/state.json",
        "GET /state.json",
        "GET /bundle/door/key.pem",
        "OPTIONS /v1/completions",
    ],
)
def test_everything_else_is_not_there_even_with_a_token(door: Door, line: str) -> None:
    for token in ("token-a", SCRAPE, CONTROL):
        answer = door.ask(line, bearer(token))
        assert answer.status == 404
        assert json.loads(answer.body)["error"]["type"] == "invalid_request_error"


@pytest.mark.usefixtures("engine", "agent")
def test_pages_and_control_have_tokens_of_their_own(door: Door) -> None:
    for line, path, token in (
        ("GET /metrics/vllm", "GET /metrics", SCRAPE),
        ("GET /metrics/host", "GET /metrics/host", SCRAPE),
        *((line, line, CONTROL) for line in CONTROL_LINES),
    ):
        assert json.loads(door.ask(line, bearer(token)).body)["line"] == path
        for wrong in {"token-a", SCRAPE, CONTROL} - {token}:
            assert door.ask(line, bearer(wrong)).status == 401
        assert door.ask(line).status == 401


def test_pages_and_control_go_each_to_its_own(door: Door, engine: Engine, agent: Engine) -> None:
    door.ask("GET /metrics/vllm", bearer(SCRAPE))
    assert (engine.requests, agent.requests) == (["GET /metrics"], [])
    for line in ("GET /metrics/host", *CONTROL_LINES):
        door.ask(line, bearer(SCRAPE if "metrics" in line else CONTROL))
    assert (len(engine.requests), agent.requests) == (1, ["GET /metrics/host", *CONTROL_LINES])


@pytest.mark.usefixtures("engine")
def test_the_engine_sees_neither_tokens_nor_hosts_nor_what_proxies_tell(door: Door) -> None:
    sent = {
        **BEARER,
        "x-api-key": "token-b",
        "Cookie": "a=b",
        "X-Forwarded-For": "1.2.3.4",
        "X-Forwarded-Host": "a",
        "Forwarded": "for=1.2.3.4",
        "X-Real-IP": "1.2.3.4",
        "X-Original-URL": "/invocations",
        "X-Rewrite-URL": "/invocations",
        "X-HTTP-Method-Override": "POST",
        "Upgrade": "websocket",
        "X-Kept": "yes",
    }
    seen = {name.lower(): value for name, value in json.loads(door.ask("GET /v1/models", sent).body)["headers"].items()}
    assert seen.pop("host") == "engine"
    assert seen.pop("x-kept") == "yes"
    assert seen.keys() <= {"content-length", "connection", "user-agent"}


def test_an_engine_that_is_not_up_is_a_503_that_says_when_to_come_back(door: Door) -> None:
    answer = door.ask("GET /v1/models", BEARER)
    assert answer.status == 503
    assert answer.headers["retry-after"].isdigit()
    assert json.loads(answer.body)["error"]["code"] == "engine_unavailable"


@pytest.mark.usefixtures("engine")
def test_an_agent_that_is_not_up_is_not_taken_for_the_engine(door: Door) -> None:
    for line in CONTROL_LINES:
        answer = door.ask(line, bearer(CONTROL))
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "agent_unavailable")


@pytest.mark.usefixtures("engine", "agent")
def test_the_closed_door_tells_it_only_to_those_who_may_enter(door: Door) -> None:
    closed = door.run / "closed"
    closed.touch()
    try:
        assert_refused(door)
    finally:
        closed.unlink()
    assert door.ask("GET /v1/models", BEARER).status == 200


@pytest.mark.usefixtures("engine", "agent")
@pytest.mark.parametrize(
    "text", [pytest.param("{}", id="bare"), pytest.param("{}\n", id="newline"), pytest.param("  {}   ", id="padded")]
)
def test_a_drain_closes_the_door_until_its_moment_and_opens_by_itself(door: Door, text: str) -> None:
    door.drain_until(text.format(int(time.time()) + 60))
    assert_refused(door)
    until = int(time.time()) + 2
    door.drain_until(text.format(until))
    wait_for(lambda: door.ask("GET /v1/models", BEARER).status == 200)
    assert time.time() >= until, "nobody lifted it: it opened by itself, not before its time"
    door.drain_until(text.format(int(time.time()) + 60))
    assert door.ask("GET /v1/models", BEARER).status == 503
    door.drain_until("0")
    assert door.ask("GET /v1/models", BEARER).status == 200


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("0", id="zero"),
        pytest.param("", id="empty"),
        pytest.param("-1", id="negative"),
        pytest.param("soon", id="word"),
        pytest.param("1e99", id="not-whole"),
        pytest.param("9" * 40, id="no-number-of-ours"),
        pytest.param(str(int(time.time()) + DRAIN_LIMIT_SECONDS + 3600), id="beyond-any-lease"),
        pytest.param("{env.PATH}", id="placeholder"),
        pytest.param("\0" * 10, id="zeros-of-a-lost-write"),
        pytest.param("7" * 3_000_000, id="huge"),
        pytest.param(None, id="missing"),
    ],
)
def test_a_drain_that_is_garbled_or_missing_leaves_the_door_open_and_the_log_quiet(
    door: Door, text: str | None
) -> None:
    before = door.own_log()
    try:
        if text is None:
            (door.run / "drain").unlink()
        else:
            door.drain_until(text)
        assert door.ask("GET /v1/models", BEARER).status == 200
    finally:
        door.drain_until("0")
    assert door.own_log() == before


def test_what_says_that_it_is_too_large_is_told_so_and_the_engine_hears_nothing_of_it(
    door: Door, engine: Engine
) -> None:
    with closing(http.client.HTTPSConnection(door.address, DOOR_PORT, context=door.context)) as connection:
        connection.putrequest("POST", "/v1/completions")
        for name, value in {**BEARER, "Content-Length": str(BODY_BYTES + 1)}.items():
            connection.putheader(name, value)
        connection.endheaders(bytes(2**19))  # the beginning of it: who sends nothing is waited for before he is told
        answer = connection.getresponse()
        assert (answer.status, json.load(answer)["error"]["code"]) == (413, "request_too_large")
    assert engine.requests == []


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("http2", [False, True], ids=["http-1.1", "http-2"])
def test_what_does_not_say_how_large_it_is_is_cut_where_it_is_too_large(door: Door, http2: bool) -> None:
    def body(size: int) -> Iterator[bytes]:
        yield from [b"x" * 2**20] * (size // 2**20)
        yield b"x" * (size % 2**20)

    with door.client(http2=http2) as client:
        assert client.post("/v1/completions", content=body(BODY_BYTES)).status_code == 200
        answer = client.post("/v1/completions", content=body(BODY_BYTES + 1))
    assert (answer.status_code, answer.json()["error"]["type"]) == (413, "invalid_request_error")


@pytest.mark.usefixtures("engine")
def test_headers_have_a_size_that_they_may_not_exceed(door: Door) -> None:
    assert door.ask("GET /v1/models", {**BEARER, "X-Long": "x" * 8_000}).status == 200
    assert door.ask("GET /v1/models", {**BEARER, "X-Long": "x" * 40_000}).status == 431


@pytest.mark.parametrize("http2", [False, True], ids=["http-1.1", "http-2"])
@pytest.mark.usefixtures("engine")
def test_it_speaks_both_ways_of_http(door: Door, http2: bool) -> None:
    with door.client(http2=http2) as client:
        answer = client.get("/v1/models")
    assert (answer.status_code, answer.http_version) == (200, "HTTP/2" if http2 else "HTTP/1.1")
    assert "alt-svc" not in answer.headers, "and no third one: nothing listens on UDP"


def test_nothing_older_than_tls_1_2_and_nothing_plain(door: Door) -> None:
    old = ssl.create_default_context(cadata=CA)
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection((door.address, DOOR_PORT)) as plain, pytest.raises(ssl.SSLError):
        old.wrap_socket(plain, server_hostname=door.address)
    with socket.create_connection((door.address, DOOR_PORT)) as plain:
        plain.sendall(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"400 Bad Request" in plain.recv(4096)


@pytest.mark.usefixtures("engine")
def test_the_log_names_requests_and_clients_without_headers_queries_or_addresses(door: Door) -> None:
    begun = len(door.log())
    door.ask("GET /v1/models?key=token-a", {**BEARER, "X-Forwarded-For": "10.11.12.13"})
    door.ask(f"GET https://{door.address}/v1/models?key=token-a", {"x-api-key": "token-b"})
    door.ask("GET /v1/models?a=b", bearer("token-c"))
    door.ask("GET /metrics/vllm", bearer(SCRAPE))
    wait_for(lambda: len(door.log()) == begun + 4)
    lines = door.log()[begun:]
    assert [(line.get("client"), line["status"], line["request"]["uri"]) for line in lines] == [
        ("default", 200, "/v1/models"),
        ("second", 200, "/v1/models"),
        (None, 401, "/v1/models"),
        (None, 200, "/metrics/vllm"),
    ]
    assert all(set(line["request"]) == {"proto", "method", "uri"} and line["ts"] > 0 for line in lines)
    text = (door.root / "log/access.log").read_text() + door.own_log()
    assert not [secret for secret in ("token-", "evil.example", "10.11.12.13", "a=b") if secret in text]
    assert door.address not in (door.root / "log/access.log").read_text()


def test_the_page_and_the_log_are_nobody_elses(door: Door) -> None:
    assert (door.run / "door.sock").stat().st_mode & 0o777 == 0o600
    assert (door.root / "log/access.log").stat().st_mode & 0o777 == 0o600


def assert_refused(door: Door) -> None:
    """Those who may enter are told to come back, the others what they are always told; the platform is let through."""
    answer = door.ask("POST /v1/completions", BEARER)
    assert (answer.status, answer.headers["retry-after"].isdigit()) == (503, True)
    assert json.loads(answer.body)["error"]["code"] == "closed"
    assert door.ask("GET /health", BEARER).status == 503
    assert door.ask("GET /v1/models", bearer("wrong")).status == 401
    assert door.ask("GET /v1/nothing", BEARER).status == 404
    assert door.ask("GET /metrics/vllm", bearer(SCRAPE)).status == 200
    assert door.ask("GET /control/state", bearer(CONTROL)).status == 200
