"""Clients, tokens and certificate change while the front door runs: nobody is cut, and who is out is out at once."""

import contextlib
import json
import os
import signal
import ssl
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from bootstrap.door import GRACE, loaded_mark
from tests.sandbox.door_engines import running, stub_engine
from tests.sandbox.door_world import PATIENCE_SECONDS, Door, an_identity, bearer, open_door, wait_for, write_files
from tests.sandbox.http2 import Http2
from tests.sandbox.models import write_tiny_llama

ASK: dict[str, Any] = {"prompt": "go on", "max_tokens": 400, "ignore_eos": True}
KINDS = [(http2, stream) for http2 in (False, True) for stream in (False, True)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", positions=4096)


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    # Answers here take longer than this grace: a reload must not hold them to it.
    with open_door(
        tmp_path, lambda config: config.replace(f'"grace_period": "{GRACE}"', '"grace_period": "1s"')
    ) as door:
        yield door


@pytest.fixture
def stub(door: Door, model: Path) -> Iterator[httpx.Client]:
    with stub_engine(door, model, tokens_per_second=50) as client:
        yield client


def models(door: Door, token: str) -> int:
    return door.ask("GET /v1/models", bearer(token)).status


def start_curl(door: Door, token: str, *, http2: bool, stream: bool) -> "subprocess.Popen[bytes]":
    """Ask with curl, which lets streams end after the server has said goodbye; httpx drops them in HTTP/2."""
    how = ["--http2" if http2 else "--http1.1", "--cacert", str(door.root / "ca.pem")]
    ask = ["-H", f"Authorization: Bearer {token}", "--json", json.dumps({**ASK, "stream": stream})]
    command = ["curl", "-sSN", *how, *ask, f"{door.url}/v1/completions"]
    return subprocess.Popen(command, env={"PATH": os.environ["PATH"]}, stdout=subprocess.PIPE)


def words_of(curl: "subprocess.Popen[bytes]", *, stream: bool) -> int:
    """Return how many words came; a whole answer says it itself."""
    text = curl.communicate(timeout=PATIENCE_SECONDS)[0].decode()
    assert curl.returncode == 0
    if not stream:
        return int(json.loads(text)["usage"]["completion_tokens"])
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return sum(bool(json.loads(line)["choices"][0]["text"]) for line in lines[:-1])


def test_running_answers_end_uncut_while_their_clients_token_is_revoked(door: Door, stub: httpx.Client) -> None:
    with ExitStack() as ends:
        tokens = ["token-a", "token-b"] * 2
        curls = [
            ends.enter_context(start_curl(door, token, http2=http2, stream=stream))
            for (http2, stream), token in zip(KINDS, tokens, strict=True)
        ]
        wait_for(lambda: running(stub) == len(KINDS))
        door.reload(door.with_tokens({"second": "token-b", "third": "token-c"}))
        wait_for(lambda: [models(door, token) for token in ("token-a", "token-b", "token-c")] == [401, 200, 200])
        assert running(stub) == len(KINDS), "all this while they run"
        words = [words_of(curl, stream=stream) for curl, (_, stream) in zip(curls, KINDS, strict=True)]
    assert words == [ASK["max_tokens"]] * len(KINDS)


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize("http2", [False, True], ids=["http-1.1", "http-2"])
def test_a_revoked_token_is_of_no_use_on_a_connection_that_was_there_before(door: Door, http2: bool) -> None:
    with door.client(http2=http2) as client:
        assert client.get("/v1/models").status_code == 200
        door.reload(door.with_tokens({"second": "token-b"}))
        # What runs is asked to end a moment after what is new has begun; once it is, it stays so.
        wait_for(lambda: client.get("/v1/models").status_code == 401)
        assert {client.get("/v1/models").status_code for _ in range(20)} == {401}


@pytest.mark.usefixtures("stub")
def test_nor_on_one_that_a_stream_keeps_open(door: Door) -> None:
    talk = Http2(door)
    with talk.tls:
        headers = [("authorization", "Bearer token-a"), ("content-type", "application/json")]
        running = talk.send("POST", "/v1/completions", headers, json.dumps({**ASK, "stream": True}).encode())
        assert talk.status_of(running) == 200
        door.reload(door.with_tokens({"second": "token-b"}))
        # The door says goodbye and takes nothing new.
        wait_for(lambda: talk.status_of(talk.send("GET", "/v1/models", headers)) is None)


def test_a_new_certificate_is_shown_from_then_on(door: Door) -> None:
    def shown() -> str:
        with door.connect() as tls:
            return ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True) or b"")

    later = an_identity(door.address, hours=2)
    assert door.identity.certificate.startswith(shown())
    assert not later.certificate.startswith(shown())
    door.reload(later)
    wait_for(lambda: later.certificate.startswith(shown()))


def test_settings_that_cannot_be_loaded_change_nothing_and_are_not_taken_for_loaded(door: Door) -> None:
    former = loaded_mark(door.identity)
    write_files(door.root, door.with_tokens({"other": "token-z"}))
    (door.root / "bundle/door/key.pem").write_text("no key")
    door.process.send_signal(signal.SIGUSR1)
    wait_for(lambda: "failed to reload config from file" in door.own_log())
    assert door.page("/loaded") == former
    assert door.ask("GET /v1/nothing").status == 404
    door.reload(door.with_tokens({"other": "token-z"}))
    assert door.page("/loaded") != former


@pytest.mark.usefixtures("stub")
def test_who_comes_while_it_reloads_is_served_or_has_to_come_again(door: Door) -> None:
    stop, statuses = threading.Event(), list[int]()

    def keep_coming() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError, IndexError):  # no answer at all: the connection was cut
                statuses.append(models(door, "token-b"))

    with ThreadPoolExecutor(2) as pool:
        comers = [pool.submit(keep_coming) for _ in range(2)]
        try:
            for number in range(5):
                seen = len(statuses)
                door.reload(door.with_tokens({"second": "token-b", f"n{number}": f"token-{number}"}))
                wait_for(lambda seen=seen: len(statuses) > seen + 5)  # type: ignore[misc]
        finally:
            stop.set()
        for comer in comers:
            comer.result()
    assert set(statuses) == {200}
