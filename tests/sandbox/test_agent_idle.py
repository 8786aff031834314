"""Agent, real front door and vLLM's stub together: who keeps a machine awake, and who does not."""

import contextlib
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bootstrap.steps import DOOR_PORT
from tests.sandbox.agent_world import Market, World, named, wait_until
from tests.sandbox.door_engines import stub_engine
from tests.sandbox.door_world import BEARER, CONTROL, SCRAPE, Door, bearer, open_door
from tests.sandbox.models import write_tiny_llama

CROWD = 1000
SHORT: dict[str, Any] = {"phase": "r", "idle_seconds": 4, "grace_seconds": 1}


@dataclass(frozen=True)
class Machine:
    """All that a machine runs."""

    world: World
    door: Door
    market: Market

    def is_over(self) -> bool:
        return self.market.ended_at(self.world) is not None


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    market = Market(tmp_path)
    model = write_tiny_llama(tmp_path / "tiny", positions=8192)
    with (
        market.emulator,
        open_door(tmp_path / "machine") as door,
        stub_engine(door, model, tokens_per_second=20),
        market.rent(door.root) as world,
    ):
        yield Machine(world, door, market)


def test_a_crowd_of_strangers_scrapes_and_health_checks_keeps_no_machine_awake(machine: Machine) -> None:
    door, asked = machine.door, dict.fromkeys(("stranger", "scrape", "health", "state"), 0)
    over = threading.Event()

    def bother() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                assert door.ask("POST /v1/completions", bearer("wrong")).status == 401
                asked["stranger"] += 1
                assert door.ask("GET /metrics/vllm", bearer(SCRAPE)).status == 200
                asked["scrape"] += door.ask("GET /metrics/host", bearer(SCRAPE)).status == 200
                asked["health"] += door.ask("GET /health", BEARER).status == 200
                asked["state"] += door.ask("GET /control/state", bearer(CONTROL)).status == 200

    with ExitStack() as crowd:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4 * CROWD)), hard))
        crowd.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(CROWD):  # silent: in the middle of a handshake
            crowd.enter_context(socket.create_connection((door.address, DOOR_PORT)))
        for _ in range(10):  # behind it: in the middle of a request that has the right token
            tls = crowd.enter_context(door.connect())
            tls.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer token-a\r\n")
        machine.world.lease(**SHORT)
        machine.world.start()
        bothering = threading.Thread(target=bother)
        bothering.start()
        try:
            wait_until(machine.is_over)
        finally:
            over.set()
            bothering.join()
    assert named(machine.world.state(), "ending") == "idle"
    assert all(asked.values()), asked


@pytest.mark.real
def test_a_stream_keeps_it_awake_to_its_end_and_then_it_goes(machine: Machine) -> None:
    question = {
        "prompt": "go on",
        "max_tokens": 240,
        "ignore_eos": True,
        "stream": True,
    }  # 12 s, more than twice as long
    machine.world.lease(**SHORT)
    with machine.door.client() as client, client.stream("POST", "/v1/completions", json=question) as answer:
        lines = answer.iter_lines()
        next(lines)
        machine.world.start()
        words = [line for line in lines if line.startswith("data: ")]
        ended_at = time.time()
    assert words[-1] == "data: [DONE]"
    assert len(words) >= 200
    wait_until(machine.is_over)
    over_at = machine.market.ended_at(machine.world)
    assert over_at is not None
    assert over_at > ended_at
    assert named(machine.world.state(), "ending") == "idle"


def test_a_drain_through_the_door_refuses_new_ones_and_lets_the_running_one_end(machine: Machine) -> None:
    question = {"prompt": "go on", "max_tokens": 80, "ignore_eos": True, "stream": True}
    machine.world.lease()
    machine.world.start()
    wait_until(lambda: machine.door.ask("GET /control/state", bearer(CONTROL)).status == 200)
    control = machine.door.client(CONTROL)
    with control, machine.door.client() as client, client.stream("POST", "/v1/completions", json=question) as answer:
        lines = answer.iter_lines()
        next(lines)
        state = control.put("/control/drain", json={"seconds": 600}).raise_for_status().json()
        assert (state["in_flight"], state["drained"]) == (1, False)
        refused = machine.door.ask("POST /v1/completions", BEARER)
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) > 0
        assert [line for line in lines if line][-1] == "data: [DONE]"
        wait_until(lambda: control.get("/control/state").json()["drained"])
        assert control.put("/control/drain", json={"seconds": 0}).status_code == 400
        assert control.delete("/control/drain").json()["drain_seconds_left"] == 0
        assert machine.door.ask("GET /v1/models", BEARER).status == 200
