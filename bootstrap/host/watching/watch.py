"""The agent's look, again and again: see, think, act, and leave a sign that it was done.

One loop decides; the server's threads only read, and close and open the door. Everything is in the memory before it
is acted upon, so that an agent that is killed goes on where it was.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bootstrap.host.watching import supervisor
from bootstrap.host.watching.clock import read_moment
from bootstrap.host.watching.drain import render_drain
from bootstrap.host.watching.engine import Program, is_due, is_new_end, name_state, note_start
from bootstrap.host.watching.files import beat, put, read_object, say
from bootstrap.host.watching.looks import look_around
from bootstrap.host.watching.market import Market
from bootstrap.host.watching.memory import Memory, parse_memory, render_memory
from bootstrap.host.watching.mind import (
    Look,
    Seen,
    advance,
    count_in_flight,
    drain_seconds,
    is_idle_known,
    left_of,
    pause_seconds,
)
from bootstrap.host.watching.moments import seconds_between
from bootstrap.host.watching.reasons import explain
from dynamic_providers.lease.policy import Sample

MEMORY = Path("agent.json")
LEASE = Path("lease.json")
STATE = Path("control/state.json")
DRAIN = Path("drain")
HEARTBEAT = Path("heartbeat")
ENGINE = "engine"
SLICE_SECONDS = 0.2


class Watch:
    """The agent's memory, and who may change it when.

    Attributes:
        memory: As the last look left it.
        look: What that look saw.
        program: The engine's, as the last look saw it.
    """

    def __init__(self, market: Market) -> None:
        self._market = market
        self._lock = threading.Lock()
        self._is_engine_gone = False
        self.look = Look(Sample(None, None), is_healthy=False)
        self.program: Program | None = None
        self.memory = _remember()

    def run(self, also: Callable[[], None]) -> None:
        """Look for ever.

        Args:
            also: Done after each look; must not take long.
        """
        while True:
            told = _told_at()
            self.look_once()
            also()
            until = time.monotonic() + pause_seconds(self.memory)
            # A lease that is told meanwhile is taken at once: whoever says that the machine is ready waits for that,
            # and what is asked of it from then on is activity.
            while (left := until - time.monotonic()) > 0 and _told_at() == told:
                time.sleep(min(left, SLICE_SECONDS))

    def look_once(self) -> None:
        """Look, think and act."""
        # The lease first: work that was done before it said `ready` must be in the reading after it.
        lease, settings = read_object(LEASE), _read_settings()
        look, program = look_around(), supervisor.read_program(ENGINE)
        is_ended = settings is not None and not self.memory.ending and is_new_end(self.memory.engine, program)
        why = explain(supervisor.last_words(ENGINE)) if is_ended else None
        with self._lock:
            before = self.memory
            self.memory = advance(before, Seen(lease, settings, look, program, why), read_moment())
            self.look, self.program = look, program
            self._keep()
        _tell(before, self.memory)
        self._act(settings)
        if self.memory.use:  # without a lease nothing is looked after, and others must know
            beat(HEARTBEAT)

    def _act(self, settings: str | None) -> None:
        ending = self.memory.ending
        if ending and ending.is_final:
            self._market.destroy()
            self._is_engine_gone = self._is_engine_gone or supervisor.end_engine()
            return
        may_start = ending is None and settings is not None and settings == _read_settings()
        if may_start and is_due(self.memory.engine) and supervisor.start(ENGINE):
            with self._lock:
                self.memory = replace(self.memory, engine=note_start(self.memory.engine))
                self._keep()

    def close_door(self, seconds: int) -> None:
        """Take no new requests for so long, unless told again; running ones go on."""
        with self._lock:
            since = seconds_between(self.memory.at, read_moment())
            self.memory = replace(self.memory, drain_left=seconds + since)
            self._keep()

    def open_door(self) -> None:
        """Take requests again, unless the rental is being ended."""
        with self._lock:
            self.memory = replace(self.memory, drain_left=0.0)
            self._keep()

    def _keep(self) -> None:
        """Write down what must outlive this process, and tell the door."""
        now = read_moment()
        put(MEMORY, render_memory(self.memory))
        text = render_drain(drain_seconds(self.memory, now), now.wall)
        if text != _read_text(DRAIN):
            put(DRAIN, text)

    def describe(self) -> dict[str, Any]:
        """Return what `GET /control/state` says; who is in flight is looked up now."""
        state = read_object(STATE) or {}
        in_flight = count_in_flight(look_around(), self.program)
        with self._lock:
            memory = self.memory
        now = read_moment()
        left, seconds = left_of(memory), drain_seconds(memory, now)
        engine = memory.engine
        return {
            "settings": state.get("settings"),
            "instance": state.get("instance"),
            "phase": left.phase.value if left else None,
            "in_flight": in_flight,
            "drained": seconds > 0 and in_flight == 0,
            "drain_seconds_left": round(seconds, 3),
            "engine": {
                "state": name_state(engine, self.program, is_healthy=self.look.is_healthy),
                "restarts": engine.restarts,
                "reason": engine.reason,
                "message": engine.message,
            },
            "armed": self._market.is_armed,
            "unarmed_because": self._market.unarmed_because,
            "expires_in": left.expires_in.total_seconds() - seconds_between(memory.at, now) if left else None,
            "idle_seconds": memory.activity.idle_for.total_seconds() if is_idle_known(memory) else None,
            "ending": memory.ending.end.value if memory.ending else None,
        }


def _told_at() -> int:
    """Return when the lease was told last, as its file has it."""
    try:
        return LEASE.stat().st_mtime_ns
    except OSError:
        return 0


def _remember() -> Memory:
    """Return what a former life of the agent left; fresh if nothing can be read: the lease has its own clock."""
    fresh = Memory(read_moment())
    kept = read_object(MEMORY)
    if kept is None:
        return fresh
    try:
        return parse_memory(kept)
    except ValueError as error:
        say(f"{MEMORY}: {error}")
        return fresh


def _read_settings() -> str | None:
    settings = (read_object(STATE) or {}).get("settings")
    return settings if isinstance(settings, str) else None


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def _tell(before: Memory, after: Memory) -> None:
    if before.ending != after.ending and (before.ending is None or after.ending is None or after.ending.is_final):
        if after.ending is None:
            say("ending: called off")
        elif not (before.ending and before.ending.is_final):
            say(f"ending: {after.ending.end.value}, {'destroy' if after.ending.is_final else 'drain'}")
    if after.engine.exits != before.engine.exits:
        say(f"engine: ended, {after.engine.reason}: {after.engine.message}")
