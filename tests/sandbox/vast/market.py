"""The whole market in one object: offers, account, instances, faults."""

from typing import Any

from tests.sandbox.vast.account import Account
from tests.sandbox.vast.clock import Clock
from tests.sandbox.vast.faults import Faults
from tests.sandbox.vast.hosts import Hosts
from tests.sandbox.vast.offers import OfferBoard
from tests.sandbox.vast.quirks import Quirks
from tests.sandbox.vast.rate_limits import RateLimits
from tests.sandbox.vast.rentals import Rentals
from tests.sandbox.vast.shelf import Shelf


class Market:
    """What the routes work on; only ever touched from the server's event loop."""

    def __init__(
        self,
        hosts: Hosts,
        *,
        api_key: str,
        credit_usd: float,
        boot_seconds: float,
        seed: int,
        clock: Clock,
        quirks: Quirks,
        rate_limits: float,
    ) -> None:
        self.hosts, self.clock, self.quirks = hosts, clock, quirks
        self.faults = Faults()
        self.limits = RateLimits(rate_limits, quirks, clock)
        self.requests: list[dict[str, Any]] = []
        self.shelf = Shelf()
        self.account = Account(api_key, credit_usd)
        self.board = OfferBoard(seed, clock())
        self.rentals = Rentals(
            self.board, hosts, self.account, self.faults, quirks, boot_seconds=boot_seconds, clock=clock
        )

    def owner_of(self, key: str) -> tuple[str, int | None] | None:
        """Say whose key this is: the account's, an instance's (with its id), or nobody's."""
        if key == self.account.api_key:
            return "account", None
        for rental in self.rentals.alive.values():
            if key == rental.api_key:
                return "instance", rental.id
        return None
