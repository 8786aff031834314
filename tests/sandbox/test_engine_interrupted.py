"""The stand-in interrupted, killed and locked: against what a real engine did in runs 15 to 20, and beyond them."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.conformance import UP, Recorder, Run, bare, compare, creating, state_after
from tests.sandbox.engine_world import Result, World, kill_group, toy, wait_until


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
    time.sleep(0.3)  # logged is not yet received
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


@pytest.mark.real
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(15, 21), ids=lambda number: f"run-{number:02}")
def test_interrupted_run_is_as_the_real_engine_did_it(interrupted: dict[int, Run], number: int) -> None:
    compare(interrupted[number], number)


@pytest.mark.real
@pytest.mark.parametrize("number", [15, 17])
def test_state_after_an_interrupt_is_the_real_engines(interrupted: dict[int, Run], number: int) -> None:
    assert bare(interrupted[number].state) == bare(state_after(number))


@pytest.mark.real
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


@pytest.mark.real
def test_a_killed_engine_leaves_a_lock_that_names_its_holder(interrupted: dict[int, Run]) -> None:
    assert re.search(r"currently locked by 1 lock\(s\)[\s\S]*created by .+@.+ \(pid \d+\)", interrupted[18].result.err)


# Beyond the runs


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World.make(tmp_path_factory.mktemp("engine"), "toy")
    world.ok("stack", "init", "one")
    return world


@pytest.fixture
def world(made_once: World, tmp_path: Path) -> Iterator[World]:
    world = made_once.copy(tmp_path)
    yield world
    for left in world.left_over():
        os.kill(left, signal.SIGKILL)


NEVER_READY = """\
import signal, sys, time
if "pulumi.dynamic" in sys.orig_argv:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(60)
"""
"""What Python runs before a provider's own first line."""


def noted(world: World, deed: str) -> bool:
    path = world.folder / "toys.log"
    return path.exists() and deed in path.read_text()


def providers(world: World) -> list[int]:
    """Return the providers' own processes, without the shells above them."""
    found = []
    for pid in world.left_over():
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            found += [pid] * (b"pulumi.dynamic" in command and not command[0].endswith(b"/sh"))
    return found


def test_the_cancel_of_a_sigint_arrives_and_what_was_under_way_is_recorded(world: World) -> None:
    world.declare(toy("a", until_cancelled=True), toy("late", "@a"))
    up = world.start(*UP, "one")
    wait_until(lambda: noted(world, "wait a"), "a create under way")
    up.send_signal(signal.SIGINT)
    up.communicate(timeout=30)

    assert up.returncode == 1
    assert world.toys() == ["wait a", "cancelled a", "create a"]
    assert [record["urn"].rsplit("::")[-1] for record in world.state("one")["resources"]] == ["toy-one", "default", "a"]


def test_a_sigint_while_a_provider_starts_leaves_no_process(world: World) -> None:
    world.declare(toy("a"))
    up = world.start(*UP, "one")
    wait_until(lambda: bool(providers(world)), "a provider that starts")
    up.send_signal(signal.SIGINT)
    up.communicate(timeout=30)

    wait_until(lambda: not world.left_over(), "the end of the provider")

    assert up.returncode == 1
    assert world.toys() == []


@pytest.mark.parametrize("at", ["create", "start"])
def test_the_second_sigint_ends_within_five_seconds_a_provider_that_does_not_answer(world: World, at: str) -> None:
    world.declare(toy("a", slow_s=30))
    if at == "start":
        (world.folder / "project" / "sitecustomize.py").write_text(NEVER_READY)
    up = world.start(*UP, "one", TOY_STUBBORN="1")
    if at == "create":
        wait_until(lambda: noted(world, "begin a"), "a create under way")
    else:
        wait_until(lambda: bool(providers(world)), "a provider that starts")
    begun = time.monotonic()
    up.send_signal(signal.SIGINT)
    time.sleep(0.2)  # two at once would be one
    up.send_signal(signal.SIGINT)
    up.communicate(timeout=20)

    wait_until(lambda: not world.left_over(), "the end of the provider")

    assert up.returncode == 1
    assert time.monotonic() - begun < 15  # five, and a busy machine
    assert world.toys() == (["begin a"] if at == "create" else [])
    pending = world.state("one").get("pending_operations", [])
    assert [entry["type"] for entry in pending] == (["creating"] if at == "create" else [])
    assert not list((world.folder / "state" / ".pulumi" / "locks").rglob("*.json"))


def test_what_the_stand_in_writes_is_never_seen_half_written(world: World) -> None:
    """A file that is put in place by rename leaves the former one whole for who has it open."""
    world.ok("login", world.env["PULUMI_BACKEND_URL"])
    world.ok("stack", "select", "one")
    texts = {path: path.read_text() for path in (world.folder / "home").rglob("*.json")}
    before = {path: text for path, text in texts.items() if world.env["PULUMI_BACKEND_URL"] in text}
    held = [path.open() for path in before]
    world.ok("stack", "init", "two")
    world.ok("logout")

    for (path, text), file in zip(before.items(), held, strict=True):
        with file:
            assert file.read() == text
        assert path.read_text() != text
    assert len(before) == 2
    assert sorted((world.folder / "home").rglob("*.json*")) == sorted(texts)
