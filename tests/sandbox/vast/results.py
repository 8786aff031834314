"""Logs and the few commands that the market runs: both leave their output at a URL that is ready a little later."""

import shlex
from collections.abc import Mapping
from typing import Any

from tests.sandbox.vast.call import Call
from tests.sandbox.vast.errors import ApiError
from tests.sandbox.vast.market import Market

Json = Mapping[str, Any]

COMMAND_LIMIT = 512
COMMANDS = ("du", "ls", "rm")


async def request_logs(market: Market, call: Call) -> Json:
    """Answer `PUT /instances/request_logs/N/`: the container's log, or the market's own about it."""
    rental, fields = market.rentals.find(call.numbers[0]), call.fields()
    tail, wanted = str(fields.get("tail", "1000")), fields.get("filter")
    if not tail.isdigit():
        raise ApiError(400, "invalid_args", f"tail is a number of lines, not {tail!r}")
    if fields.get("daemon_logs") == "true":
        text = f"{rental.status_msg(market.clock()) or 'instance created'}\n"
    else:
        text = await market.hosts.read_log(rental.id)
    lines = [line for line in text.splitlines() if not wanted or str(wanted) in line]
    return _result(market, "".join(f"{line}\n" for line in lines[-int(tail) :] if int(tail)))


async def execute(market: Market, call: Call) -> Json:
    """Answer `PUT /instances/command/N/`: ls, rm or du where SSH sessions begin."""
    rental, command = market.rentals.find(call.numbers[0]), call.fields().get("command")
    words = shlex.split(command) if isinstance(command, str) and len(command) <= COMMAND_LIMIT else []
    if not words or words[0] not in COMMANDS:
        text = f"a command is one of {', '.join(COMMANDS)}, of at most {COMMAND_LIMIT} characters"
        raise ApiError(400, "invalid_args", text)
    return {**_result(market, await market.hosts.execute(rental.id, words)), "writeable_path": "~"}


async def read_result(market: Market, call: Call) -> str:
    return market.shelf.read(call.numbers[0])


def _result(market: Market, text: str) -> Json:
    url = f"{market.rentals.market_url}/results/{market.shelf.keep(text)}"
    return {"success": True, "result_url": url, "msg": "The result will be at result_url in a few seconds."}
