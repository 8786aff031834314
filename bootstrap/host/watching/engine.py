"""How the engine is doing, and when it is started anew after it ended by itself. Pure.

Bounded: an engine that ends again and again is given up with the reason from its log, and the lease's rules end the
rental. Runs on the machine: standard library only, Python 3.11.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

PAUSES = (1.0, 5.0, 15.0, 60.0, 120.0)
"""Seconds before each try. vLLM takes minutes to come up: more tries would cost more than another machine does."""

SOUND_SECONDS = 600.0
"""Healthy for so long, an engine has all tries again."""

SICK_SECONDS = 60.0
"""An engine that was healthy and does not say so any more is unhealthy after this; a long prompt may keep it busy."""

ENDED = frozenset({"EXITED", "FATAL"})
RUNS = frozenset({"STARTING", "RUNNING", "BACKOFF"})
NOT_THERE = ENDED | {"STOPPED"}


@dataclass(frozen=True)
class Program:
    """A program as the supervisor sees it.

    Attributes:
        state: The supervisor's word.
        started: When it was started last, unix seconds.
        stopped: When it ended last; zero if it never did.
    """

    state: str
    started: int = 0
    stopped: int = 0

    @property
    def life(self) -> str:
        """Tell one end of the program from another."""
        return f"{self.started}-{self.stopped}"


@dataclass(frozen=True)
class Engine:
    """The engine's story as far as it matters.

    Attributes:
        settings: What was applied when the story began; with other settings it begins anew.
        restarts: How often it was started anew, in all.
        exits: How often it ended by itself, by reason.
        tries: Starts since it was last sound.
        end: The last end that was seen.
        wait: Seconds until it is started anew; None if it need not be.
        healthy_for: Seconds; zero as soon as it is not.
        sick_for: Seconds for which one that was healthy has not been so.
        was_healthy: Whether this process ever was.
        started: Which process that is.
        reason: Why it ended last, as long as it is not sound again.
        message: What to do about that.
    """

    settings: str | None = None
    restarts: int = 0
    exits: Mapping[str, int] = field(default_factory=dict)
    tries: int = 0
    end: str = ""
    wait: float | None = None
    healthy_for: float = 0.0
    sick_for: float = 0.0
    was_healthy: bool = False
    started: int = 0
    reason: str | None = None
    message: str | None = None


def apply_settings(engine: Engine, settings: str | None) -> Engine:
    """Return the story with what is applied now; None means that it is being changed, and nobody else may touch it."""
    if settings is None:
        return replace(engine, wait=None)
    if settings == engine.settings:
        return engine
    return replace(engine, settings=settings, tries=0, wait=None, reason=None, message=None)


def is_new_end(engine: Engine, program: Program | None) -> bool:
    """Tell whether the engine has ended in a way that was not dealt with yet."""
    return program is not None and program.state in ENDED and program.life != engine.end


def note_end(engine: Engine, program: Program, reason: str, message: str) -> Engine:
    """Return the story with an end; unless it has had all its tries, the engine is to be started anew."""
    may_try = engine.tries < len(PAUSES)
    return replace(
        engine,
        exits={**engine.exits, reason: engine.exits.get(reason, 0) + 1},
        end=program.life,
        wait=PAUSES[engine.tries] if may_try else None,
        tries=engine.tries + may_try,
        healthy_for=0.0,
        reason=reason,
        message=message,
    )


def note_start(engine: Engine) -> Engine:
    """Return the story with a start of ours."""
    return replace(engine, restarts=engine.restarts + 1, wait=None)


def observe_engine(engine: Engine, program: Program | None, *, is_healthy: bool, elapsed: float) -> Engine:
    """Return the story with one more look.

    Args:
        engine: Up to the look before.
        program: None if the supervisor does not answer.
        is_healthy: Whether the engine says so.
        elapsed: Seconds since the look before.
    """
    if program and program.started != engine.started:
        engine = replace(engine, started=program.started, was_healthy=False, healthy_for=0.0, sick_for=0.0)
    if program and program.state not in ENDED:
        engine = replace(engine, wait=None)
    elif engine.wait is not None:
        engine = replace(engine, wait=max(0.0, engine.wait - elapsed))
    if not is_healthy:
        return replace(engine, healthy_for=0.0, sick_for=engine.sick_for + elapsed if engine.was_healthy else 0.0)
    healthy_for = engine.healthy_for + elapsed
    engine = replace(engine, was_healthy=True, healthy_for=healthy_for, sick_for=0.0)
    return replace(engine, tries=0, reason=None, message=None) if healthy_for >= SOUND_SECONDS else engine


def is_due(engine: Engine) -> bool:
    """Tell whether it is time to start the engine anew."""
    return engine.wait is not None and engine.wait <= 0


def name_state(engine: Engine, program: Program | None, *, is_healthy: bool) -> str:
    """Return `running`, `starting`, `stopped` or `unhealthy`."""
    if is_healthy:
        return "running"
    if program is None:  # no supervisor: nobody will start it
        return "unhealthy"
    if program.state in RUNS:
        if not engine.was_healthy:
            return "starting"
        return "unhealthy" if engine.sick_for >= SICK_SECONDS else "running"
    is_given_up = program.state in ENDED and program.life == engine.end and engine.wait is None
    return "unhealthy" if is_given_up and engine.tries >= len(PAUSES) else "stopped"
