"""How often each call may be made.

Source: vast-ai/docs @c624622 api-reference/rate-limits-and-errors.mdx, and `x-rate-limit` in its OpenAPI files: an
interval for each endpoint and caller, where the caller is key and address together.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.sandbox.vast.call import Route
from tests.sandbox.vast.clock import Clock
from tests.sandbox.vast.quirks import Quirks

SEARCHES_PER_MINUTE = 10
CREATE_PENALTY_SECONDS = 12.0
"""After a create that came too soon. That the interval is then this long is our reading of `penalty`."""

SECONDS_BETWEEN: Mapping[tuple[str, str], float] = {
    ("PUT", "/api/v0/asks/N"): 4.5,
    ("POST", "/api/v0/asks/bulk"): 4.5,
    ("GET", "/api/v0/instances/N"): 2.0,
    ("GET", "/api/v1/instances"): 1.0,
    ("PUT", "/api/v0/instances/N"): 1.0,
    ("PUT", "/api/v0/instances"): 2.0,
    ("DELETE", "/api/v0/instances/N"): 3.0,
    ("DELETE", "/api/v0/instances"): 3.0,
    ("PUT", "/api/v0/instances/reboot/N"): 1.0,
    ("PUT", "/api/v0/instances/recycle/N"): 1.0,
    ("PUT", "/api/v0/instances/bid_price/N"): 5.5,
    ("PUT", "/api/v0/instances/command/N"): 1.5,
    ("DELETE", "/api/v0/instances/N/ssh/N"): 2.0,
    ("POST", "/api/v0/ssh"): 1.0,
    ("PUT", "/api/v0/ssh/N"): 1.0,
    ("GET", "/api/v0/secrets"): 5.0,
    ("POST", "/api/v0/secrets"): 3.0,
    ("PUT", "/api/v0/secrets"): 3.0,
    ("DELETE", "/api/v0/secrets"): 3.0,
    ("GET", "/api/v0/charges"): 1.0,
}


@dataclass
class RateLimits:
    """Remembers who called when.

    Args:
        scale: 1 is as documented, 0 is no limit at all, 0.1 is ten times as generous.
    """

    scale: float
    quirks: Quirks
    clock: Clock
    _blocked_until: dict[tuple[str, str, str], float] = field(default_factory=dict)
    _searches: dict[str, list[float]] = field(default_factory=dict)

    def seconds_to_wait(self, route: Route, caller: str) -> float:
        """Count a call; return 0 if it may go on, else after how long it might."""
        if not self.scale:
            return 0.0
        if route.name == "search":
            return self._wait_for_search(caller)
        seconds = SECONDS_BETWEEN.get((route.method, route.path), 0.0) * self.scale
        key, now = (route.method, route.path, caller), self.clock()
        wait = max(0.0, self._blocked_until.get(key, now) - now)
        if not wait:
            self._blocked_until[key] = now + seconds
        elif route.name == "create":
            self._blocked_until[key] = now + CREATE_PENALTY_SECONDS * self.scale
        elif self.quirks.refusals_count:
            self._blocked_until[key] = now + seconds
        return wait

    def _wait_for_search(self, caller: str) -> float:
        now, minute = self.clock(), 60.0 * self.scale
        recent = [at for at in self._searches.get(caller, []) if at > now - minute]
        wait = recent[-SEARCHES_PER_MINUTE] + minute - now if len(recent) >= SEARCHES_PER_MINUTE else 0.0
        if not wait or self.quirks.refusals_count:
            recent.append(now)
        self._searches[caller] = recent
        return wait
