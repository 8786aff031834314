"""Asking what runs beside the agent, and the market: every wait has an end, and the key goes nowhere else."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bootstrap.host.watching import looks, market
from bootstrap.host.watching.looks import get
from bootstrap.host.watching.market import MarketError, ask, check_own_instance, growing_pauses

Peer = Callable[[bytes | Callable[[socket.socket], None]], None]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
KEY = "the-machines-own-key"


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    """Answer the first client on `engine.sock` with bytes, or as a function likes."""
    monkeypatch.chdir(tmp_path)
    listener, threads = socket.socket(socket.AF_UNIX), []
    listener.bind("engine.sock")
    listener.listen()

    def answer(how: bytes | Callable[[socket.socket], None]) -> None:
        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(65536)
                with contextlib.suppress(OSError):  # it hung up, as it should
                    how(client) if callable(how) else client.sendall(how)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()

    yield answer
    for thread in threads:
        thread.join()
    listener.close()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(OK + b"12345", "12345", id="whole"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n12", "12", id="to-the-end"),
        pytest.param(OK + b"123", None, id="broken-off"),
        pytest.param(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", None, id="unhealthy"),
        pytest.param(b"", None, id="nothing"),
        pytest.param(b"SSH-2.0\r\n", None, id="another-protocol"),
        pytest.param(OK[:-4] + b"5\r\n\r\n" + b"\xff" * 55, "\ufffd" * 55, id="no-text"),
    ],
)
def test_what_is_answered(engine: Peer, answer: bytes, expected: str | None) -> None:
    engine(answer)
    assert get("engine.sock", "/metrics") == expected


def test_nobody_there_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert get("engine.sock", "/metrics") is None


def test_who_hangs_or_dribbles_or_floods_is_left(engine: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(looks, "PAGE_BYTES", 10_000)
    is_over = threading.Event()

    def dribble(client: socket.socket) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not is_over.wait(0.05):
            client.sendall(b".")

    def flood(client: socket.socket) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            client.sendall(b"." * 5000)

    def hang(client: socket.socket) -> None:
        is_over.wait()

    for how in (hang, dribble, flood):
        engine(how)
        assert get("engine.sock", "/metrics") is None
    is_over.set()


class Listener:
    """A server on loopback that answers every request alike and keeps what it was asked."""

    def __init__(self, answer: bytes) -> None:
        self.asked: list[bytes] = []
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            client, _ = self._listener.accept()
            with client:
                asked = client.recv(65536)
                if not asked:
                    return
                self.asked.append(asked)
                client.sendall(self._answer)

    def close(self) -> None:
        host, _, port = self.url.removeprefix("http://").partition(":")
        socket.create_connection((host, int(port))).close()
        self._thread.join()
        self._listener.close()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in `run/` of a machine that knows its key; return the file."""
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "container.env"
    path.write_bytes(f"A=\nb\0CONTAINER_ID=7\0CONTAINER_API_KEY={KEY}\0".encode())
    return path


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], Listener]]:
    """Return what makes a market that answers so."""
    listeners = []

    def listen(answer: bytes) -> Listener:
        listeners.append(Listener(answer))
        monkeypatch.setenv("VAST_URL", listeners[-1].url + "/")
        return listeners[-1]

    yield listen
    for listener in listeners:
        listener.close()


def body(text: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param(body(b'{"instances": {"id": 7}}'), None, id="its-own"),
        pytest.param(body(b'{"instances": {"id": 8}}'), "does not show instance 7", id="another"),
        pytest.param(body(b'{"instances": null}'), "does not show instance 7", id="none"),
        pytest.param(body(b"{}"), "cannot be read", id="no-answer-to-that"),
        pytest.param(body(b"[]"), "cannot be read", id="a-list"),
        pytest.param(body(b"<html>"), "cannot be read", id="a-web-page"),
        pytest.param(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", "answers 401 to GET", id="refused"),
        pytest.param(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", "answers 500 to GET", id="failing"),
        pytest.param(b"", "does not answer", id="silent"),
    ],
)
def test_armed_is_who_has_read_its_own_instance(
    machine: Path, answering: Callable[[bytes], Listener], answer: bytes, said: str | None
) -> None:
    asked = answering(answer).asked
    if said:
        with pytest.raises(MarketError, match=said) as caught:
            check_own_instance()
        assert KEY not in str(caught.value)
    else:
        check_own_instance()
    assert asked[0].startswith(b"GET /api/v0/instances/7/ HTTP/1.1\r\n")
    assert f"Authorization: Bearer {KEY}\r\n".encode() in asked[0]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_the_key_follows_no_redirect(machine: Path, answering: Callable[[bytes], Listener], method: str) -> None:
    elsewhere = answering(body(b"{}"))
    answering(f"HTTP/1.1 302 Found\r\nLocation: {elsewhere.url}/\r\nContent-Length: 0\r\n\r\n".encode())
    with pytest.raises(MarketError, match=f"answers 302 to {method}"):
        ask(method)
    assert elsewhere.asked == []


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"CONTAINER_ID=7\0",
        b"CONTAINER_ID=7/../8\0CONTAINER_API_KEY=k\0",
        b"CONTAINER_ID=7\0CONTAINER_API_KEY=k\r\nX: y\0",
    ],
    ids=str,
)
def test_without_id_and_key_nothing_is_asked(machine: Path, content: bytes | None) -> None:
    if content is None:
        machine.unlink()
    else:
        machine.write_bytes(content)
    with pytest.raises(MarketError, match=r"container\.env"):
        ask("DELETE")


def test_a_market_at_no_address_is_an_error_and_not_an_end(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("http://127.0.0.1:1", "nonsense", "http://[::1"):
        monkeypatch.setenv("VAST_URL", url)
        with pytest.raises(MarketError, match="does not answer"):
            ask("DELETE")


def test_a_destroy_is_tried_for_ever_and_ever_more_slowly(
    machine: Path, answering: Callable[[bytes], Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answering(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n").asked
    monkeypatch.setattr(market, "growing_pauses", lambda: iter([0.0] * 20))
    ender = market.Market()
    assert asked == []
    ender.destroy()
    ender.destroy()
    until = time.monotonic() + 60
    while len(asked) < 20 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(asked) == 20
    assert all(request.startswith(b"DELETE /api/v0/instances/7/ ") for request in asked)


def test_pauses_grow_to_a_minute() -> None:
    pauses = growing_pauses()
    assert [next(pauses) for _ in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
