"""When an engine that ended is started anew, and when it is given up."""

import pytest

from bootstrap.host.watching.engine import (
    PAUSES,
    SICK_SECONDS,
    SOUND_SECONDS,
    Engine,
    Program,
    apply_settings,
    is_due,
    is_new_end,
    name_state,
    note_end,
    note_start,
    observe_engine,
)

TICK = 5.0


class Life:
    """An engine under an agent that looks every few seconds."""

    def __init__(self) -> None:
        self.engine = apply_settings(Engine(), "settings")
        self.program = Program("RUNNING", started=1)
        self.now = 1.0

    def look(self, *, is_healthy: bool = False, seconds: float = TICK) -> None:
        self.now += seconds
        self.engine = observe_engine(self.engine, self.program, is_healthy=is_healthy, elapsed=seconds)
        if is_new_end(self.engine, self.program):
            self.engine = note_end(self.engine, self.program, "bad_argument", "change it")
        if is_due(self.engine):
            self.engine = note_start(self.engine)
            self.program = Program("RUNNING", started=int(self.now), stopped=self.program.stopped)

    def end(self) -> None:
        self.program = Program("EXITED", self.program.started, int(self.now) + 1)

    def state(self, *, is_healthy: bool = False) -> str:
        return name_state(self.engine, self.program, is_healthy=is_healthy)


def test_a_crash_loop_is_given_up_after_growing_pauses() -> None:
    life, pauses = Life(), []
    for _ in range(len(PAUSES)):
        life.end()
        began = life.now
        while life.program.state == "EXITED":
            life.look(seconds=0.5)
            assert life.state() != "unhealthy"
        pauses.append(life.now - began)
    assert pauses == pytest.approx([pause + 0.5 for pause in PAUSES])
    life.end()
    for _ in range(1000):
        life.look()
    assert (life.state(), life.engine.restarts, life.engine.reason) == ("unhealthy", len(PAUSES), "bad_argument")
    assert life.engine.exits == {"bad_argument": len(PAUSES) + 1}


@pytest.mark.parametrize(
    ("healthy_for", "tries"),
    [
        pytest.param(SOUND_SECONDS - TICK, 1, id="not-long-enough"),
        pytest.param(SOUND_SECONDS, 0, id="sound-again"),
    ],
)
def test_an_engine_has_all_tries_again_once_it_was_sound(healthy_for: float, tries: int) -> None:
    life = Life()
    life.end()
    life.look()
    life.look()
    for _ in range(int(healthy_for / TICK)):
        life.look(is_healthy=True)
    assert life.engine.tries == tries
    assert (life.engine.reason is None) == (tries == 0)
    assert life.engine.exits == {"bad_argument": 1}, "what happened stays counted"


def test_an_exit_with_status_zero_is_an_end_like_any_other() -> None:
    life = Life()
    life.look(is_healthy=True)
    life.end()
    life.look()
    assert life.engine.wait == PAUSES[0]
    assert not is_new_end(life.engine, life.program), "one end is dealt with once"


@pytest.mark.parametrize("state", ["STOPPED", "STOPPING", "STARTING", "RUNNING", "BACKOFF", "UNKNOWN"])
def test_what_somebody_stopped_or_starts_is_no_end(state: str) -> None:
    assert not is_new_end(Engine(), Program(state, 1, 2))
    assert is_new_end(Engine(), Program("FATAL", 1, 2))
    assert not is_new_end(Engine(), None)


def test_whoever_else_starts_it_ends_the_wait() -> None:
    life = Life()
    life.end()
    life.look()
    life.program = Program("STARTING", started=99)
    life.look()
    assert life.engine.wait is None
    assert life.engine.restarts == 0


def test_while_settings_are_changed_nothing_is_started_and_others_begin_anew() -> None:
    life = Life()
    life.end()
    life.look()
    engine = apply_settings(life.engine, None)
    assert engine.wait is None
    assert apply_settings(engine, "settings").tries == 1, "the same settings are the same story"
    other = apply_settings(engine, "other settings")
    assert (other.tries, other.reason, other.exits) == (0, None, {"bad_argument": 1})


def test_the_states() -> None:
    life = Life()
    assert life.state() == "starting"
    assert life.state(is_healthy=True) == "running"
    life.look(is_healthy=True)
    life.look()
    assert life.state() == "running", "one look is not enough to call it unhealthy"
    for _ in range(int(SICK_SECONDS / TICK)):
        life.look()
    assert life.state() == "unhealthy"
    life.program = Program("RUNNING", started=77)
    life.look()
    assert life.state() == "starting", "another process has its own start"
    life.end()
    life.look()
    assert life.state() == "stopped"
    assert name_state(life.engine, None, is_healthy=False) == "unhealthy"
    assert name_state(life.engine, None, is_healthy=True) == "running"
