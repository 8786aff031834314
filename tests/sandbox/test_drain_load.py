"""A drain under load: who is served is served to the end, and who is refused is told when to come back.

Streams and whole answers run in HTTP/1.1 and 2 without a pause while the door is drained and opened at random moments:
twenty times here, a hundred times in `make test-real`.
"""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.sandbox.door_engines import running, stub_engine
from tests.sandbox.door_world import Door, open_door, wait_for
from tests.sandbox.models import write_tiny_llama

TOKENS_PER_SECOND = 200
CALLERS = 12
PATHS = ("/v1/completions", "/v1/chat/completions")


@dataclass
class Told:
    """What callers were told; a wrong answer is kept whole."""

    served: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with open_door(tmp_path_factory.mktemp("door")) as door:
        yield door


@pytest.fixture(scope="module")
def stub(door: Door, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    model = write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", positions=4096)
    with stub_engine(door, model, TOKENS_PER_SECOND) as client:
        yield client


@pytest.mark.parametrize(
    "rounds", [20, pytest.param(100, marks=[pytest.mark.real, pytest.mark.timeout(600)])], ids="{}-rounds".format
)
def test_no_answer_is_cut_and_every_refusal_says_when_to_come_back(door: Door, stub: httpx.Client, rounds: int) -> None:
    chance, told, stop = random.Random(rounds), Told(), threading.Event()
    with ThreadPoolExecutor(CALLERS) as pool:
        callers = [pool.submit(keep_asking, door, random.Random(number), told, stop) for number in range(CALLERS)]
        try:
            wait_for(lambda: told.served.total() > CALLERS)
            for _ in range(rounds):
                drain_once(door, chance, told)
        finally:
            stop.set()
            door.drain_until("0")
        for caller in callers:
            caller.result()
    assert told.wrong == []
    assert told.refused >= rounds, "each drain refused somebody"
    kinds = {f"HTTP/{version} {kind}" for version in ("1.1", "2") for kind in ("stream", "whole")}
    assert set(told.served) == kinds
    wait_for(lambda: (door.handed(), running(stub)) == (0, 0))


def drain_once(door: Door, chance: random.Random, told: Told) -> None:
    """Drain at a random moment, now and then until nothing runs, and open again; somebody is refused meanwhile."""
    time.sleep(chance.uniform(0, 0.1))
    refused = told.refused
    door.drain_until(str(int(time.time()) + 600))
    wait_for(lambda: told.refused > refused)
    if chance.random() < 0.2:
        wait_for(lambda: door.handed() == 0)
    served = told.served.total()
    door.drain_until("0")
    if chance.random() < 0.5:
        wait_for(lambda: told.served.total() > served)


def keep_asking(door: Door, chance: random.Random, told: Told, stop: threading.Event) -> None:
    """Ask one thing after the other over warm connections, in both ways of HTTP."""
    with door.client() as first, door.client(http2=True) as second:
        while not stop.is_set():
            client, stream = chance.choice([first, second]), chance.random() < 0.5
            path, tokens = chance.choice(PATHS), chance.randrange(1, 60)
            try:
                ask_once(client, path, tokens, stream=stream, told=told)
            except httpx.HTTPError as error:
                told.wrong.append(f"HTTP/{'2' if client is second else '1.1'} {path} {tokens} words: {error!r}")


def ask_once(client: httpx.Client, path: str, tokens: int, *, stream: bool, told: Told) -> None:
    ask: dict[str, Any] = {"max_tokens": tokens, "ignore_eos": True, "stream": stream}
    ask |= {"messages": [{"role": "user", "content": "go on"}]} if "chat" in path else {"prompt": "go on"}
    with client.stream("POST", path, json=ask) as answer:
        text = "".join(answer.iter_text())
    if answer.status_code == 503:
        is_right = answer.headers["Retry-After"].isdigit() and json.loads(text)["error"]["code"] == "closed"
        told.refused += 1
        time.sleep(0.02)  # or refusals would be all that the processors do
    else:
        is_right = answer.status_code == 200 and words_in(text, stream=stream) == tokens
        told.served[f"{answer.http_version} {'stream' if stream else 'whole'}"] += 1
    if not is_right:
        told.wrong.append(f"{answer.http_version} {path} {tokens} words, {answer.status_code}: {text}")


def words_in(text: str, *, stream: bool) -> int:
    """Return how many words an answer has; -1 if a stream has not come to its end."""
    if not stream:
        return int(json.loads(text)["usage"]["completion_tokens"])
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    if lines[-1:] != ["[DONE]"]:
        return -1
    choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
    return sum(bool(choice.get("text") or choice.get("delta", {}).get("content")) for choice in choices)
