"""Ctrl-C, once and twice, SIGTERM, a closed terminal, a full disk: with real processes, at every phase of a run."""

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamic_providers.lease.policy import Action, decide
from tests.e2e.engines import ENGINES
from tests.e2e.killing import Command, Killing
from tests.sandbox.world import Plan, World

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

STOP_SECONDS = 5.0
SECOND_SECONDS = 0.3
"""From the first Ctrl-C to the second, for who has no patience."""
ENGINE_SECONDS = 2.5
"""From the login to the middle of the engine's start; when weights and engine are there, both are told at once."""
PHASES = {
    "rent": ("renting offer", 0.0),
    "scheduled": ("renting offer", 1.0),
    "image": ("scheduled", 0.0),
    "ssh": ("image", 0.0),
    "weights": ("ssh", 0.0),
    "engine": ("ssh", ENGINE_SECONDS),
}
"""The line that `up` prints before a phase, and how long after it the run is stopped."""


@pytest.fixture(scope="module", params=ENGINES)
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killing]:
    """Return a stack whose machine takes its time in every phase."""
    folder: Path = tmp_path_factory.mktemp("stopping") / "s"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUB_START_SECONDS", "3")
        with World(Plan(folder, stand_in=request.param, boot_seconds=3.0)) as world, Killing(world, "stop") as stack:
            yield stack
            stack.unlock()
            stack.settle("destroy")
            assert not stack.instances()


@pytest.fixture(autouse=True)
def empty(stack: Killing) -> None:
    """Begin every test with nothing rented."""
    stack.gate.arm()
    stack.unlock()
    if stack.recorded() or stack.instances():
        stack.settle("destroy")


def up_to(stack: Killing, phase: str) -> Command:
    """Start `up`; return when it is in this phase."""
    line, seconds = PHASES[phase]
    command = stack.deploy("up")
    assert command.wait_for(line), command.said
    time.sleep(seconds)
    return command


@pytest.mark.parametrize(
    ("phase", "number"),
    [*((phase, signal.SIGINT) for phase in PHASES), *((phase, signal.SIGTERM) for phase in ("rent", "engine"))],
)
def test_told_to_stop_it_ends_at_once_and_leaves_nothing(stack: Killing, phase: str, number: signal.Signals) -> None:
    command = up_to(stack, phase)
    told = time.monotonic()
    command.process.send_signal(number)
    assert command.wait() != 0, command.said
    assert time.monotonic() - told < STOP_SECONDS
    assert not stack.instances()
    assert "Traceback" not in command.said
    diagnostics = command.said.rpartition("Diagnostics:")[2]
    assert len(re.findall(r"stopped: Pulumi was told to stop$", diagnostics, re.MULTILINE)) == 1, command.said


@pytest.mark.parametrize("phase", ["rent", "image", "engine"])
def test_whoever_presses_ctrl_c_twice_can_still_mend_it(stack: Killing, phase: str) -> None:
    command = up_to(stack, phase)
    command.process.send_signal(signal.SIGINT)
    time.sleep(SECOND_SECONDS)
    told = time.monotonic()
    command.process.send_signal(signal.SIGINT)
    command.wait()
    assert time.monotonic() - told < STOP_SECONDS + 1
    assert not stack.wait_for_orphans()
    for instance in stack.instances():
        label = instance.parsed
        assert label is not None
        assert decide(instance, label.fleet_id, label.deadline).action is Action.REAP
    stack.unlock()
    stack.settle("up")
    assert not stack.wrongs_after_up()


@pytest.mark.parametrize("phase", ["rent", "image", "engine"])
def test_a_closed_terminal_leaves_nothing(stack: Killing, phase: str) -> None:
    command = up_to(stack, phase)
    command.process.send_signal(signal.SIGHUP)
    command.wait()
    assert not stack.wait_for_orphans()
    assert not stack.instances()
    stack.unlock()


def test_an_update_that_is_told_to_stop_goes_on_with_the_next_up(stack: Killing) -> None:
    stack.settle("up")
    stack.change("model", served_name="another")
    command = up_to(stack, "engine")
    told = time.monotonic()
    command.process.send_signal(signal.SIGINT)
    assert command.wait() != 0, command.said
    assert time.monotonic() - told < STOP_SECONDS
    assert "half done: run `pulumi up` again" in command.said
    assert "Traceback" not in command.said
    assert len(stack.instances()) == 1
    stack.settle("up")
    assert not stack.wrongs_after_up()


def test_a_destroy_that_is_told_to_stop_is_done_or_can_be_done_again(stack: Killing) -> None:
    stack.settle("up")
    stack.gate.arm()
    command = stack.deploy("destroy")
    assert command.wait_until(lambda: "after DELETE instances/N" in stack.gate.moments), command.said
    command.process.send_signal(signal.SIGINT)
    command.wait()
    assert "Traceback" not in command.said
    assert not stack.instances()
    stack.settle("destroy")
    assert not stack.wrongs_after_destroy()


@pytest.mark.parametrize("typed", ["up", "destroy"])
def test_a_state_that_cannot_be_written_loses_no_machine(stack: Killing, typed: str) -> None:
    command = up_to(stack, "image")
    with stack.unwritable_state():
        command.wait()
    assert command.process.returncode != 0
    assert not stack.wait_for_orphans()
    for instance in stack.instances():
        label = instance.parsed
        assert label is not None
        assert decide(instance, label.fleet_id, label.expires_at).action is Action.REAP
    stack.unlock()
    stack.settle(typed)
    assert not (stack.wrongs_after_up() if typed == "up" else stack.wrongs_after_destroy())
