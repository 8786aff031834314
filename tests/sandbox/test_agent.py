"""The agent as a real process under a real supervisor, against the market's emulator: every end comes, and in time."""

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox.agent_world import Market, World, door_page, engine_page, named, wait_until

AT_ONCE = 6
"""So many machines are watched side by side: most of a rule's time is waiting."""
DAY = 86400.0


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    market = Market(tmp_path_factory.mktemp("machines"))
    with market.emulator:
        yield market


Trouble = Callable[[World, threading.Event], None]


def kill_the_agent(world: World, over: threading.Event) -> None:
    """Kill it again and again, at any moment; now and then a look must come to its end, or there is no agent."""
    dice, before = random.Random(7), 0
    while not over.wait(dice.uniform(0, 0.4)):
        if world.heartbeat() != before:
            before = world.heartbeat()
            for pid in world.agent_pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def kill_the_supervisor(world: World, over: threading.Event) -> None:
    wait_until(world.heartbeat)
    os.kill(int((world.run / "supervisor.pid").read_text()), signal.SIGKILL)


def lose_the_lease(world: World, over: threading.Event) -> None:
    """Whoever tampers with the file frees nobody from what it said."""
    wait_until(world.heartbeat)
    (world.run / "lease.json").write_text("{")


@dataclass(frozen=True)
class Case:
    """One machine and how its rental must end."""

    lease: Mapping[str, Any]
    ending: str
    at_least: float
    running: int = 0
    at_door: int = 0
    answers: Mapping[str, tuple[int, str] | None] = field(default_factory=dict)
    trouble: Trouble | None = None
    is_disk_full: bool = False
    behind: float = 0.0


IDLE: Mapping[str, Any] = {"phase": "r", "idle_seconds": 2, "grace_seconds": 1}
OVER: Mapping[str, Any] = {"phase": "r", "idle_seconds": 900, "expires_in": 3, "drain_seconds": 1}
BOOT: Mapping[str, Any] = {**IDLE, "phase": "b", "deadline_in": 3, "drain_seconds": 1}
CASES = {
    "expired-though-busy": Case(OVER, "expired", 4, running=1, at_door=1),
    "expired-and-nobody-there": Case({**OVER, "drain_seconds": 300}, "expired", 3),
    "boot-deadline": Case(BOOT, "deadline", 3),
    "boot-deadline-and-no-engine": Case(BOOT, "deadline", 3, answers={"/metrics": (503, "")}),
    "idle": Case(IDLE, "idle", 3),
    "no-valid-reading": Case(IDLE, "unknown", 3, answers={"/metrics": (200, "<html>")}),
    "the-engine-hangs": Case({**IDLE, "idle_seconds": 5}, "unknown", 6, answers={"/metrics": None}),
    "unhealthy-with-its-last-gauges": Case(IDLE, "unknown", 3, running=3, answers={"/health": (503, "")}),
    "expired-agent-killed": Case(OVER, "expired", 4, at_door=1, trouble=kill_the_agent),
    "idle-agent-killed": Case(IDLE, "idle", 3, trouble=kill_the_agent),
    "unknown-agent-killed": Case(IDLE, "unknown", 3, answers={"/metrics": (500, "")}, trouble=kill_the_agent),
    "expired-disk-full-and-agent-killed": Case(
        OVER, "expired", 4, at_door=1, is_disk_full=True, trouble=kill_the_agent
    ),
    "idle-disk-full": Case(IDLE, "idle", 3, is_disk_full=True),
    "unknown-disk-full": Case(IDLE, "unknown", 3, is_disk_full=True, answers={"/metrics": (500, "")}),
    "boot-deadline-disk-full": Case(BOOT, "deadline", 3, is_disk_full=True),
    "expired-clock-set-back": Case(OVER, "expired", 3, behind=DAY),
    "boot-deadline-clock-set-back": Case(BOOT, "deadline", 3, behind=DAY),
    "idle-clock-set-back-agent-killed": Case(IDLE, "idle", 3, behind=DAY, trouble=kill_the_agent),
    "idle-supervisor-killed": Case(IDLE, "idle", 3, trouble=kill_the_supervisor),
    "expired-lease-lost": Case({**OVER, "expires_in": 5}, "expired", 5, trouble=lose_the_lease),
}


@dataclass(frozen=True)
class Outcome:
    """What came of a case: seconds from the lease to the end of the bill, and the rule that the agent names."""

    seconds: float
    ending: str


def play(market: Market, case: Case) -> Outcome:
    over = threading.Event()
    with market.rent(is_disk_full=case.is_disk_full) as world:
        page = engine_page(running=case.running)
        world.engine.answers.update({"/metrics": (200, page), **case.answers})
        world.door.answers["/metrics"] = (200, door_page(case.at_door))
        told_at = time.time()
        world.lease(behind=case.behind, **case.lease)
        world.start()
        trouble = threading.Thread(target=case.trouble or (lambda *_: None), args=(world, over), daemon=True)
        trouble.start()
        wait_until(lambda: market.ended_at(world) is not None)
        over.set()
        trouble.join()
        wait_until(lambda: named(world.state(), "ending"))
        # A disk that is full is one on which nothing could be kept.
        assert (world.run / "agent.json").exists() != case.is_disk_full
        ended_at = market.ended_at(world)
        assert ended_at is not None
        return Outcome(ended_at - told_at, named(world.state(), "ending"))


SLOW = {"the-engine-hangs"}


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, market: Market) -> Iterator[Mapping[str, Future[Outcome]]]:
    asked = {
        item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")
    } & CASES.keys()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {name: pool.submit(play, market, CASES[name]) for name in CASES if name in asked}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.real] if name in SLOW else []) for name in CASES]
)
def test_every_rule_ends_the_rental_and_none_too_early(name: str, outcomes: Mapping[str, Future[Outcome]]) -> None:
    case, outcome = CASES[name], outcomes[name].result()
    assert outcome.seconds >= case.at_least
    assert outcome.ending == case.ending


@pytest.fixture
def world(market: Market) -> Iterator[World]:
    with market.rent() as world:
        yield world


def test_a_market_that_fails_and_one_that_lies_are_asked_until_the_bill_ends(market: Market, world: World) -> None:
    market.emulator.fail("server_error", on="destroy", times=1)
    market.emulator.fail("destroy_lies")
    world.lease(**{**OVER, "expires_in": 1})
    world.start()
    wait_until(lambda: market.ended_at(world) is not None)
    asked = [line for line in world.log().splitlines() if line.startswith("destroy: ")]
    assert asked[0] == "destroy: the market answers 500 to DELETE"
    assert named(world.state(), "ending") == "expired"


def test_meanwhile_the_engine_is_stopped_and_the_door_shut(market: Market, world: World) -> None:
    market.emulator.fail("server_error", on="destroy", times=2)
    world.lease(**{**OVER, "expires_in": 2})
    world.start()
    wait_until(lambda: named(world.state(), "ending") == "expired")
    wait_until(lambda: "stopped: engine" in world.log("supervisor"))
    assert float(world.drain_file()) > time.time()
    assert world.ask("DELETE", "/control/drain")[1]["drain_seconds_left"] > 0, "nobody opens the door of what ends"
    assert market.ended_at(world) is None
    wait_until(lambda: market.ended_at(world) is not None)


def test_without_a_supervisor_the_engine_is_ended_all_the_same(market: Market, world: World) -> None:
    world.lease(**{**OVER, "expires_in": 4})
    world.start()
    wait_until(lambda: world.heartbeat() and (world.run / "engine.group").exists())
    group = int((world.run / "engine.group").read_text())
    kill_the_supervisor(world, threading.Event())
    wait_until(lambda: not is_alive(group))
    wait_until(lambda: market.ended_at(world) is not None)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_who_is_served_is_never_idle(market: Market, world: World) -> None:
    world.lease(phase="r", idle_seconds=1, grace_seconds=0.5)
    world.door.answers["/metrics"] = (200, door_page(1))
    world.start()
    world.wait_for_looks(9)
    world.engine.answers["/metrics"] = (200, engine_page(running=1))
    world.door.answers["/metrics"] = (200, door_page(0))
    world.wait_for_looks(9)
    for tokens in range(101, 110):  # each request too short for a gauge to show it
        world.engine.answers["/metrics"] = (200, engine_page(tokens=tokens))
        world.wait_for_looks()
    assert market.ended_at(world) is None
    wait_until(lambda: market.ended_at(world) is not None)


def test_without_a_lease_nothing_is_ended_and_no_heartbeat_says_that_all_is_well(market: Market, world: World) -> None:
    world.start()
    wait_until(world.state)
    assert named(world.state(), "phase") is None
    assert not world.heartbeat()
    assert market.ended_at(world) is None
    world.lease(**IDLE)
    wait_until(world.heartbeat)
