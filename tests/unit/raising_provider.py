"""A provider that raises what it is told to, in a module of its own: the SDK's process imports it by name."""

import asyncio
from typing import Any

from pulumi.dynamic import CreateResult

from dynamic_providers.errors import StackError
from dynamic_providers.process import STOP
from dynamic_providers.stopping import StoppableClock
from dynamic_providers.vast.resource import _Provider

ERRORS = {
    "ours": StackError("set VAST_API_KEY\n  to one of your account's keys"),
    "foreign": ZeroDivisionError("a bug"),
    "exit": SystemExit(3),
    "cancelled": asyncio.CancelledError(),
    "ctrl-c": KeyboardInterrupt(),
}


class RaisingProvider(_Provider):
    """Raises the error that the input `error` names; else gives back what it was given."""

    def create(self, props: dict[str, Any]) -> CreateResult:
        if "wait_seconds" in props:
            StoppableClock(STOP).sleep(props["wait_seconds"])
        if "error" in props:
            raise ERRORS[props["error"]]
        return CreateResult("made", {"seen": {key: self._config(key) for key in props["ask"]}})
