"""What is done about a disk that is too small: a machine that answers as told and writes down what it was asked."""

import asyncio
import json
import time
from datetime import timedelta
from typing import Any, cast

import pytest

from bootstrap import run, weights
from bootstrap.render import fingerprint
from bootstrap.ssh import Completed, Machine
from bootstrap.steps import Engine, Grant, Supplies
from dynamic_providers.errors import BootError

FILES = weights._files(Supplies(Grant("aa", 5, "https://store/caddy?secret"), {}), Engine("m@sha256:00", "m", ()))


class PlayedMachine:
    """Answers each command of `machine.py` with what `answers` holds for it, the last one for ever."""

    def __init__(self, **answers: list[dict[str, Any]]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.commands = ""

    async def ask(self, program: str, question: str, *, timeout: timedelta) -> Completed:
        """Write down which command it is and what of it others could see."""
        name, *arguments = json.loads(question)
        self.asked.append(" ".join([name, *(word for word in arguments if isinstance(word, str))]))
        self.commands += program
        answers = self.answers.get(name, [{}])
        return Completed(0, json.dumps(answers.pop(0) if len(answers) > 1 else answers[0]), "")

    async def run(self, command: str, *, stdin: bytes | None, timeout: timedelta) -> Completed:
        """Write down that the door is shut."""
        self.asked.append("shut door" if "touch closed" in command else command)
        return Completed(0, "", "")


def fetch(machine: PlayedMachine) -> bool:
    watch = weights.Watch(time.monotonic() + 5, lambda phase, text: None, None)
    return asyncio.run(weights._fetch(cast(Machine, machine), FILES, watch))


SHORT = {"files": [{"path": "x"}], "short_bytes": 1, "need_bytes": 16.1e9, "free_bytes": 2e9}
ENOUGH = {**SHORT, "short_bytes": 0}
DONE = {"programs": {"fetch": {"state": "EXITED"}}, "fetch": {"state": "done", "job": "another"}}


def test_where_there_is_room_the_engine_serves_on() -> None:
    machine = PlayedMachine(missing=[ENOUGH], status=[DONE])
    assert fetch(machine)
    assert machine.asked == ["missing", "status", "fetch", "status"]
    assert "secret" not in machine.commands


def test_where_there_is_none_the_engine_ends_before_its_files_go() -> None:
    machine = PlayedMachine(missing=[SHORT, ENOUGH], status=[DONE], state=[{"in_flight": 1}, {"in_flight": 0}])
    assert fetch(machine)
    assert machine.asked[:4] == ["missing", "shut door", "state", "state"], "nobody is cut off"
    assert machine.asked[4:] == ["stop engine", "prune", "missing", "status", "fetch", "status"]


def test_a_disk_that_is_too_small_for_the_model_alone_is_the_hosts_fault() -> None:
    with pytest.raises(BootError, match=r"weights: the disk has 2.0 GB free, 16.1 GB and a reserve are to go there"):
        fetch(PlayedMachine(missing=[SHORT], state=[{"in_flight": 0}]))


def test_nothing_is_asked_where_nothing_is_missing() -> None:
    machine = PlayedMachine(missing=[{**ENOUGH, "files": []}])
    assert not fetch(machine)
    assert machine.asked == ["missing"]


def test_a_download_that_died_without_a_word_is_the_hosts_fault() -> None:
    dead = {"programs": {"fetch": {"state": "EXITED"}}, "fetch": None}
    with pytest.raises(BootError, match="weights: the download ended half-way"):
        fetch(PlayedMachine(missing=[ENOUGH], status=[dead]))


def test_an_engine_that_runs_and_is_of_no_use_is_started_anew() -> None:
    files = {"run": b"exec vllm"}
    runs = {"state": "RUNNING", "pid": 7, "started": fingerprint(files)}
    machine = PlayedMachine(start=[{"pid": 8}], state=[{"in_flight": 0}])
    starter = run.Starter(cast(Machine, machine), {"engine": files})
    starter.look({"engine": runs})
    assert not asyncio.run(starter.ensure("engine"))
    assert (machine.asked, starter.pids) == ([], {"engine": 7})
    assert asyncio.run(starter.ensure("engine", anew=True))
    assert (machine.asked, starter.pids) == (["shut door", "state", "start engine"], {"engine": 8})
