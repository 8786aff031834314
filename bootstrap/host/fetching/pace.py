"""How many requests run side by side, and which of them are too slow. Pure: told the time and what has come."""

import statistics
from collections import deque
from collections.abc import Mapping, Sequence

FIRST = 8
MOST = 64
"""A quarter of what Hetzner grants one address, which a host may share among the machines on it."""
REQUESTS_PER_SECOND = 200
"""Of 750 that Hetzner grants a bucket and an address."""
WINDOW_SECONDS = 0.7
GAIN = 0.3
"""Twice the connections must bring 30 % more, or they only get into each other's way."""
HOLD_SECONDS = 5.0
SLOW_SECONDS = 3.0
SLOW_FACTOR = 8
"""Streams that share a line differ by a factor of two or three; one that is this much slower is stuck."""
RATES_KEPT = 32


class Pace:
    """The number of requests that may run: grows while that brings more, halves when the store has had too much."""

    def __init__(self, now: float) -> None:
        self.limit = FIRST
        self._since, self._bytes = now, 0
        self._before: tuple[int, float] | None = None
        self._hold_until = 0.0
        self._refused = float("-inf")
        self._asked: deque[float] = deque(maxlen=REQUESTS_PER_SECOND)

    def look(self, now: float, total_bytes: int, *, is_full: bool) -> None:
        """Take note of what has come so far.

        Args:
            now: Seconds of a monotonic clock.
            total_bytes: All that has come.
            is_full: As many requests run as may; else more would change nothing.
        """
        if now - self._since < WINDOW_SECONDS:
            return
        rate = max(total_bytes - self._bytes, 0) / (now - self._since)
        self._since, self._bytes = now, total_bytes
        if not is_full or now < self._hold_until:
            return
        if self._before:
            limit, former = self._before
            if rate < former * (1 + GAIN * (self.limit / limit - 1)):
                self.limit, self._before, self._hold_until = limit, None, now + HOLD_SECONDS
                return
        self._before = (self.limit, rate) if self.limit < MOST else None
        self.limit = min(self.limit * 2, MOST)

    def refuse(self, now: float) -> None:
        """Take note that the store has refused a request as one too many. A burst of refusals counts once."""
        if now - self._refused >= 1:
            self.limit = max(1, self.limit // 2)
            self._refused, self._before, self._hold_until = now, None, now + HOLD_SECONDS

    def may_ask(self, now: float) -> bool:
        """Tell whether one more request is within what a second may have, and count it."""
        if len(self._asked) == REQUESTS_PER_SECOND and now - self._asked[0] < 1:
            return False
        self._asked.append(now)
        return True


def choose_slow(rates: Mapping[int, float], left: Mapping[int, int], finished: Sequence[float]) -> list[int]:
    """Return the requests that a fresh connection would bring sooner.

    Args:
        rates: Bytes a second of each request that runs long enough to be judged, by its id.
        left: Bytes that each still lacks.
        finished: Rates of requests that have ended; those of slow ones too.
    """
    known = [*finished, *rates.values()]
    typical = statistics.median(known) if len(known) > 1 else 0.0
    return [
        id_
        for id_, rate in rates.items()
        if rate * SLOW_FACTOR < typical and left[id_] / max(rate, 1) > SLOW_SECONDS + left[id_] / typical
    ]
