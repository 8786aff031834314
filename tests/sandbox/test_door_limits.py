"""The front door's limits, all of them a second here: who stalls is let go, and no answer is cut for being slow."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.sandbox.door_engines import Engine
from tests.sandbox.door_world import Door, open_door, wait_for

LIMITS = ("read_header_timeout", "read_idle_timeout", "write_idle_timeout", "idle_timeout")
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer token-a\r\n"


def shorten(config: str) -> str:
    loaded: dict[str, Any] = json.loads(config)
    server = loaded["apps"]["http"]["servers"]["door"]
    assert set(LIMITS) <= set(server), "each limit is set"
    server.update(dict.fromkeys(LIMITS, "1s"))
    return json.dumps(loaded)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with open_door(tmp_path_factory.mktemp("door"), shorten) as door:
        yield door


@pytest.fixture
def engine(door: Door) -> Iterator[Engine]:
    with Engine(door.run) as engine:
        yield engine


@pytest.mark.parametrize("sent", [b"", b"GET /v1/mod", HEAD], ids=["nothing", "half-a-line", "half-the-headers"])
def test_who_does_not_say_what_he_wants_is_let_go(door: Door, engine: Engine, sent: bytes) -> None:
    door.send(sent)  # returns when the door has closed
    assert engine.connections == 0


def test_an_upload_that_stalls_is_given_up(door: Door, engine: Engine) -> None:
    # With less than 256 KiB to come, Caddy 2.11.7 waits for the rest as long as the connection lives (ADR 0011).
    answer = door.send(HEAD + b"Content-Length: 1000000\r\n\r\nnot all of it")
    assert answer[:12] in (b"HTTP/1.1 499", b"HTTP/1.1 400"), "and is not told that it was the engine"
    wait_for(lambda: door.handed() == 0)
    assert engine.requests == ["POST /v1/completions"], "it had begun"


def test_an_upload_of_nobody_we_know_is_not_waited_for(door: Door, engine: Engine) -> None:
    answer = door.send(HEAD.replace(b"token-a", b"wrong") + b"Content-Length: 100\r\n\r\nhalf of it")
    assert answer[:12] in (b"HTTP/1.1 401", b""), "with nothing said it may have been let go already"
    assert engine.connections == 0


@pytest.mark.parametrize("http2", [False, pytest.param(True, marks=pytest.mark.real)], ids=["http-1.1", "http-2"])
def test_an_engine_that_thinks_for_longer_than_any_limit_is_waited_for(door: Door, engine: Engine, http2: bool) -> None:
    engine.silence_seconds = 3.0
    with door.client(http2=http2) as client:
        assert client.post("/v1/completions", content=b"{}").status_code == 200


@pytest.mark.parametrize("http2", [False, pytest.param(True, marks=pytest.mark.real)], ids=["http-1.1", "http-2"])
def test_a_stream_may_pause_for_longer_than_any_limit(door: Door, engine: Engine, http2: bool) -> None:
    engine.pieces, engine.silence_seconds = [b"data: a\n\n", b"data: b\n\n"], 2.0
    with door.client(http2=http2) as client:
        assert client.post("/v1/completions", content=b"{}").content == b"".join(engine.pieces)


def test_a_client_that_does_not_read_does_not_hold_the_machine(door: Door, engine: Engine) -> None:
    engine.pieces = [bytes(2**20)] * 256
    with door.connect() as tls:
        tls.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        tls.sendall(HEAD + b"Content-Length: 0\r\n\r\n")
        assert tls.recv(100).startswith(b"HTTP/1.1 200")
        wait_for(lambda: door.handed() == 0)
