"""Every route that vLLM has, by every trick, by everybody who may not: refused, and the engine hears nothing.

The engine's stand-in counts connections, so a request that got through with a mangled path is seen as well. A client's
own token opens the routes of the list and no other: what is not on it is tried with that token too.
"""

import contextlib
import json
import os
import random
import ssl
import string
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from bootstrap.door import READ, WRITE
from tests.sandbox.door_engines import Engine
from tests.sandbox.door_world import (
    BEARER,
    CONTROL,
    SCRAPE,
    Door,
    bearer,
    open_door,
    wait_for,
)
from tests.sandbox.http2 import Http2
from tests.sandbox.tricks import FRAMINGS, LAST, LIES, PSEUDO, disguises

RECORDED = Path(__file__).parent / "data/vllm-0.32-routes.json"
OPEN = {*(f"GET {path}" for path in READ), *(f"POST {path}" for path in WRITE)}
REFUSALS = {400, 401, 404, 405, 413, 431, 501, 505}
"""None of them is an answer of the engine's; 501 and 505 are what is said to encodings and versions nobody speaks."""
CALLERS = {
    "nobody": {},
    "wrong": bearer("wrong"),
    "scrape": bearer(SCRAPE),
    "control": {"X-Api-Key": CONTROL},
}
Request = TypeVar("Request")
SEED = int(os.environ.get("FUZZ_SEED", "6"))
SHARES = pytest.mark.parametrize(
    "share", [0.05, pytest.param(1.0, marks=[pytest.mark.real, pytest.mark.timeout(900)])], ids=["some", "all"]
)
"""How much of it is sent: each route by each trick and caller takes minutes."""


def routes() -> list[tuple[str, str]]:
    found = []
    for line in json.loads(RECORDED.read_text()):
        method, path = line["route"].split(" ", 1)
        found.append(({"ANY": "GET", "WEBSOCKET": "GET"}.get(method, method), path.replace("{", "").replace("}", "")))
    return found


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with open_door(tmp_path_factory.mktemp("door")) as door:
        yield door


@pytest.fixture
def engine(door: Door) -> Iterator[Engine]:
    with Engine(door.run) as engine, Engine(door.run, "agent.sock") as agent:
        yield engine
        assert (engine.requests, engine.connections) == ([], 0), "the engine heard of it"
        assert (agent.requests, agent.connections) == ([], 0), "the agent heard of it"


def render(method: str, target: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    """Return a request as it goes over the line, followed by one that has the door close the connection."""
    named = {"Host": "a", "Content-Length": str(len(body)), **headers}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body


END = b"GET /end HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def statuses(raw: bytes) -> list[int]:
    """Return the status of every answer in what the door sent."""
    return [int(piece.split(b" ", 1)[0]) for piece in raw.split(b"HTTP/1.1 ")[1:]]


def send_all(door: Door, requests: list[bytes]) -> list[tuple[bytes, list[int]]]:
    """Send requests, many on a connection as long as the door keeps it; return what each was told."""
    told: list[tuple[bytes, list[int]]] = []
    while len(told) < len(requests):
        with door.connect() as tls:
            for request in requests[len(told) :]:
                with contextlib.suppress(OSError):
                    tls.sendall(request)
                said, is_open = _read_answer(tls, is_head=request.startswith(b"HEAD "))
                told.append((request, statuses(said)))
                if not is_open:
                    break
    return told


def _read_answer(tls: ssl.SSLSocket, *, is_head: bool) -> tuple[bytes, bool]:
    """Return one answer and whether the connection is still good for another; a refusal has a length."""
    received = b""
    with contextlib.suppress(OSError):
        while b"\r\n\r\n" not in received:
            chunk = tls.recv(65536)
            if not chunk:
                return received, False
            received += chunk
        head, _, body = received.partition(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        while len(body) < length and not is_head:
            chunk = tls.recv(65536)
            if not chunk:
                return received, False
            body += chunk
        return received, b"\r\nConnection: close" not in head
    return received, False


def assert_refused(told: list[tuple[bytes, list[int]]]) -> None:
    wrong = [(request[:200], said) for request, said in told if not said or not set(said) <= REFUSALS]
    # What is no HTTP at all may be let go without a word.
    assert not [case for case in wrong if case[1]], f"{len(wrong)} of {len(told)}, seed {SEED}"
    assert len(wrong) < len(told) / 2, "a door that says nothing at all is no door"


@SHARES
@pytest.mark.usefixtures("engine")
def test_no_route_by_any_disguise_opens_without_a_clients_token(door: Door, share: float) -> None:
    requests = [
        render(method, disguised, caller)
        for caller in CALLERS.values()
        for method, path in routes()
        for disguised in (path, *disguises(path).values())
    ]
    assert_refused(send_all(door, _some(requests, share)))


@SHARES
@pytest.mark.usefixtures("engine")
def test_a_clients_token_opens_no_disguised_and_no_other_route(door: Door, share: float) -> None:
    requests = [
        render(method, disguised, BEARER)
        for method, path in routes()
        for disguised in (path, *disguises(path).values())
        if f"{method} {disguised}" not in OPEN
    ]
    told = send_all(door, _some(requests, share))
    assert_refused(told)
    assert not [request for request, said in told if 401 in said], "the token was right: there is just nothing there"


@pytest.mark.usefixtures("engine")
def test_no_header_talks_the_door_over(door: Door) -> None:
    requests = [
        render(method, path, caller | lie("/v1/completions"))
        for caller in CALLERS.values()
        for method, path in [("POST", "/v1/completions"), ("GET", "/v1/models"), ("POST", "/invocations")]
        for lie in LIES.values()
    ]
    assert_refused(send_all(door, requests))


SMUGGLED = b"POST /invocations HTTP/1.1\r\nHost: a\r\nX-Api-Key: token-a\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("line", [b"POST /v1/completions", b"GET /v1/models", b"POST /nothing"])
def test_nothing_is_smuggled_behind_a_refused_request(door: Door, line: bytes, framing: str) -> None:
    """Whatever the door takes the rest for, a request of its own or part of the first: it opens nothing."""
    raw = door.send(line + b" HTTP/1.1\r\nHost: a\r\n" + FRAMINGS[framing] + SMUGGLED + END)
    assert set(statuses(raw)) <= REFUSALS


def test_what_is_smuggled_in_a_clients_own_request_stays_its_body(door: Door) -> None:
    """With the right token before an open route, the engine gets that request or none, and never the one inside."""
    with Engine(door.run) as engine:
        for framing in FRAMINGS.values():
            head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer token-a\r\n"
            raw = door.send(head + framing + SMUGGLED + END)
            assert set(statuses(raw)) <= REFUSALS | {200, 499, 503}
        length = str(len(SMUGGLED)).encode()
        door.send(head + b"Content-Length: " + length + b"\r\n\r\n" + SMUGGLED + END)
        assert set(engine.requests) == {"POST /v1/completions"}


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("last", LAST)
@pytest.mark.parametrize("pseudo", PSEUDO)
def test_no_frame_of_http_2_talks_the_door_over(door: Door, pseudo: str, last: str) -> None:
    talk = Http2(door)
    with talk.tls:
        status = talk.status_of(talk.send_headers([*PSEUDO[pseudo], *LAST[last]]))
    # What is asked of the server as a whole, `OPTIONS *`, Go's library answers itself, with nothing.
    assert status is None or status in REFUSALS or (pseudo, status) == ("star", 200)


@SHARES
@pytest.mark.usefixtures("engine")
def test_no_route_by_any_disguise_opens_in_http_2(door: Door, share: float) -> None:
    requests = [
        (method, disguised, [(name.lower(), value) for name, value in caller.items()])
        for caller in CALLERS.values()
        for method, path in routes()
        for disguised in (path, *disguises(path).values())
    ]
    waiting = _some(requests, share)
    while waiting:
        talk = Http2(door)
        with talk.tls:
            while waiting and not talk.ended:
                status = talk.status_of(talk.send(*waiting[-1]))
                assert status is None or status in REFUSALS, (waiting[-1], SEED)
                waiting.pop()


@SHARES
@pytest.mark.usefixtures("engine")
def test_random_requests_open_nothing(door: Door, share: float) -> None:
    chance = random.Random(SEED)
    assert_refused(send_all(door, [_random_request(chance) for _ in range(int(share * 3000))]))
    wait_for(lambda: door.handed() == 0)


def _random_request(chance: random.Random) -> bytes:
    method, path = chance.choice(routes())
    if chance.random() < 0.7:
        path = chance.choice(list(disguises(path).values()))
    if chance.random() < 0.5:
        place = chance.randrange(len(path))
        path = path[:place] + chance.choice(["%2f", "/", "..", ";", "%", "\\", "?", "#", "\t", "é", "*"]) + path[place:]
    if chance.random() < 0.3:
        method = chance.choice(["GET", "POST", "PUT", "TRACE", "PATCH", "get", "POST ", "X" * 40])
    headers = dict(chance.choice(list(CALLERS.values())))
    for lie in chance.sample(list(LIES.values()), chance.randrange(4)):
        headers |= lie(path) if chance.random() < 0.9 else {_noise(chance): _noise(chance)}
    if chance.random() < 0.3:
        headers["Authorization"] = f"{chance.choice(['Bearer', 'bearer', ''])} {_noise(chance)}"
    return render(method, path, headers)


def _noise(chance: random.Random) -> str:
    return "".join(chance.choices(string.printable[:95], k=chance.randrange(1, 30)))


def _some(requests: list[Request], share: float) -> list[Request]:
    """Return that share of the requests, in no order."""
    return random.Random(SEED).sample(requests, int(len(requests) * share))
