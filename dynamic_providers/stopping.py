"""Whether this run is still wanted: told to stop (Ctrl-C), or its engine gone (killed, crashed, terminal closed).

A run that is not wanted any more must not rent, and gives back what it has rented. So every wait goes by
`StoppableClock`, whose `sleep` ends early by raising StoppedError; clean-up runs under `shielded()`, where it does not.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dynamic_providers.clock import Clock
from dynamic_providers.errors import StoppedError

ENGINE_ANSWERS_WITHIN_SECONDS = 1.0
"""On loopback a live engine's kernel answers at once."""
PROBE_SECONDS = 1.0
"""Between looks at the engine while an operation waits."""
SLICE_SECONDS = 0.2
"""How soon a wait notices that it is to end."""


class Stop:
    """Tells one provider process whether to go on.

    Args:
        engine: `host:port` of the engine that started it; None where there is none to look at.
    """

    def __init__(self, engine: str | None = None) -> None:
        self._engine = engine
        self._reason: str | None = None
        self._probed = 0.0
        self._shield = threading.local()
        self._running = 0
        self._changed = threading.Condition()

    @property
    def engine(self) -> str | None:
        """`host:port` of the engine; None where there is none."""
        return self._engine

    def watch(self, engine: str | None) -> None:
        """Say which engine to look at from now on."""
        self._engine = engine

    def request(self, reason: str) -> None:
        """Ask every operation of this process to end."""
        self._reason = self._reason or reason

    def check(self) -> None:
        """Return if the run is still wanted; called before whatever rents, and while waiting.

        Raises:
            StoppedError: It is not.
        """
        if getattr(self._shield, "depth", 0):
            return
        if self._reason is None and time.monotonic() - self._probed >= PROBE_SECONDS:
            self.probe()
        if self._reason is not None:
            raise StoppedError(self._reason)

    def probe(self) -> bool:
        """Look at the engine now; say whether it is there."""
        if self._engine is None:
            return True
        host, _, port = self._engine.rpartition(":")
        try:
            socket.create_connection((host, int(port)), ENGINE_ANSWERS_WITHIN_SECONDS).close()
        except OSError:
            self.request("the Pulumi engine is gone")
            return False
        self._probed = time.monotonic()
        return True

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Let this thread finish what must be finished: giving a machine back."""
        self._shield.depth = getattr(self._shield, "depth", 0) + 1
        try:
            yield
        finally:
            self._shield.depth -= 1

    @contextmanager
    def operation(self) -> Iterator[None]:
        """Mark that something runs for the engine, which must be ended before the process is."""
        with self._changed:
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def wait_until_idle(self) -> None:
        """Return once no operation runs."""
        with self._changed:
            self._changed.wait_for(lambda: self._running == 0)


class StoppableClock(Clock):
    """The real clock, whose waits end when the run is not wanted any more."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    def sleep(self, seconds: float) -> None:
        """Wait; raise StoppedError instead, if the run is to stop."""
        until = self.monotonic() + seconds
        while (left := until - self.monotonic()) > 0:
            self._stop.check()
            super().sleep(min(left, SLICE_SECONDS))
        self._stop.check()


def exit_with_engine(stop: Stop) -> None:
    """End this process once its engine is gone and no operation runs any more; never returns before.

    A killed CLI leaves the provider behind, in a process group of its own. For a thread of its own.
    """
    while stop.probe():
        time.sleep(PROBE_SECONDS)
    stop.wait_until_idle()
    os._exit(1)
