"""The front door: real Caddy with our configuration before an engine that tells what it was sent."""

import json
import os
import random
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import NamedTuple

import pytest

from bootstrap.door import READ, WRITE, render_door, render_door_run
from bootstrap.steps import DOOR_PORT, Identity
from dynamic_providers.lease.certificates import make_ca, sign_leaf
from dynamic_providers.store.binaries import CADDY, find_binary

SIGN = "33" * 32
NOW = datetime.now(UTC)
CA = make_ca(SIGN, NOW)
IDENTITY_TOKENS = {"default": "token-a", "second": "token-b"}
BEARER = {"Authorization": "Bearer token-a"}


class Answer(NamedTuple):
    """A status, headers in lower case, and the body."""

    status: int
    headers: dict[str, str]
    body: str


class Door:
    """A running front door; its working directory holds the `closed` file."""

    def __init__(self, run: Path, address: str) -> None:
        self.run, self.address = run, address
        self.context = ssl.create_default_context(cadata=CA)

    def connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection((self.address, DOOR_PORT), timeout=10)
        return self.context.wrap_socket(plain, server_hostname=self.address)

    def ask(self, line: str, headers: dict[str, str] | None = None) -> Answer:
        """Send a request line as it stands: no client that tidies it up."""
        lines = [f"{line} HTTP/1.1", "Host: evil.example", "Connection: close", "Content-Length: 0"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        with self.connect() as tls:
            tls.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            raw = b""
            while chunk := tls.recv(65536):
                raw += chunk
        head, _, body = raw.decode().partition("\r\n\r\n")
        first, *rest = head.split("\r\n")
        found = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in rest)}
        return Answer(int(first.split()[1]), found, body)


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        body = json.dumps({"line": f"{self.command} {self.path}", "headers": dict(self.headers)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815  (the base class's way)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    root = tmp_path_factory.mktemp("door")
    address = f"127.79.{random.randrange(256)}.{random.randrange(1, 255)}"
    leaf = sign_leaf(SIGN, CA, uid="uid0", instance_id=1, address=address, expires_at=NOW + timedelta(hours=1))
    identity = Identity("1", leaf.certificate, leaf.private_key, IDENTITY_TOKENS, "scrape", "control")
    files = {
        "bundle/door/door.json": render_door(identity),
        "bundle/door/certificate.pem": leaf.certificate,
        "bundle/door/key.pem": leaf.private_key,
        "bundle/door/run": render_door_run(str(find_binary(CADDY))),
        "run/control/state.json": '{"settings": "abc"}',
    }
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    log = (root / "door.log").open("wb")
    environment = {"PATH": os.environ["PATH"], "GPU_BIND_ADDRESS": address}
    caddy = subprocess.Popen(["bash", "../bundle/door/run"], cwd=root / "run", env=environment, stdout=log, stderr=log)
    try:
        running = Door(root / "run", address)
        wait_until_open(running, caddy)
        yield running
    finally:
        caddy.terminate()
        caddy.wait(10)
        log.close()


@pytest.fixture
def engine(door: Door, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(door.run)  # a socket's path is short
    with ThreadingUnixStreamServer("engine.sock", _Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield
        server.shutdown()
        thread.join()
    Path("engine.sock").unlink()


def wait_until_open(door: Door, caddy: "subprocess.Popen[bytes]") -> None:
    for _ in range(200):
        try:
            door.connect().close()
        except OSError:
            assert caddy.poll() is None, (door.run.parent / "door.log").read_text()
            time.sleep(0.05)
        else:
            return
    pytest.fail("the front door does not open")


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
        "GET /metrics/",
        "GET /metrics/host",
        "POST /metrics/vllm",
        "GET /control/",
        "GET /control/state.json",
        "GET /state.json",
        "GET /bundle/door/key.pem",
        "OPTIONS /v1/completions",
    ],
)
def test_everything_else_is_not_there_even_with_a_token(door: Door, line: str) -> None:
    for token in ("token-a", "scrape", "control"):
        answer = door.ask(line, {"Authorization": f"Bearer {token}"})
        assert answer.status == 404
        assert json.loads(answer.body)["error"]["type"] == "invalid_request_error"


@pytest.mark.usefixtures("engine")
def test_metrics_and_state_have_tokens_of_their_own(door: Door) -> None:
    metrics, state = "GET /metrics/vllm", "GET /control/state"
    assert json.loads(door.ask(metrics, {"Authorization": "Bearer scrape"}).body)["line"] == "GET /metrics"
    assert json.loads(door.ask(state, {"Authorization": "Bearer control"}).body) == {"settings": "abc"}
    for line, wrong in ((metrics, "control"), (metrics, "token-a"), (state, "scrape"), (state, "token-a")):
        assert door.ask(line, {"Authorization": f"Bearer {wrong}"}).status == 401


@pytest.mark.usefixtures("engine")
def test_the_engine_sees_neither_tokens_nor_the_clients_host(door: Door) -> None:
    sent = {**BEARER, "x-api-key": "token-b", "Cookie": "a=b", "X-Kept": "yes"}
    seen = {name.lower(): value for name, value in json.loads(door.ask("GET /v1/models", sent).body)["headers"].items()}
    assert seen["host"] == "engine"
    assert seen["x-kept"] == "yes"
    assert not {"authorization", "x-api-key", "cookie"} & seen.keys()


def test_an_engine_that_is_not_up_is_a_503_that_says_when_to_come_back(door: Door) -> None:
    answer = door.ask("GET /v1/models", BEARER)
    assert answer.status == 503
    assert answer.headers["retry-after"].isdigit()
    assert json.loads(answer.body)["error"]["code"] == "engine_unavailable"


@pytest.mark.usefixtures("engine")
def test_the_closed_door_tells_it_only_to_those_who_may_enter(door: Door) -> None:
    closed = door.run / "closed"
    closed.touch()
    try:
        assert door.ask("GET /v1/models", BEARER).status == 503
        assert door.ask("GET /health", BEARER).status == 503
        assert door.ask("GET /v1/models").status == 401
        assert door.ask("GET /metrics/vllm", {"Authorization": "Bearer scrape"}).status == 200
    finally:
        closed.unlink()
    assert door.ask("GET /v1/models", BEARER).status == 200


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


def test_the_log_names_requests_without_headers_or_queries(door: Door) -> None:
    door.ask("GET /v1/models?key=token-a", {**BEARER, "x-api-key": "token-b"})
    log = door.run.parent / "door.log"
    for _ in range(100):
        if '"uri":"/v1/models"' in log.read_text():
            break
        time.sleep(0.05)
    text = log.read_text()
    assert '"uri":"/v1/models"' in text
    assert "token-" not in text
