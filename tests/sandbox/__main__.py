"""`make sandbox`: the whole sandbox in the foreground, until Ctrl-C."""

import argparse
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.e2e.building import BuildError
from tests.sandbox.world import Plan, SandboxError, World, is_set, stack_names

WELCOME = """
The sandbox stands ({seconds:.0f} s): a market at {market}, hosts, a bucket. In a second shell:

    . {folder}/env
    pulumi preview -s {stack}
    pulumi up -y -s {stack}
    pulumi destroy -y -s {stack}

Stacks: {stacks}. Edit them in {folder}/project/stacks/ (copies: nothing tracked changes).
The bill so far: curl -s $VAST_URL/sandbox/ledger
To stop: Ctrl-C here, or kill {pid}
"""


def main() -> int:
    """Stand until stopped."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m tests.sandbox", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Plan.folder, help="where all of it lies (emptied first)")
    parser.add_argument("--keep", action="store_true", help="outlive the process that started this one")
    parser.add_argument("--boot-seconds", type=float, default=Plan.boot_seconds, help="from renting to running")
    arguments = parser.parse_args()
    # Otherwise a killed parent would leave hosts behind.
    parent = None if arguments.keep else os.getppid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        plan = Plan(
            arguments.folder.resolve(),
            real_vllm=is_set("VLLM"),
            stand_in=is_set("STANDIN"),
            boot_seconds=arguments.boot_seconds,
        )
        with World(plan, _say) as world:
            _say(_welcome(world, time.monotonic() - started))
            while parent in (None, os.getppid()):
                time.sleep(0.5)
    except (SandboxError, BuildError) as error:
        sys.stderr.write(f"sandbox: {error}\n")
        return 1
    except SystemExit:
        pass
    _say("sandbox: stopped, nothing left")
    return 0


def _welcome(world: World, seconds: float) -> str:
    stacks = list(stack_names(world.project))
    folder = world.plan.folder
    return WELCOME.format(
        seconds=seconds,
        market=world.market.url,
        folder=folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder,
        stack="gpu-on" if "gpu-on" in stacks else stacks[0],
        stacks=", ".join(stacks),
        pid=os.getpid(),
    )


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """Unwind; further signals change nothing, or cleaning up would be cut short."""
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _say(line: str) -> None:
    with suppress(BrokenPipeError):  # who started us with --keep may be gone
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
