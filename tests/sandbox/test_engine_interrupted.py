"""The stand-in against what a real engine did when it was interrupted, killed and locked: runs 15 to 20."""

import os
import re
import signal
from collections.abc import Iterator

import pytest

from tests.sandbox.conformance import UP, Recorder, Run, bare, compare, creating, state_after
from tests.sandbox.engine_world import Result, World, kill_group, wait_until


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Run]]:
    """Runs 15 to 20: SIGINT, SIGKILL, the lock, and what comes after."""
    world = World.make(tmp_path_factory.mktemp("engine"), "sample")
    world.env["SAMPLE_SLOW_S"] = "1.5"
    record = Recorder(world)
    world.ok("stack", "init", "four")
    record.config("four", first="slow")
    up = world.start(*UP, "four")
    wait_until(lambda: creating(world), "a create under way")
    up.send_signal(signal.SIGINT)
    out, err = up.communicate(timeout=30)
    record.keep(15, "four", Result(up.returncode, out, err))
    record.run(16, *UP, "four")
    world.ok("destroy", "-y", "--skip-preview", "-s", "four")
    world.calls()
    up = world.start(*UP, "four")
    wait_until(lambda: creating(world), "a create under way")
    kill_group(up)
    record.keep(17, "four", Result(up.returncode, "", ""))
    wait_until((world.folder / "files" / "slow").exists, "the orphaned provider's create")
    record.run(18, *UP, "four")
    world.ok("cancel", "-y", "-s", "four")
    record.run(19, *UP, "four")
    record.run(20, "destroy", "-y", "--skip-preview", "-s", "four")
    yield record.runs
    for orphan in world.left_over():  # what run 17 left behind, as the real engine does
        os.kill(orphan, signal.SIGKILL)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(15, 21), ids=lambda number: f"run-{number:02}")
def test_interrupted_run_is_as_the_real_engine_did_it(interrupted: dict[int, Run], number: int) -> None:
    compare(interrupted[number], number)


@pytest.mark.parametrize("number", [15, 17])
def test_state_after_an_interrupt_is_the_real_engines(interrupted: dict[int, Run], number: int) -> None:
    assert bare(interrupted[number].state) == bare(state_after(number))


def test_sigint_is_passed_on_as_a_cancel_and_no_new_step_starts(interrupted: dict[int, Run]) -> None:
    run = interrupted[15]

    assert run.cancels == 2  # one for the signal, one for the end
    assert "^C received; cancelling" in run.result.err
    assert [record["urn"].rsplit("::")[-1] for record in run.state["resources"]] == [
        "sample-four",
        "pair",
        "default",
        "first",
    ]


def test_a_killed_engine_leaves_a_lock_that_names_its_holder(interrupted: dict[int, Run]) -> None:
    assert re.search(r"currently locked by 1 lock\(s\)[\s\S]*created by .+@.+ \(pid \d+\)", interrupted[18].result.err)
