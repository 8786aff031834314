"""Clocks that do not keep a test waiting."""

import time
from datetime import UTC, datetime, timedelta

from dynamic_providers.clock import Clock


class PlayedClock(Clock):
    """Time passes only where somebody sleeps, and then at once. The market goes by it as well."""

    def __init__(self) -> None:
        self._start = datetime.now(UTC)
        self.slept = 0.0

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self.slept)

    def monotonic(self) -> float:
        return self.slept

    def sleep(self, seconds: float) -> None:
        self.slept += seconds


class SwiftClock(Clock):
    """Runs so many times as fast as the real one; for hosts that take real time."""

    def __init__(self, speed: float = 10.0) -> None:
        self._speed = speed
        self._start, self._real_start = datetime.now(UTC), time.monotonic()

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        return (time.monotonic() - self._real_start) * self._speed

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds / self._speed)
