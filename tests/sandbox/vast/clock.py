"""The market's clock: real by default, faster or stopped in tests."""

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Unix seconds, fractions included."""


class ManualClock:
    """A clock that moves only when told to."""

    def __init__(self, now: float = 1_790_000_000.0) -> None:
        self._now = now

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let the time pass."""
        self._now += seconds


class ScaledClock:
    """A clock that runs `speed` times as fast as the real one, from now on."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._start = time.time()
        self._real_start = time.monotonic()

    def __call__(self) -> float:
        return self._start + (time.monotonic() - self._real_start) * self._speed
