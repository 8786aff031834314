"""Shut a machine's door before something behind it is changed, and let those finish who are being answered."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from bootstrap.remote import ask, growing_pauses, must
from bootstrap.render import ROOT

if TYPE_CHECKING:  # who logs in imports it: asyncssh takes a third of a second
    from bootstrap.ssh import Machine

DRAIN = timedelta(minutes=5)
"""What an update grants to running requests."""
UNKNOWN_DRAIN = timedelta(seconds=20)
"""The same where the machine cannot say whether there are any: its agent is of another version, or its engine hangs."""
NOTHING_APPLIED = '{"settings": null}'


async def close_door(machine: Machine) -> None:
    """Let the front door answer 503 until the next `apply`; requests that run are answered to their end.

    From here on the machine says that nothing is applied: who was about to give it back may be killed, and whoever
    comes next must see that it does not serve.
    """
    note = f"echo '{NOTHING_APPLIED}' >control/state.json"
    await must(machine, "door", f"if cd {ROOT}/run 2>/dev/null; then {note}; touch closed; fi")


async def empty_machine(machine: Machine) -> None:
    """Shut the door, and return when nobody is being answered any more, or has been for long enough."""
    await close_door(machine)
    began, pauses = time.monotonic(), growing_pauses()
    while (left := (await ask(machine, "state")).get("in_flight")) != 0:
        if time.monotonic() - began > (UNKNOWN_DRAIN if left is None else DRAIN).total_seconds():
            return
        await asyncio.sleep(next(pauses))
