"""The sandbox's own controls, beside the market's API."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from tests.sandbox.vast.api import ROUTES
from tests.sandbox.vast.call import ALIASES, Call, Route
from tests.sandbox.vast.errors import ApiError
from tests.sandbox.vast.faults import KINDS, make_fault
from tests.sandbox.vast.hosts import SOUND
from tests.sandbox.vast.market import Market
from tests.sandbox.vast.rental import Rental
from tests.sandbox.vast.rentals import ledger
from tests.sandbox.vast.troubles import ssh_trouble

Json = Mapping[str, Any]


async def show_ledger(market: Market, call: Call) -> Json:
    return ledger(market.rentals.bills(), market.clock())


async def list_requests(market: Market, call: Call) -> Json:
    return {"requests": market.requests}


async def list_faults(market: Market, call: Call) -> Json:
    return {"kinds": {name: kind.text for name, kind in KINDS.items()}, "armed": market.faults.rows()}


async def arm_fault(market: Market, call: Call) -> Json:
    arm(market, call.fields())
    return {"success": True}


def arm(market: Market, fields: Mapping[str, Any]) -> None:
    """Arm a fault.

    Args:
        market: Where it will strike.
        fields: `kind`, and of the other fields of `Fault` what the kind needs.

    Raises:
        ApiError: There is no such fault, or no such call to aim it at.
    """
    calls = {route.name for route in ROUTES} | set(ALIASES)
    if fields.get("on") and fields["on"] not in calls:
        raise ApiError(400, "invalid_args", f"no call {fields['on']!r}; there are {', '.join(sorted(calls))}")
    market.faults.arm(fields.get("kind", ""), **{key: value for key, value in fields.items() if key != "kind"})


async def reshuffle(market: Market, call: Call) -> Json:
    market.board.reshuffle(market.clock())
    return {"success": True, "offers": len(market.board.rows(0.0, market.clock()))}


async def treat_instance(market: Market, call: Call) -> Json:
    """Do to an instance what only the market can do: `do` is a key of `TREATMENTS`, or an SSH fault or `ssh_sound`."""
    rental, fields = market.rentals.find(call.numbers[0]), call.fields()
    what = fields.pop("do", None)
    if what in TREATMENTS and not set(fields) - {"seconds"}:
        TREATMENTS[what](market, rental, float(fields.get("seconds", 0)))
    elif what in SSH_FAULTS:
        market.rentals.treat_ssh(rental, ssh_trouble({what: make_fault(what, **fields)}))
    else:
        raise ApiError(400, "invalid_args", f"do is one of {', '.join([*TREATMENTS, *SSH_FAULTS])}, not {what!r}")
    return {"success": True}


TREATMENTS: Mapping[str, Callable[[Market, Rental, float], None]] = {
    "stop": lambda market, rental, _: market.rentals.stop(rental),
    "start": lambda market, rental, _: market.rentals.start(rental),
    "forget": lambda market, rental, _: market.rentals.destroy(rental),
    "outbid": lambda market, rental, _: market.rentals.outbid(rental),
    "offline": lambda market, rental, seconds: market.rentals.take_offline(rental, seconds),
    "online": lambda market, rental, _: market.rentals.bring_back(rental),
    "ssh_sound": lambda market, rental, _: market.rentals.treat_ssh(rental, SOUND),
}
SSH_FAULTS = ("ssh_refused", "ssh_dropped", "ssh_other_host_key")


async def show_quirks(market: Market, call: Call) -> Json:
    return asdict(market.quirks)


async def set_quirks(market: Market, call: Call) -> Json:
    market.quirks.change(call.fields())
    return asdict(market.quirks)


async def set_account(market: Market, call: Call) -> Json:
    credit = call.fields().get("credit")
    if not isinstance(credit, int | float):
        raise ApiError(400, "invalid_args", f"credit is a number, not {credit!r}")
    market.rentals.set_credit(credit)
    return {"success": True, "credit": market.rentals.credit()}


CONTROLS = (
    Route("ledger", "GET", "/sandbox/ledger", show_ledger, "anyone"),
    Route("requests", "GET", "/sandbox/requests", list_requests, "anyone"),
    Route("faults", "GET", "/sandbox/faults", list_faults, "anyone"),
    Route("faults", "POST", "/sandbox/faults", arm_fault, "anyone"),
    Route("reshuffle", "POST", "/sandbox/reshuffle", reshuffle, "anyone"),
    Route("treat", "POST", "/sandbox/instances/N", treat_instance, "anyone"),
    Route("quirks", "GET", "/sandbox/quirks", show_quirks, "anyone"),
    Route("quirks", "POST", "/sandbox/quirks", set_quirks, "anyone"),
    Route("account", "POST", "/sandbox/account", set_account, "anyone"),
)
