"""Everything that is rented: created, booted by the clock, stopped, destroyed, and billed to the second."""

import asyncio
import logging
import math
import random
import secrets
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from typing import Any

from tests.sandbox.vast.account import Account
from tests.sandbox.vast.billing import Bill, Meter
from tests.sandbox.vast.catalogue import SMALLEST
from tests.sandbox.vast.clock import Clock
from tests.sandbox.vast.errors import ApiError
from tests.sandbox.vast.faults import Faults
from tests.sandbox.vast.hosts import Hosts, SshTrouble
from tests.sandbox.vast.machines import Machine, offer_row, rates_of
from tests.sandbox.vast.offers import OfferBoard
from tests.sandbox.vast.order import Order
from tests.sandbox.vast.quirks import Quirks
from tests.sandbox.vast.rental import WARM_BOOT, Rental
from tests.sandbox.vast.troubles import NEVER_RUNS, ssh_trouble

log = logging.getLogger(__name__)

NO_CREDIT_USD = 1e-9
"""What counts as none: sums of many small bills are never exactly 0."""


class Rentals:
    """The instances of the account, alive and past."""

    def __init__(
        self,
        board: OfferBoard,
        hosts: Hosts,
        account: Account,
        faults: Faults,
        quirks: Quirks,
        *,
        boot_seconds: float,
        clock: Clock,
    ) -> None:
        self._board, self._hosts, self._account, self._faults = board, hosts, account, faults
        self._quirks, self._boot_seconds, self._clock = quirks, boot_seconds, clock
        self._work: set[asyncio.Task[None]] = set()
        self._next_id = 28_400_000
        self.market_url = ""
        self.alive: dict[int, Rental] = {}
        self.gone: list[Rental] = []
        self._settled_usd = 0.0  # what is over costs no more: not to be added up at every request

    def find(self, instance_id: int) -> Rental:
        """Find an instance.

        Raises:
            ApiError: There is none.
        """
        if instance_id not in self.alive:
            raise ApiError(404, self._quirks.gone_word, f"Instance {instance_id} not found.")
        return self.alive[instance_id]

    def known_at(self, moment: float) -> list[Rental]:
        """Return the instances that were there at a moment, oldest first."""
        everything = sorted([*self.gone, *self.alive.values()], key=lambda rental: rental.id)
        return [
            rental
            for rental in everything
            if rental.meter.since <= moment and (rental.meter.until is None or moment < rental.meter.until)
        ]

    def bills(self) -> list[Bill]:
        """Every bill there is, the past ones first."""
        return [rental.bill() for rental in (*self.gone, *self.alive.values())]

    def credit(self) -> float:
        """Say what the account has left."""
        now = self._clock()
        running = sum(rental.meter.usd(now).total for rental in self.alive.values())
        return self._account.paid_in - self._settled_usd - running

    def set_credit(self, usd: float) -> None:
        """Pay in, or take away, until exactly this much is left."""
        self._account.paid_in += usd - self.credit()

    def create(self, offer_id: int, order: Order) -> Rental:
        """Rent an offer.

        Raises:
            ApiError: The offer is gone, the account may not, or the order does not fit the offer. If it names a
                `new_contract`, there is an instance all the same, stopped.
        """
        found = self._board.find(offer_id)
        if found is None:
            raise self._taken(offer_id, order)
        machine, size = found
        if self._faults.take("offer_taken"):
            self._board.take(machine, size)
            raise self._taken(offer_id, order)
        self._check_account()
        offer = offer_row(machine, offer_id, size, order.disk_gb, self._clock())
        is_too_low = order.bid_usd is not None and order.bid_usd < offer["min_bid"]
        _check_fit(offer, order, is_too_low=is_too_low)
        self._board.take(machine, size)
        rental = self._make_rental(machine, offer, order)
        self.alive[rental.id] = rental
        if self._faults.take("refused_but_rented") or is_too_low:
            rental.intended = "stopped"
            raise ApiError(400, "invalid_price", "bid is below the floor", new_contract=rental.id)
        return rental

    def _check_account(self) -> None:
        if self._faults.take("spend_rate_limit"):
            text = "Your spend rate limit is too low for this instance; try a cheaper one or wait a few hours."
            raise ApiError(400, "spend_rate_limit", text)
        if self._faults.take("insufficient_credit") or self.credit() <= NO_CREDIT_USD:
            raise ApiError(400, "insufficient_credit", "Your account lacks credit; see the billing page.")

    def _make_rental(self, machine: Machine, offer: dict[str, Any], order: Order) -> Rental:
        now, befalling = self._clock(), self._faults.take_for_instance()
        self._next_id += random.SystemRandom().randint(1, 90)
        gpu_usd = offer["dph_base"] if order.bid_usd is None else order.bid_usd
        lies = {fault.where for fault in befalling if fault.kind == "wrong_gpu"}
        return Rental(
            id=self._next_id,
            machine=machine,
            offer=offer,
            order=order,
            variables={**self._account.secrets, **order.variables},
            label=self.kept_label(order.label),
            api_key=secrets.token_hex(32),
            meter=Meter(rates_of(offer, order.disk_gb, gpu_usd), since=now),
            boot_started=now,
            boot_seconds=self._boot_seconds,
            hangs=any(fault.kind in NEVER_RUNS for fault in befalling),
            shown=SMALLEST if "row" in lies else machine.kind,
            actual=SMALLEST if "machine" in lies else machine.kind,
            keys=dict(self._account.keys),
            quirks=self._quirks,
            bid_usd=order.bid_usd,
            floor_usd=offer["min_bid"],
            troubles={fault.kind: replace(fault) for fault in befalling},
        )

    def kept_label(self, label: str | None) -> str | None:
        """Say what the market keeps of a label."""
        return label[: self._quirks.kept_label_length or None] if label else label

    async def advance(self) -> None:
        """Bring everything up to the present: image pulls, boots that are over, credit that is used up."""
        now = self._clock()
        for rental in list(self.alive.values()):
            rental.count_download(now)
            if rental.queued_until is not None and now >= rental.queued_until:
                self.start(rental)
            if rental.offline_until is not None and now >= rental.offline_until:
                self.bring_back(rental)
            if rental.is_due(now):
                await self._power_on(rental)
            if rental.address is not None:
                self._let_happen(rental, now)
        if self.credit() <= NO_CREDIT_USD:
            for rental in self.alive.values():
                self.stop(rental)

    def stop(self, rental: Rental) -> None:
        """Stop an instance: its GPUs are no longer paid for, its disk is."""
        rental.queued_until = None
        if rental.intended == "stopped":
            return
        rental.intended = "stopped"
        rental.meter.stop_gpu(self._clock())
        self._do(self._power_off(rental, self._hosts.stop))

    def start(self, rental: Rental) -> None:
        """Start a stopped instance again.

        Raises:
            ApiError: Its GPUs are in use just now; it starts when they are free again.
        """
        rental.queued_until = None
        if rental.intended == "running":
            return
        if fault := self._faults.take("no_resources"):
            rental.queued_until = self._clock() + fault.seconds
            text = "Required resources are currently unavailable, state change queued."
            raise ApiError(200, "resources_unavailable", text)
        rental.intended = "running"
        rental.boot_started = self._clock()
        rental.boot_seconds = self._boot_seconds * WARM_BOOT

    def restart(self, rental: Rental, *, recycle: bool = False) -> None:
        """Stop and start; recycling forgets the files as well."""
        if rental.intended == "running":
            rental.meter.stop_gpu(self._clock())
            self._do(self._power_off(rental, self._hosts.destroy if recycle else self._hosts.stop))
            rental.intended = "stopped"
        self.start(rental)

    def destroy(self, rental: Rental) -> None:
        """End an instance for good; from here on nothing of it is billed."""
        now = self._clock()
        rental.last_row = rental.row(now)
        rental.meter.close(now)
        self._settled_usd += rental.meter.usd(now).total
        self.gone.append(self.alive.pop(rental.id))
        self._board.give_back(rental.machine, rental.offer["num_gpus"])
        self._do(self._power_off(rental, self._hosts.destroy))

    def outbid(self, rental: Rental) -> None:
        """Let another tenant offer more: the instance stops until its own bid wins again.

        Raises:
            ApiError: It is not interruptible.
        """
        if rental.bid_usd is None:
            raise ApiError(400, "invalid_args", f"instance {rental.id} is not interruptible")
        rental.floor_usd = round(rental.bid_usd * 1.25, 4)
        self.stop(rental)

    def change_bid(self, rental: Rental, usd: float | None) -> None:
        """Bid another price, None for one that wins; who wins again starts again.

        Raises:
            ApiError: It is not interruptible.
        """
        if rental.bid_usd is None:
            raise ApiError(400, "invalid_args", f"instance {rental.id} is not interruptible")
        had_lost = rental.bid_usd < rental.floor_usd
        rental.bid_usd = rental.floor_usd if usd is None else usd
        rental.meter.change_gpu_price(rental.bid_usd, self._clock())
        if rental.bid_usd < rental.floor_usd:
            self.stop(rental)
        elif had_lost:
            self.start(rental)

    def take_offline(self, rental: Rental, seconds: float = 0.0) -> None:
        """Cut a host off: nobody reaches it, nothing is billed; for so long, or until it is brought back if 0."""
        if rental.offline_until is None:
            rental.meter.go_offline(self._clock())
            self._tell_host(rental, lambda: self._hosts.unplug(rental.id))
        rental.offline_until = self._clock() + seconds if seconds else math.inf

    def bring_back(self, rental: Rental) -> None:
        """End what `take_offline` began."""
        if rental.offline_until is None:
            return
        rental.offline_until = None
        rental.meter.come_back(self._clock())
        if rental.address is not None:
            rental.meter.start_gpu(self._clock())
        self._tell_host(rental, lambda: self._hosts.plug(rental.id))

    def treat_ssh(self, rental: Rental, trouble: SshTrouble) -> None:
        """Break or repair the SSH server of an instance that runs."""
        self._tell_host(rental, lambda: self._hosts.treat_ssh(rental.id, trouble))

    def authorize(self, rental: Rental) -> None:
        """Carry the instance's keys to its host."""
        self._tell_host(rental, lambda: self._hosts.authorize(rental.id, tuple(rental.keys.values())))

    async def settle(self) -> None:
        """Wait until the hosts are as the market believes them to be."""
        while self._work:
            await asyncio.gather(*self._work)

    def _let_happen(self, rental: Rental, now: float) -> None:
        """Let befall a running instance what is due, each once."""
        for kind in ("ssh_late", "stopped_by_credit", "outbid"):
            fault = rental.troubles.get(kind)
            if fault is None or now < rental.ready_at + fault.seconds:
                continue
            del rental.troubles[kind]
            if kind == "ssh_late":
                self.treat_ssh(rental, ssh_trouble(rental.troubles))
            elif kind == "stopped_by_credit":
                self.set_credit(0)
            elif rental.bid_usd is not None:
                self.outbid(rental)
        if fault := rental.troubles.pop("host_offline", None):
            self.take_offline(rental, fault.seconds)

    async def _power_on(self, rental: Rental) -> None:
        async with rental.lock:
            # Another call may have done it, or the instance may have gone, while this one waited.
            if not rental.is_due(self._clock()):
                return
            try:
                address = await self._hosts.start(rental.host_spec(self.market_url))
            except OSError:
                log.exception("instance %s: the host does not start", rental.id)
                rental.hangs = True
                return
            rental.address = address
            # A key may have been attached while the host was starting.
            await self._hosts.authorize(rental.id, tuple(rental.keys.values()))
            if rental.intended == "running" and not rental.is_gone and rental.offline_until is None:
                rental.meter.start_gpu(rental.ready_at)

    async def _power_off(self, rental: Rental, end: Callable[[int], Coroutine[Any, Any, None]]) -> None:
        async with rental.lock:
            rental.address = None
            await end(rental.id)

    def _tell_host(self, rental: Rental, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do something to the host if it is on when its turn comes."""

        async def tell() -> None:
            async with rental.lock:
                if rental.address is not None:
                    await work()

        self._do(tell())

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it beside the reply: the market answers at once, the host takes its time."""
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    def _taken(self, offer_id: int, order: Order) -> ApiError:
        status = self._quirks.taken_status or (410 if order.cancel_unavail else 404)
        if order.cancel_unavail:
            text = f"error 410/3907: no_such_ask Instance type {offer_id} is no longer available."
            return ApiError(status, "no_such_ask", text, ask_id=offer_id)
        # Two blanks: so field logs have it.
        text = f"error 404/3603: no_such_ask  Instance type by id {offer_id} is not available."
        return ApiError(status, "invalid_args", text, ask_id=offer_id)


def ledger(bills: Iterable[Bill], now: float) -> dict[str, Any]:
    """Render the billing ledger."""
    rows = [bill.ledger_row(now) for bill in bills]
    return {"instances": rows, "usd_total": sum(sum(row["usd"].values()) for row in rows)}


def _check_fit(offer: dict[str, Any], order: Order, *, is_too_low: bool) -> None:
    offer_id = offer["id"]
    if order.disk_gb > offer["disk_space"]:
        text = f"error 400/3467: Invalid args: disk {order.disk_gb:g} GB, the machine has {offer['disk_space']:g}"
        raise ApiError(400, "invalid_args", text, ask_id=offer_id)
    if is_too_low and order.cancel_unavail:
        raise ApiError(400, "invalid_price", f"bid {order.bid_usd} is below {offer['min_bid']}", ask_id=offer_id)
