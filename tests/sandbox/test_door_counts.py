"""What the front door counts as running: clients' requests that the engine has in its hands, and nothing else."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.sandbox.door_engines import Engine, running, stub_engine
from tests.sandbox.door_world import BEARER, SCRAPE, Door, bearer, open_door, wait_for
from tests.sandbox.models import write_tiny_llama

LONG = {"prompt": "go on", "max_tokens": 4000, "ignore_eos": True}
BOTH = pytest.mark.parametrize("http2", [False, True], ids=["http-1.1", "http-2"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", positions=8192)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with open_door(tmp_path_factory.mktemp("door")) as door:
        yield door


@pytest.fixture
def engine(door: Door) -> Iterator[Engine]:
    with Engine(door.run) as engine:
        yield engine


@pytest.fixture(scope="module")
def stub(door: Door, model: Path) -> Iterator[httpx.Client]:
    with stub_engine(door, model, tokens_per_second=50) as client:
        yield client


def in_the_background(what: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=what, daemon=True)
    thread.start()
    return thread


def test_what_clients_ask_counts_and_health_scrapes_and_the_uninvited_do_not(door: Door, engine: Engine) -> None:
    assert door.handed() == 0
    engine.go_on.clear()
    hanging = [
        in_the_background(lambda: door.ask("GET /health", BEARER)),
        in_the_background(lambda: door.ask("GET /metrics/vllm", bearer(SCRAPE))),
    ]
    with ExitStack() as crowd:
        for number in range(40):  # connected and silent, in the middle of a request, and before a body that never comes
            tls = crowd.enter_context(door.connect())
            head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n"
            tls.sendall((b"", head, head + b"\r\n", head + b"Authorization: Bearer wrong\r\n\r\n")[number % 4])
        wait_for(lambda: sorted(engine.requests) == ["GET /health", "GET /metrics"])
        assert door.handed() == 0, "the crowd keeps nobody awake"
        hanging += [in_the_background(lambda: door.ask("POST /v1/completions", BEARER)) for _ in range(3)]
        wait_for(lambda: door.handed() == 3)
        door.drain_until("9999999999999")  # garbage: the door stays open
        hanging.append(in_the_background(lambda: door.ask("GET /v1/models", {"x-api-key": "token-b"})))
        wait_for(lambda: door.handed() == 4)
    engine.go_on.set()
    for thread in hanging:
        thread.join()
    wait_for(lambda: door.handed() == 0)


def test_what_a_closed_door_refuses_does_not_count(door: Door, engine: Engine) -> None:
    engine.go_on.clear()
    runs = in_the_background(lambda: door.ask("POST /v1/completions", BEARER))
    wait_for(lambda: door.handed() == 1)
    closed = door.run / "closed"
    closed.touch()
    try:
        refused = [door.ask("POST /v1/completions", BEARER).status for _ in range(3)]
        assert (refused, door.handed()) == ([503] * 3, 1)
    finally:
        closed.unlink()
    assert engine.requests == ["POST /v1/completions"]
    engine.go_on.set()
    runs.join()
    wait_for(lambda: door.handed() == 0)


@BOTH
def test_a_stream_arrives_word_by_word_and_counts_until_its_end(door: Door, stub: httpx.Client, http2: bool) -> None:
    ask = {**LONG, "max_tokens": 300, "stream": True}
    with door.client(http2=http2) as client, client.stream("POST", "/v1/completions", json=ask) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert (door.handed(), running(stub)) == (1, 1), "the first word came, and the engine still makes others"
        words = [line for line in lines if line.startswith("data: {")]
    assert len(words) >= 299
    wait_for(lambda: door.handed() == 0)


@BOTH
def test_a_stream_that_the_client_breaks_off_has_ended_for_all(door: Door, stub: httpx.Client, http2: bool) -> None:
    begun = len(door.log())
    with (
        door.client("token-b", http2=http2) as client,
        client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        assert door.handed() == 1
    wait_for(lambda: (door.handed(), running(stub)) == (0, 0))
    wait_for(lambda: len(door.log()) > begun)
    told = [line for line in door.log()[begun:] if line["request"]["uri"] == "/v1/completions"]
    assert [(line["client"], line["handed_to"], line["status"]) for line in told] == [("second", "engine", 200)]


@BOTH
def test_a_whole_answer_that_nobody_waits_for_any_more_is_given_up(door: Door, stub: httpx.Client, http2: bool) -> None:
    begun = len(door.log())
    with door.client(http2=http2) as client:
        in_the_background(lambda: _ask_and_be_cut(client))
        wait_for(lambda: (door.handed(), running(stub)) == (1, 1))
        _hang_up(client)
        wait_for(lambda: (door.handed(), running(stub)) == (0, 0))
    wait_for(lambda: len(door.log()) > begun)
    assert [(line["client"], line["status"]) for line in door.log()[begun:]] == [("default", 499)]


def _ask_and_be_cut(client: httpx.Client) -> None:
    with pytest.raises(httpx.HTTPError):
        client.post("/v1/completions", json=LONG)


def _hang_up(client: httpx.Client) -> None:
    """Cut the client's connection under it, as a laptop does that is shut."""
    pool = client._transport._pool  # type: ignore[attr-defined]
    for connection in pool.connections:
        stream = connection._connection._network_stream
        stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
