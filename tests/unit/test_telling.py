"""How a long phase is told: one line that changes where Pulumi shows what goes on, lines now and then elsewhere."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import grpc
import pytest
from google.protobuf import empty_pb2
from pulumi.runtime.proto import engine_pb2, engine_pb2_grpc

from dynamic_providers import resource
from dynamic_providers.process import STOP
from dynamic_providers.vast.boot import SHOW_SECONDS, TELL_SECONDS, Boot
from dynamic_providers.vast.client import VastClient
from dynamic_providers.vast.rent import World
from tests.sandbox.clocks import PlayedClock


class Engine(engine_pb2_grpc.EngineServicer):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.logged: list[Any] = []

    def Log(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.logged.append(request)
        return empty_pb2.Empty()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    server, engine = grpc.server(ThreadPoolExecutor(1)), Engine()
    engine_pb2_grpc.add_EngineServicer_to_server(engine, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setattr(STOP, "_engine", f"127.0.0.1:{port}")
    yield engine
    server.stop(0).wait()


def test_a_line_that_is_shown_is_not_repeated_at_the_end(engine: Engine) -> None:
    resource.show("weights ██░░ 1 of 2 GB")
    (request,) = engine.logged
    assert (request.message, request.severity, request.ephemeral) == ("weights ██░░ 1 of 2 GB", engine_pb2.INFO, True)


def test_an_engine_that_does_not_answer_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STOP, "_engine", "127.0.0.1:9")
    resource.show("nobody reads this")


def test_where_there_is_no_engine_the_line_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    resource.show("on its own")
    assert capsys.readouterr().err == "on its own\n"


@pytest.mark.parametrize(
    ("can_show", "seconds"),
    [pytest.param(True, SHOW_SECONDS, id="changing-line"), pytest.param(False, TELL_SECONDS, id="lines")],
)
def test_a_phase_is_told_now_and_then(can_show: bool, seconds: float) -> None:
    clock, said, shown = PlayedClock(), list[str](), list[str]()
    show: Callable[[str], None] | None = shown.append if can_show else None
    boot = Boot(World(cast(VastClient, None), said.append, clock, show=show), 20)
    for clock.slept in (seconds - 0.1, seconds, seconds + 0.1, 2 * seconds):
        boot.tell("weights", "1 of 2 GB")
    assert [line.split() for line in (shown if can_show else said)] == [
        ["weights", f"{at:.1f}", "s", "…", "1", "of", "2", "GB"] for at in (seconds, 2 * seconds)
    ]
    assert not (said if can_show else shown)
