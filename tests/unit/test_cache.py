"""What a machine says about its start-up cache is a stranger's word."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, cast

import pytest

from bootstrap import cache
from bootstrap.ssh import Completed, Machine
from bootstrap.steps import Engine, Grant
from dynamic_providers.errors import BootError

ENGINE = Engine("tiny@sha256:" + "ab" * 32, "tiny", ())
URL = "https://store/bucket/caches/7/a.tar.gz?X-Amz-Signature=abc"
GOOD = {"size": 5, "sha256": "ab" * 32, "md5": "XrY7u+Ae7tCTyyK7j1rNww=="}


class PlayedMachine:
    """Answers every command alike, and remembers what of it others could see."""

    def __init__(self, answer: Callable[[], Awaitable[Completed]]) -> None:
        self.answer = answer
        self.commands = ""

    async def run(self, command: str, *, stdin: bytes, timeout: timedelta) -> Completed:
        self.commands += command
        return await self.answer()


def a_machine(stdout: str = "", *, status: int = 0, stderr: str = "", error: Exception | None = None) -> Machine:
    async def answer() -> Completed:
        if error:
            raise error
        return Completed(status, stdout, stderr)

    return cast(Machine, PlayedMachine(answer))


def pack(machine: Machine) -> cache.Packed:
    return asyncio.run(cache.pack(machine, ENGINE))


def test_what_it_reports_is_taken_if_it_is_in_form() -> None:
    assert pack(a_machine(json.dumps(GOOD))) == cache.Packed(5, "ab" * 32, "XrY7u+Ae7tCTyyK7j1rNww==")


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"size": cache.MOST_BYTES + 1},
        {"size": "5"},
        {"size": True},
        {"size": None},
        {"sha256": "AB" * 32},
        {"sha256": 7},
        {"md5": "no"},
        {"md5": "XrY7u+Ae7tCTyyK7j1rNww==\n"},
        {"md5": None},
    ],
    ids=str,
)
def test_what_is_not_in_form_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(cache.CacheError, match="the machine reports"):
        pack(a_machine(json.dumps(GOOD | change)))


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        pytest.param(a_machine('{"why": "the disk is full"}'), "the disk is full", id="said-no"),
        pytest.param(a_machine("[]"), "cannot be read", id="no-object"),
        pytest.param(a_machine("Traceback"), "Expecting value", id="no-json"),
        pytest.param(a_machine(status=1, stderr="a\nzlib.error: bad"), "zlib.error: bad", id="crashed"),
        pytest.param(a_machine(status=1), "without a word", id="crashed-in-silence"),
        pytest.param(a_machine(error=BootError("ssh", f"broke at {URL}")), r"broke at .*\?\*\*\*$", id="line-broke"),
    ],
)
def test_whatever_goes_wrong_is_a_cold_start_and_shows_no_url(machine: Machine, said: str) -> None:
    with pytest.raises(cache.CacheError, match=said) as caught:
        asyncio.run(cache.restore(machine, ENGINE, Grant("ab" * 32, 5, URL)))
    assert "abc" not in str(caught.value)
    assert "abc" not in cast(PlayedMachine, machine).commands


def test_a_machine_that_takes_for_ever_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "TIMEOUT", timedelta(seconds=0.01))

    async def never() -> Completed:
        await asyncio.sleep(60)
        raise AssertionError

    with pytest.raises(cache.CacheError, match="it took longer than 0 s"):
        pack(cast(Machine, PlayedMachine(never)))
