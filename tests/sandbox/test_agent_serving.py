"""The agent while the rental goes on: drain, state, page, armed, and an engine that ends. Real processes."""

import contextlib
import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from bootstrap.host.watching.clock import read_moment
from bootstrap.host.watching.engine import PAUSES, Engine
from bootstrap.host.watching.memory import Memory, render_memory
from tests.sandbox.agent_world import Market, World, door_page, engine_page, named, wait_until


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    market = Market(tmp_path_factory.mktemp("machines"))
    with market.emulator:
        yield market


@pytest.fixture
def world(market: Market) -> Iterator[World]:
    with market.rent() as world:
        yield world


def test_the_readiness_probe_is_no_activity(world: World) -> None:
    world.lease(phase="b")
    world.start()
    world.wait_for_looks()
    world.engine.answers["/metrics"] = (200, engine_page(tokens=150))
    world.lease(phase="r", idle_seconds=20, grace_seconds=0)
    wait_until(lambda: named(world.state(), "idle_seconds") or 0)
    assert "vast_instance_last_request_timestamp_seconds" not in world.ask("GET", "/metrics/host")[1]
    world.engine.answers["/metrics"] = (200, engine_page(tokens=151))
    wait_until(lambda: "vast_instance_last_request_timestamp_seconds 1" in world.ask("GET", "/metrics/host")[1])


def test_a_drain_is_a_lease(world: World) -> None:
    world.lease()
    world.start()
    wait_until(lambda: world.drain_file() == "0")
    status, state = world.ask("PUT", "/control/drain", {"seconds": 600})
    assert (status, state["drained"]) == (200, True)
    assert 590 < state["drain_seconds_left"] <= 600
    assert 590 < float(world.drain_file()) - time.time() < 602
    world.door.answers["/metrics"] = (200, door_page(2))
    assert named(world.ask("PUT", "/control/drain", {"seconds": 900})[1], "in_flight") == 2
    assert not world.state()["drained"], "two are still served"
    for pid in world.agent_pids():
        os.kill(pid, signal.SIGKILL)
    killed_at = time.time_ns()
    wait_until(lambda: world.heartbeat() > killed_at and world.state())
    assert 800 < world.state()["drain_seconds_left"] <= 900, "a killed agent neither forgets it nor begins it anew"
    status, state = world.ask("DELETE", "/control/drain")
    assert (status, state["drain_seconds_left"], world.drain_file()) == (200, 0, "0")
    world.ask("PUT", "/control/drain", {"seconds": 1})
    wait_until(lambda: world.drain_file() == "0")
    assert world.state()["drain_seconds_left"] == 0


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"seconds": 0},
        {"seconds": 3601},
        {"seconds": 1.5},
        {"seconds": True},
        {"seconds": "60"},
        pytest.param("x" * 2000, id="long"),
    ],
    ids=str,
)
def test_a_drain_that_makes_no_sense_is_refused_in_the_form_that_clients_read(shared: World, body: object) -> None:
    status, said = shared.ask("PUT", "/control/drain", body)
    assert status == 400
    assert set(said["error"]) == {"message", "type", "param", "code"}
    assert shared.drain_file() == "0"


@pytest.fixture(scope="module")
def shared(market: Market) -> Iterator[World]:
    """Return a machine that serves, the same for whoever changes nothing."""
    with market.rent() as world:
        world.lease()
        world.start()
        wait_until(lambda: world.drain_file() == "0" and world.state())
        yield world


def test_nothing_else_is_answered(shared: World) -> None:
    for method, path in (
        ("GET", "/"),
        ("GET", "/control/drain"),
        ("PUT", "/control/state"),
        ("DELETE", "/metrics/host"),
    ):
        assert shared.ask(method, path)[0] == 404
    assert shared.ask("POST", "/control/drain")[0] == 501
    assert (shared.run / "agent.sock").stat().st_mode & 0o777 == 0o600


def test_clients_that_hang_hold_up_neither_looks_nor_others(shared: World) -> None:
    descriptor = os.open(shared.run, os.O_RDONLY)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, descriptor)
        for greeting in (b"", b"GET /control", b"PUT /control/drain HTTP/1.1\r\nContent-Length: 14\r\n\r\n{") * 10:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(f"/proc/self/fd/{descriptor}/agent.sock")
            client.sendall(greeting)
        assert shared.ask("GET", "/control/state")[0] == 200
        shared.wait_for_looks()


def test_a_machine_with_a_wrong_key_is_loudly_unarmed(market: Market) -> None:
    with market.rent(key="not-this-instances") as world:
        world.lease()
        world.start()
        wait_until(lambda: "answers 4" in (named(world.state(), "unarmed_because") or ""))
        assert not world.state()["armed"]
        assert "not-this-instances" not in world.log() + json.dumps(world.state())


def test_a_machine_gets_armed_as_soon_as_the_market_answers(market: Market, world: World) -> None:
    market.emulator.fail("server_error", on="show", times=2)
    world.lease()
    world.start()
    wait_until(lambda: named(world.state(), "armed"))
    assert world.state()["unarmed_because"] is None
    assert "not armed: the market answers 500 to GET" in world.log()


def test_an_engine_that_ends_is_started_anew(world: World) -> None:
    world.lease()
    world.engine.answers["/health"] = (503, "")
    world.start()
    wait_until(lambda: "success: engine entered RUNNING" in world.log("supervisor"))
    os.kill(int((world.run / "engine.group").read_text()), signal.SIGKILL)
    wait_until(lambda: named(world.state(), "engine", "restarts") == 1)
    wait_until(lambda: world.log("engine").count("=== engine starts as") == 2)
    world.engine.answers["/health"] = (200, "")
    wait_until(lambda: named(world.state(), "engine", "state") == "running")


def test_an_engine_that_ends_again_and_again_is_given_up_with_its_reason(world: World) -> None:
    world.lease()
    world.engine.answers["/health"] = (503, "")
    had_all = Engine(settings="some-settings", tries=len(PAUSES), restarts=len(PAUSES))
    (world.run / "agent.json").write_text(render_memory(Memory(read_moment(), engine=had_all)))
    world.plays("sleep 1.5; echo 'torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB'; exit 1\n")
    world.start()
    wait_until(lambda: named(world.state(), "engine", "reason"))
    engine = world.state()["engine"]
    assert (engine["state"], engine["reason"], engine["restarts"]) == ("unhealthy", "cuda_out_of_memory", len(PAUSES))
    assert engine["message"]
    assert 'gpu_engine_exits_total{reason="cuda_out_of_memory"} 1.0' in world.ask("GET", "/metrics/host")[1]
    world.wait_for_looks(2)
    assert world.log("engine").count("=== engine starts as") == 1


def test_what_is_being_changed_is_not_touched(world: World) -> None:
    world.lease()
    world.is_applied(None)
    world.plays("exit 1\n")
    world.start()
    wait_until(lambda: "gave up: engine" in world.log("supervisor"))
    before = world.log("engine").count("=== engine starts as")
    world.wait_for_looks(3)
    assert world.log("engine").count("=== engine starts as") == before
    assert world.state()["engine"]["restarts"] == 0


def test_a_killed_agent_leaves_no_children_and_its_successor_answers(world: World) -> None:
    world.lease()
    world.start()
    wait_until(world.state)
    (before,) = world.agent_pids()
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: world.agent_pids() not in ([], [before]))
    with contextlib.suppress(OSError, http.client.HTTPException):
        world.ask("GET", "/metrics/host")
    wait_until(world.state)
