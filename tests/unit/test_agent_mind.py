"""What one look does to all that the agent knows: lease, activity, drain, ending."""

import json
import random
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from bootstrap.host.watching.drain import LONGEST_SECONDS, OWN_SECONDS, parse_drain, render_drain
from bootstrap.host.watching.engine import Engine, Program
from bootstrap.host.watching.memory import Memory, parse_memory, render_memory
from bootstrap.host.watching.mind import Look, Seen, advance, count_in_flight, drain_seconds, left_of, pause_seconds
from bootstrap.host.watching.moments import Moment
from bootstrap.host.watching.reasons import Reason
from bootstrap.host.watching.switch import Ending, Situation, step
from dynamic_providers.lease.policy import End, Reading, Sample
from tests.unit.test_agent_lease import RAW, TOLD, later

SHORT = RAW | {"idle_seconds": 20, "grace_seconds": 10}
ZERO = timedelta(0)


def a_look(*, in_flight: int = 0, work: float = 100.0, at_door: int | None = 0) -> Look:
    return Look(Sample(Reading(in_flight, work, 1.0), at_door), is_healthy=True)


REST, BUSY, BLIND = a_look(), a_look(at_door=1), Look(Sample(None, None), is_healthy=False)
UP, GONE = Program("RUNNING", 1), Program("EXITED", 1, 2)


class Agent:
    """An agent that looks every five seconds."""

    def __init__(self, lease: dict[str, Any] | None = SHORT) -> None:
        self.lease, self.memory, self.now = lease, Memory(TOLD), TOLD

    def look(
        self, look: Look = REST, *, program: Program | None = UP, seconds: float = 5.0, wall: float | None = None
    ) -> None:
        self.now = later(self.now, boot=seconds, wall=seconds if wall is None else wall)
        self.memory = advance(self.memory, Seen(self.lease, "settings", look, program), self.now)

    def is_killed(self) -> None:
        self.memory = parse_memory(json.loads(render_memory(self.memory)))

    @property
    def ending(self) -> Ending | None:
        return self.memory.ending


def test_idleness_closes_the_door_first_and_destroys_at_the_next_look() -> None:
    agent = Agent()
    for _ in range(6):
        agent.look()
        assert agent.ending is None
        assert drain_seconds(agent.memory, agent.now) == 0
    agent.look()
    assert agent.ending == Ending(End.IDLE, 0.0)
    assert drain_seconds(agent.memory, agent.now) == OWN_SECONDS
    agent.look()
    assert agent.ending == Ending(End.IDLE, 5.0, is_final=True)


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param(BUSY, id="a-request-that-was-let-in-before"),
        pytest.param(a_look(work=101), id="one-that-was-answered-meanwhile"),
        pytest.param(a_look(in_flight=1, at_door=None), id="busy-behind-a-door-that-cannot-be-read"),
        pytest.param(a_look(at_door=None), id="nobody-knows"),
        pytest.param(BLIND, id="nothing-can-be-read"),
    ],
)
def test_what_is_seen_behind_the_shut_door_calls_it_off(seen: Look) -> None:
    agent = Agent()
    for _ in range(7):
        agent.look()
    assert agent.ending is not None
    agent.look(seen)
    assert agent.ending is None
    assert drain_seconds(agent.memory, agent.now) == 0


def test_of_a_thousand_days_none_ends_idle_while_somebody_is_served() -> None:
    for seed in range(300):
        dice, agent = random.Random(seed), Agent()
        for _ in range(60):
            seen = dice.choice([REST, REST, REST, REST, BUSY, BLIND, a_look(at_door=None), a_look(in_flight=2)])
            was_final = bool(agent.ending and agent.ending.is_final)
            agent.look(seen)
            if agent.ending and not was_final and agent.ending.is_final and agent.ending.end is End.IDLE:
                assert seen is REST
            if dice.random() < 0.2:
                agent.is_killed()


def test_an_agent_killed_after_every_look_ends_what_is_idle_all_the_same() -> None:
    agent = Agent()
    for _ in range(8):
        agent.look()
        agent.is_killed()
    assert agent.ending == Ending(End.IDLE, 5.0, is_final=True)


@pytest.mark.parametrize(
    ("ending", "situation", "expected"),
    [
        pytest.param(None, Situation(None, 0, 0, 60, 5), None, id="no-rule"),
        pytest.param(None, Situation(End.EXPIRED, 2, 3, 60, 5), Ending(End.EXPIRED, 2), id="over-drain-first"),
        pytest.param(None, Situation(End.EXPIRED, 2, 0, 60, 5), Ending(End.EXPIRED, 2), id="even-if-nobody-is-seen"),
        pytest.param(
            Ending(End.EXPIRED, 2), Situation(End.EXPIRED, 7, 3, 60, 5), Ending(End.EXPIRED, 7), id="requests-have-time"
        ),
        pytest.param(
            Ending(End.EXPIRED, 2), Situation(End.EXPIRED, 7, None, 60, 5), Ending(End.EXPIRED, 7), id="unknown-too"
        ),
        pytest.param(
            Ending(End.EXPIRED, 2), Situation(End.EXPIRED, 7, 0, 60, 5), Ending(End.EXPIRED, 7, True), id="all-answered"
        ),
        pytest.param(
            Ending(End.EXPIRED, 55),
            Situation(End.EXPIRED, 60, 3, 60, 5),
            Ending(End.EXPIRED, 60, True),
            id="time-up",
        ),
        pytest.param(
            None, Situation(End.DEADLINE, 60, 3, 60, 5), Ending(End.DEADLINE, 60, True), id="up-before-anybody-looked"
        ),
        pytest.param(
            Ending(End.UNKNOWN, 57),
            Situation(End.UNKNOWN, 0, 3, 60, 5),
            Ending(End.UNKNOWN, 62, True),
            id="unknown",
        ),
        pytest.param(Ending(End.IDLE, 5), Situation(None, 0, 1, 60, 5), None, id="called-off"),
        pytest.param(
            Ending(End.IDLE, 5, True), Situation(None, 0, 1, 60, 5), Ending(End.IDLE, 10, True), id="never-when-final"
        ),
    ],
)
def test_how_an_ending_goes_on(ending: Ending | None, situation: Situation, expected: Ending | None) -> None:
    assert step(ending, situation) == expected


def test_a_lease_that_is_over_ends_though_the_agent_remembers_nothing() -> None:
    """Killed after every look, on a disk that takes nothing: each life begins with the file that it was told."""
    agent = Agent(RAW | {"expires_in": 100, "drain_seconds": 30})
    while not (agent.ending and agent.ending.is_final):
        agent.memory = Memory(agent.now)
        agent.look(BUSY)
        assert agent.now.boottime - TOLD.boottime <= 135
    assert agent.now.boottime - TOLD.boottime >= 130


def test_a_clock_set_back_a_day_delays_neither_expiry_nor_idleness_nor_a_drain() -> None:
    agent = Agent()
    agent.look(wall=-86400.0)
    agent.memory = replace(agent.memory, drain_left=20.0)
    agent.look(wall=-86400.0)
    assert drain_seconds(agent.memory, agent.now) == 15
    for _ in range(6):
        agent.look()
    assert agent.ending is not None
    assert agent.memory.drain_left == 0


def test_a_clock_that_jumps_ahead_ends_a_lease_but_not_the_drain_that_it_grants() -> None:
    agent = Agent(RAW | {"drain_seconds": 30})
    agent.look(BUSY)
    agent.look(BUSY, wall=86400.0)
    for _ in range(5):
        assert agent.ending is not None
        assert (agent.ending.end, agent.ending.is_final) == (End.EXPIRED, False)
        agent.look(BUSY)
    agent.look(BUSY)
    assert agent.ending is not None
    assert agent.ending.is_final


def test_a_machine_that_was_off_was_neither_idle_nor_unknown_meanwhile() -> None:
    agent = Agent(RAW | {"idle_seconds": 100, "grace_seconds": 0})
    agent.look()
    agent.look(BLIND, seconds=3000)
    assert agent.memory.activity.unknown_for == timedelta(minutes=1)
    assert agent.ending is None


def test_past_its_deadline_who_is_served_is_served_and_then_it_ends() -> None:
    agent = Agent(RAW | {"phase": "b", "deadline_in": 10})
    for _ in range(5):
        agent.look(BUSY)
        assert agent.ending is None
    agent.look(REST)
    agent.look(REST)
    assert agent.ending is not None
    assert (agent.ending.end, agent.ending.is_final) == (End.DEADLINE, True)


def test_who_asks_an_engine_that_is_gone_is_not_served() -> None:
    agent = Agent()
    for _ in range(8):
        agent.look(Look(Sample(None, 1), is_healthy=False), program=GONE)
    assert agent.memory.activity.unknown_for > ZERO
    assert agent.ending is not None
    assert agent.ending.end is End.UNKNOWN


def test_the_reading_at_the_turn_to_ready_is_the_baseline() -> None:
    agent = Agent(SHORT | {"phase": "b"})
    agent.look(a_look(work=0))
    agent.look(a_look(in_flight=1, work=50))
    assert agent.memory.active_at is None
    agent.lease = SHORT
    agent.look(a_look(work=70))
    agent.look(a_look(work=70))
    assert agent.memory.active_at is None
    assert agent.memory.activity.idle_for == timedelta(seconds=5)
    agent.look(a_look(work=71))
    assert agent.memory.active_at == agent.now.wall


def test_a_longer_lease_keeps_the_idle_clock_and_a_new_boot_begins_it_anew() -> None:
    agent = Agent()
    for _ in range(4):
        agent.look()
    assert agent.memory.activity.idle_for == timedelta(seconds=15)
    agent.lease = SHORT | {"expires_in": 9999}
    agent.look()
    assert agent.memory.activity.idle_for == timedelta(seconds=20)
    agent.lease = SHORT | {"phase": "b"}
    agent.look()
    assert agent.memory.activity.idle_for == ZERO


@pytest.mark.parametrize("raw", [None, {}, {"phase": "r"}, SHORT | {"expires_in": "long"}], ids=str)
def test_a_lease_that_is_lost_or_spoilt_goes_on_as_it_was(raw: dict[str, Any] | None) -> None:
    agent = Agent()
    agent.look()
    agent.lease = raw
    agent.look(seconds=3700)
    left = left_of(agent.memory)
    assert left is not None
    assert left.expires_in == timedelta(seconds=3600 - 3705)
    assert agent.ending is not None
    assert agent.ending.end is End.EXPIRED


def test_without_a_lease_nothing_is_judged() -> None:
    agent = Agent(None)
    agent.look(seconds=1e7)
    assert (agent.ending, left_of(agent.memory), agent.memory.use) == (None, None, None)
    assert pause_seconds(agent.memory) > 0


@pytest.mark.parametrize(
    ("look", "program", "expected"),
    [
        pytest.param(a_look(in_flight=3, at_door=1), UP, 3, id="one-request-may-be-several-at-the-engine"),
        pytest.param(a_look(in_flight=0, at_door=2), UP, 2, id="not-yet-taken-by-the-engine"),
        pytest.param(a_look(at_door=None), UP, None, id="a-door-that-cannot-be-read"),
        pytest.param(Look(Sample(None, 0), is_healthy=False), UP, None, id="a-door-that-was-reloaded-knows-no-better"),
        pytest.param(a_look(in_flight=2, at_door=None), UP, 2, id="the-engine-alone"),
        pytest.param(BLIND, None, None, id="nothing-at-all"),
        pytest.param(BLIND, GONE, 0, id="no-engine-nothing-in-flight"),
    ],
)
def test_who_is_in_flight(look: Look, program: Program | None, expected: int | None) -> None:
    assert count_in_flight(look, program) == expected


def test_an_engine_that_ended_waits_for_its_start_even_while_an_ending_may_be_called_off() -> None:
    why = Reason("cuda_out_of_memory", "take less")
    memory = advance(Memory(TOLD), Seen(SHORT, "settings", BLIND, GONE, why), later(TOLD, boot=5, wall=5))
    assert (memory.engine.reason, memory.engine.wait) == ("cuda_out_of_memory", 1.0)
    assert pause_seconds(memory) == 1.0


def test_looks_come_sooner_where_a_limit_is_near() -> None:
    agent = Agent(RAW | {"expires_in": 1000})
    agent.look(seconds=100)
    assert pause_seconds(agent.memory) == 5
    agent.look(seconds=898)
    assert pause_seconds(agent.memory) == pytest.approx(2)
    agent.look(seconds=3)
    assert pause_seconds(agent.memory) == 1, "an ending waits for requests"


def test_everything_is_known_again_after_a_kill() -> None:
    agent = Agent()
    for _ in range(7):
        agent.look()
    engine = Engine("settings", 2, {"unknown": 1}, 1, "1-2", 3.5, 1.0, 2.0, True, 9, "unknown", "look")
    memory = replace(agent.memory, engine=engine, drain_left=7.5, active_at=1.0)
    assert memory.ending
    assert parse_memory(json.loads(render_memory(memory))) == memory
    assert len(render_memory(memory)) < 2048, "it is written over in place where the disk is full: one block"


@pytest.mark.parametrize(
    "spoilt",
    [
        {},
        {"at": None},
        {"at": {"boot_id": "x", "boottime": "1", "wall": 2}},
        {"use": {"counted": None}},
        {"use": 7},
        {"activity": {}},
        {"activity": {"idle_for": 1e300, "unknown_for": 0, "stalled_for": 0, "is_busy": False, "baseline": None}},
        {"ending": {"end": "boredom", "seconds": 1, "is_final": False}},
        {"engine": {"color": "red"}},
        {"engine": {"tries": "many"}},
        {"engine": None},
        {"lease": 3},
        {"drain_left": None},
    ],
    ids=str,
)
def test_a_memory_that_is_not_ours_is_refused_whole(spoilt: dict[str, Any]) -> None:
    kept = json.loads(render_memory(Memory(TOLD)))
    with pytest.raises(ValueError):  # noqa: PT011  # any will do
        parse_memory(kept | spoilt if spoilt else {})


@pytest.mark.parametrize("seconds", [1, 60, LONGEST_SECONDS])
def test_a_drain_that_can_be_asked_for(seconds: int) -> None:
    assert parse_drain({"seconds": seconds}) == seconds


@pytest.mark.parametrize(
    ("left", "wall", "text"),
    [
        pytest.param(60.0, 1000.2, "1061", id="never-shorter-than-asked"),
        pytest.param(0.0, 1000.2, "0", id="open"),
        pytest.param(-3.0, 1000.2, "0", id="over"),
    ],
)
def test_the_file_that_the_door_reads(left: float, wall: float, text: str) -> None:
    assert render_drain(left, wall) == text


def test_another_moment_is_another_life() -> None:
    agent = Agent()
    agent.look()
    agent.memory = replace(agent.memory, drain_left=600.0)
    restarted = Moment("two", 3.0, agent.now.wall + 30)
    assert drain_seconds(agent.memory, restarted) == 570
