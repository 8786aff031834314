"""Kill points with real processes: the engine, the provider or both die by SIGKILL at a moment of a command.

The moments are before and after requests to the market, and lines of the boot; `tests/sandbox/test_killpoints.py` has
every single one, in one process. Provider and both take turns, for after either nobody of ours is left; KILL_POINTS=all
tries here as well each moment × kill × what is typed next.
"""

import itertools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from dynamic_providers.lease.label import Phase
from dynamic_providers.lease.policy import Action, decide
from tests.e2e.engines import ENGINES
from tests.e2e.killing import Command, Killing
from tests.sandbox.world import Plan, World

IS_WHOLE_PRODUCT = os.environ.get("KILL_POINTS") == "all"
pytestmark = [pytest.mark.real, pytest.mark.timeout(7200 if IS_WHOLE_PRODUCT else 1200)]

STACKS = 4
"""Side by side: most of a boot is waiting, and two cores are kept busy."""
LATER_SECONDS = 15.0
KILLS = ("cli", "provider", "both")
RECOVERIES = ("up", "destroy", "refresh-up")
LINES = ("scheduled", "image", "ssh", "weights", "engine")
"""What `up` prints when a phase of the boot is over: the kill comes early in the next one."""


@dataclass(frozen=True)
class Trial:
    """One command, who is killed when, and what is typed then.

    Attributes:
        moment: Of a request, at the gate; or the beginning of a line.
        turn: The so-manieth time that it comes; 0 for a line.
    """

    operation: str
    moment: str
    turn: int
    whom: str
    recovery: str

    @property
    def needs_machine(self) -> bool:
        return self.operation != "create"

    def __str__(self) -> str:
        when = f"{self.moment} ({self.turn})" if self.turn else f"after the line {self.moment!r}"
        return f"{self.operation}, {self.whom} killed {when}, then {self.recovery}"


@pytest.mark.parametrize("is_stand_in", ENGINES)
def test_whoever_is_killed_whenever_what_comes_next_puts_it_right(tmp_path: Path, is_stand_in: bool) -> None:
    with World(Plan(tmp_path / "s", stand_in=is_stand_in, boot_seconds=0.2)) as world:
        with Killing(world, "scout") as scout:
            moments = {
                operation: moments_of(scout, operation) for operation in ("create", "update", "replace", "destroy")
            }
        queue, problems = Queue(list(trials(moments))), list[str]()
        total = len(queue.left)
        with ThreadPoolExecutor(STACKS) as pool:
            for found in pool.map(lambda number: work(world, f"kill-{number}", queue), range(STACKS)):
                problems += found
        print(f"{total} trials: { ({name: len(all_) for name, all_ in moments.items()}) } moments at the market")
        time.sleep(LATER_SECONDS)
        problems += [f"left at the end: {row['label']}" for row in world.market.instances]
    assert not problems, "\n".join(problems)
    assert not queue.left


def moments_of(killing: Killing, operation: str) -> Sequence[str]:
    """Run it undisturbed; return its moments at the gate."""
    prepare(killing, operation)
    killing.gate.arm()
    killing.settle("destroy" if operation == "destroy" else "up")
    return tuple(killing.gate.moments)


def prepare(killing: Killing, operation: str) -> None:
    """Edit the stack file as the operation has it: other values each time."""
    if operation == "update":
        killing.change("model", served_name=f"edition-{killing.edition()}")
    elif operation == "replace":
        killing.change("need", max_usd_per_hour=round(0.6 + killing.edition() / 1000, 3))


def trials(moments: dict[str, Sequence[str]]) -> Iterator[Trial]:
    """Give every trial; the recoveries in rotation, unless all are wanted."""
    place, turn = itertools.count(), itertools.count()
    for operation, names in moments.items():
        chosen = [(name, names[: n + 1].count(name)) for n, name in enumerate(names) if is_chosen(operation, names, n)]
        chosen += [(line, 0) for line in LINES if operation == "create"]
        for moment, nth in chosen:
            for whom in KILLS if IS_WHOLE_PRODUCT else (KILLS[0], KILLS[1 + next(place) % 2]):
                typed = RECOVERIES if IS_WHOLE_PRODUCT else [RECOVERIES[next(turn) % len(RECOVERIES)]]
                for recovery in typed:
                    yield Trial(operation, moment, nth, whom, recovery)


def is_chosen(operation: str, names: Sequence[str], number: int) -> bool:
    """Say whether this moment is one of those that are tried when it must not take all day.

    Left out is what another one stands for: to the world, who dies before a request has died after the last one; a
    read that follows the same read; and what `update` and `replace` have in common with `create` and `destroy`.
    """
    if IS_WHOLE_PRODUCT:
        return True
    when, _, what = names[number].partition(" ")
    is_write = not what.startswith("GET") and "bundles" not in what
    if when == "before":
        return "asks/" in what or what.startswith("DELETE")
    if operation in ("update", "replace"):
        return is_write
    return is_write or number < 2 or names[number - 2] != names[number]


class Queue:
    """What is still to be tried; gives out first what a stack is ready for."""

    def __init__(self, left: list[Trial]) -> None:
        self.left, self._lock = left, threading.Lock()

    def take(self, *, has_machine: bool) -> Trial | None:
        """Return the next trial; None if there is none left."""
        with self._lock:
            ready = (trial for trial in self.left if trial.needs_machine == has_machine)
            trial = next(ready, self.left[0] if self.left else None)
            if trial is not None:
                self.left.remove(trial)
            return trial


def work(world: World, name: str, queue: Queue) -> list[str]:
    """Try one after the other in a stack of its own; return what went wrong."""
    problems = []
    with Killing(world, name) as killing:
        while trial := queue.take(has_machine=bool(killing.recorded())):
            began = time.monotonic()
            try:
                found = list(attempt(killing, trial))
            except AssertionError as error:  # of a command that must succeed
                found = [str(error)]
            print(f"{time.monotonic() - began:5.1f} s  {trial}: {found or 'as it must be'}", flush=True)
            problems += [f"{trial}: {problem}" for problem in found]
        killing.gate.arm()
        killing.unlock()
        killing.settle("destroy")
    return problems


def attempt(killing: Killing, trial: Trial) -> Iterator[str]:
    """Break a command, look; recover, look; give every claim that does not hold."""
    killing.gate.arm()
    if trial.needs_machine != bool(killing.recorded()):
        killing.settle("up" if trial.needs_machine else "destroy")
    prepare(killing, trial.operation)
    command = break_it(killing, trial)
    if command is None:
        if trial.turn < 2:  # how often something is asked again depends on how long it took
            yield "the moment never came"
        return
    yield from wrongs_after_kill(killing, trial, command)
    killing.gate.arm()
    killing.unlock()
    if trial.recovery == "refresh-up":
        killing.settle("refresh")
    if trial.recovery == "destroy":
        killing.settle("destroy")
        yield from killing.wrongs_after_destroy()
    else:
        killing.settle("up")
        yield from killing.wrongs_after_up()


def break_it(killing: Killing, trial: Trial) -> Command | None:
    """Run the command and kill at the moment; None if that never came."""
    if trial.turn:
        killing.gate.arm(trial.moment, trial.turn)
    command = killing.deploy("destroy" if trial.operation == "destroy" else "up")
    if not (command.wait_until(killing.gate.is_holding) if trial.turn else command.wait_for(trial.moment)):
        command.process.kill()
        return None
    killing.kill(command, trial.whom)
    killing.gate.release(lets_through=trial.whom == "cli")
    command.wait()
    return command


def wrongs_after_kill(killing: Killing, trial: Trial, command: Command) -> Iterator[str]:
    """Say what is wrong before anybody does anything about it."""
    if orphans := killing.wait_for_orphans():
        yield f"still runs: {orphans}"
    if trial.whom == "provider" and "Traceback" in command.said:
        yield f"a traceback: {command.said}"
    for instance in killing.instances():
        label = instance.parsed
        if label is None:
            yield f"nobody can read the label of instance {instance.id}: {instance.label}"
            continue
        is_booting = label.phase is Phase.BOOTING
        end = label.deadline if is_booting else label.expires_at
        if decide(instance, label.fleet_id, end).action is not Action.REAP:
            yield f"nobody would end instance {instance.id}: {instance.label}"
        if trial.whom == "cli" and trial.operation == "create" and is_booting:
            yield f"the provider is gone, and has not given back instance {instance.id}"
