"""The emulator's server: the market behind HTTP, in a thread of its own."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

from aiohttp import web

from tests.sandbox.vast.clock import Clock
from tests.sandbox.vast.controls import arm
from tests.sandbox.vast.front import Asked, Reply, answer, make_app
from tests.sandbox.vast.hosts import FakeHosts, Hosts
from tests.sandbox.vast.market import Market
from tests.sandbox.vast.quirks import Quirks
from tests.sandbox.vast.rentals import ledger

Result = TypeVar("Result")

TICK_SECONDS = 0.05
START_TIMEOUT_SECONDS = 10
STOP_TIMEOUT_SECONDS = 20


class VastEmulator:
    """vast.ai on loopback: the market, its instances and what they cost.

    Args:
        hosts: Who runs the rented hosts; by default they exist in memory only.
        port: Where to listen; 0 takes any free port.
        api_key: The account's key.
        credit_usd: What the account has at first.
        boot_seconds: From create to running, by `clock`.
        seed: Makes the market; the same seed makes the same one.
        clock: The market's time. Everything that is billed or waited for goes by it.
        quirks: How it behaves where sources disagree.
        rate_limits: Scale of the market's limits: 1 is as documented, 0 is none.
    """

    def __init__(
        self,
        hosts: Hosts | None = None,
        *,
        port: int = 0,
        api_key: str = "sandbox-key",
        credit_usd: float = 25.0,
        boot_seconds: float = 6.0,
        seed: int = 7,
        clock: Clock = time.time,
        quirks: Quirks | None = None,
        rate_limits: float = 0.0,
    ) -> None:
        self.hosts: Hosts = FakeHosts() if hosts is None else hosts
        self.api_key = api_key
        self.url = ""
        self._port, self._clock = port, clock
        self._market = Market(
            self.hosts,
            api_key=api_key,
            credit_usd=credit_usd,
            boot_seconds=boot_seconds,
            seed=seed,
            clock=clock,
            quirks=quirks or Quirks(),
            rate_limits=rate_limits,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vast", daemon=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Listen; `url` is known from here on."""
        self._thread.start()
        self._in_loop(self._open(), START_TIMEOUT_SECONDS)
        return self

    def stop(self) -> None:
        """End the server and every host."""
        if not self._thread.is_alive():
            return
        self._in_loop(self._shut(), STOP_TIMEOUT_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def instances(self) -> list[dict[str, Any]]:
        """The rows of the instances that are there now."""

        async def rows() -> list[dict[str, Any]]:
            await self._market.rentals.advance()
            return [rental.row(self._clock()) for rental in self._market.rentals.alive.values()]

        return self._in_loop(rows())

    def offers(self, storage_gb: float = 0.0) -> list[dict[str, Any]]:
        """Every offer there is, priced with so much disk; no search shows more than some of them."""
        return self._in_loop(_later(lambda: self._market.board.rows(storage_gb, self._clock())))

    @property
    def requests(self) -> list[dict[str, Any]]:
        """Everything that was received, oldest first."""
        return list(self._market.requests)

    @property
    def credit_usd(self) -> float:
        """What the account has left."""
        return self._in_loop(_later(self._market.rentals.credit))

    def ledger(self) -> dict[str, Any]:
        """The billing ledger, as `GET /sandbox/ledger` gives it."""

        async def read() -> dict[str, Any]:
            await self._market.rentals.advance()
            return ledger(self._market.rentals.bills(), self._clock())

        return self._in_loop(read())

    def fail(self, kind: str, **options: Any) -> None:
        """Arm a fault, as `POST /sandbox/faults` does."""
        self._in_loop(_later(lambda: arm(self._market, {"kind": kind, **options})))

    def change_quirks(self, **values: Any) -> None:
        """Behave otherwise from now on, as after `POST /sandbox/quirks`."""
        self._in_loop(_later(lambda: self._market.quirks.change(values)))

    def answer(self, asked: Asked) -> Reply | None:
        """Answer a request that did not come over the network, as if it had."""
        return self._in_loop(answer(self._market, asked))

    def settle(self) -> None:
        """Wait until hosts that were stopped or destroyed have ended."""
        self._in_loop(self._market.rentals.settle())

    def _in_loop(self, work: Coroutine[Any, Any, Result], timeout: float = STOP_TIMEOUT_SECONDS) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    async def _open(self) -> None:
        self._runner = web.AppRunner(make_app(self._market), access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = self._market.rentals.market_url = f"http://{host}:{port}"
        self._ticker = asyncio.create_task(self._tick())

    async def _shut(self) -> None:
        self._ticker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._ticker
        await self._runner.cleanup()
        await self._market.rentals.settle()
        await self.hosts.close()
        # What waited for processes of the hosts ends with them; a loop that closes over open work would complain.
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        if rest:
            _, late = await asyncio.wait(rest, timeout=1)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _tick(self) -> None:
        while True:
            await self._market.rentals.advance()
            await asyncio.sleep(TICK_SECONDS)


async def _later(function: Callable[[], Result]) -> Result:
    """Make a coroutine of a plain function, so that it runs in the server's loop."""
    return function()
