"""What `onstart` leaves running ends a rental that nobody looks after: on hosts with a heartbeat and nothing else."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event, Thread

import pytest

from bootstrap.onstart import render_onstart
from dynamic_providers.vast.rent import rent
from tests.sandbox.stage import Stage, WatchedHosts

PATIENCE_SECONDS = 60
"""Before a test says that something will not happen any more."""
LONG = timedelta(hours=1)
SHORT = timedelta(seconds=2)


def hosts_of(stage: Stage) -> WatchedHosts:
    assert isinstance(stage.market.hosts, WatchedHosts)
    return stage.market.hosts


def a_host(stage: Stage, boot: timedelta = LONG, stale: timedelta = LONG, deadline: datetime | None = None) -> Path:
    """Rent a host with this switch; return its workspace once `onstart` has been there."""
    script = render_onstart(boot, stale, deadline or datetime.now().astimezone() + LONG)
    rental = rent(stage.world, stage.request(), script)
    workspace = hosts_of(stage).workspace(rental.instance_id)
    wait_until(lambda: (workspace / "switch.log").exists())
    return workspace


def wait_until(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.05)


def wait_until_gone(stage: Stage) -> None:
    wait_until(lambda: not stage.show())
    assert [row["to"] is not None for row in stage.market.ledger()["instances"]] == [True]


@contextmanager
def beating(workspace: Path) -> Iterator[Event]:
    """Keep a heartbeat as the agent does, until the event is set."""
    (workspace / "run").mkdir(exist_ok=True)
    beat, over = workspace / "run/heartbeat", Event()
    beat.touch()

    def go_on() -> None:
        while not over.wait(0.2):
            with suppress(FileNotFoundError):
                os.utime(beat)

    thread = Thread(target=go_on)
    thread.start()
    try:
        yield over
    finally:
        over.set()
        thread.join()


def test_a_host_on_which_nobody_takes_over_is_gone_after_the_boot_deadline(stage: Stage) -> None:
    workspace = a_host(stage, boot=SHORT)
    log = workspace / "switch.log"
    wait_until(lambda: not log.exists() or "no sign of an agent for" in log.read_text())
    wait_until_gone(stage)
    deletes = [request for request in stage.market.requests if request["method"] == "DELETE"]
    assert deletes, "by the market's own API"
    assert "/sandbox-key" not in str(deletes)


@pytest.mark.real
def test_the_deadline_by_the_wall_clock_counts_where_it_is_earlier(stage: Stage) -> None:
    boot = timedelta(seconds=100)  # a quarter of it is granted, and all of it is longer than our patience
    a_host(stage, boot=boot, deadline=datetime.now().astimezone() + SHORT)
    wait_until_gone(stage)


def test_a_deadline_that_a_wrong_clock_puts_into_the_past_ends_nothing_at_once(stage: Stage) -> None:
    a_host(stage, boot=20 * SHORT, deadline=datetime.now().astimezone() - LONG)
    time.sleep(SHORT.total_seconds())
    assert stage.show()
    wait_until_gone(stage)


def test_an_agent_that_falls_silent_is_followed_by_the_end_and_not_before(stage: Stage) -> None:
    workspace = a_host(stage, boot=2 * SHORT, stale=3 * SHORT)  # long enough for a machine that is busy
    with beating(workspace) as over:
        time.sleep(3 * SHORT.total_seconds())
        assert stage.show(), "as long as it looks, it is up to the agent"
        over.set()
        wait_until_gone(stage)


def test_it_asks_again_until_the_market_has_ended_it(stage: Stage) -> None:
    stage.market.fail("unavailable", on="destroy", times=1)
    workspace = a_host(stage, boot=SHORT)
    assert workspace.exists()
    wait_until_gone(stage)


@pytest.mark.parametrize("tool", ["curl", "python3"])
def test_either_tool_will_do(stage: Stage, tool: str) -> None:
    workspace = a_host(stage, boot=2 * SHORT)
    other = {"curl": "python3", "python3": "curl"}[tool]
    broken = workspace.parents[1] / "bin" / other
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    wait_until_gone(stage)
