"""The SDK's own host of dynamic providers, driven over gRPC as the engine drives it (ADRs 0003 and 0006)."""

import base64
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dill
import grpc
import pytest
from google.protobuf import empty_pb2, json_format, struct_pb2
from pulumi.dynamic import ResourceProvider
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc

from dynamic_providers.vast.lifecycle import engine_of
from dynamic_providers.vast.resource import FleetProvider, LeaseProvider, VastInstanceProvider
from tests.sandbox.vast.server import VastEmulator
from tests.unit.builders import UID, a_fleet, a_request
from tests.unit.raising_provider import RaisingProvider

ROOT = Path(__file__).resolve().parents[2]
SECRET = {"4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270"}
PROMPT_SECONDS = 30.0  # a busy machine is slow to start a process; none of the answers waits so long

Props = Mapping[str, Any]


class Host:
    """A provider process, and the engine's side of it."""

    def __init__(
        self,
        stub: provider_pb2_grpc.ResourceProviderStub,
        process: "subprocess.Popen[str]",
        engine: socket.socket,
    ) -> None:
        self._stub = stub
        self.process = process
        self.engine = engine

    def cancel(self) -> None:
        self._stub.Cancel(empty_pb2.Empty(), timeout=PROMPT_SECONDS)

    def configure(self, **config: Any) -> None:
        args = {f"gpu-on-demand:{key}": value for key, value in config.items()}
        self._stub.Configure(provider_pb2.ConfigureRequest(args=_struct(args), acceptSecrets=True))

    def check(self, provider: type[ResourceProvider], news: Props) -> Props:
        answer = self._stub.Check(provider_pb2.CheckRequest(olds=_struct({}), news=_struct(news, provider)))
        return _plain(answer.inputs)

    def create(self, provider: type[ResourceProvider], props: Props) -> tuple[str, Props]:
        request = provider_pb2.CreateRequest(properties=_struct(props, provider))
        answer = self._stub.Create(request, timeout=PROMPT_SECONDS)
        return answer.id, _plain(answer.properties)

    def diff(self, provider: type[ResourceProvider], olds: Props, news: Props) -> provider_pb2.DiffResponse:
        request = provider_pb2.DiffRequest(id="1", olds=_struct(olds, provider), news=_struct(news, provider))
        answer: provider_pb2.DiffResponse = self._stub.Diff(request)
        return answer

    def delete(self, provider: type[ResourceProvider], id_: str, props: Props) -> None:
        self._stub.Delete(provider_pb2.DeleteRequest(id=id_, properties=_struct(props, provider)))


def _struct(props: Props, provider: type[ResourceProvider] | None = None) -> struct_pb2.Struct:
    pickled = {"__provider": base64.b64encode(dill.dumps(provider())).decode()} if provider else {}
    return json_format.ParseDict({**props, **pickled}, struct_pb2.Struct())


def _plain(struct: struct_pb2.Struct) -> Props:
    found: Props = json_format.MessageToDict(struct)
    return {key: value for key, value in found.items() if key != "__provider"}


@contextmanager
def a_host(**variables: str) -> Iterator[Host]:
    """Start the process as the engine does; of this environment it gets nothing that could be a key."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "VAST_", "PULUMI_"))}
    engine = socket.create_server(("127.0.0.1", 0))
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "pulumi.dynamic", f"127.0.0.1:{engine.getsockname()[1]}"],
        cwd=ROOT,
        env={**env, "PULUMI_PROJECT": "gpu-on-demand", **variables},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        with grpc.insecure_channel(f"127.0.0.1:{int(process.stdout.readline())}") as channel:
            yield Host(provider_pb2_grpc.ResourceProviderStub(channel), process, engine)
    finally:
        process.kill()
        process.communicate()
        engine.close()


@pytest.fixture(scope="module")
def market() -> Iterator[VastEmulator]:
    with VastEmulator() as running:
        yield running


@pytest.fixture(scope="module")
def host(market: VastEmulator) -> Iterator[Host]:
    """Return a process whose environment has no key, and whose stack has a wrong one."""
    with a_host(VAST_URL=market.url) as running:
        running.configure(vast_api_key={**SECRET, "value": "a-wrong-key"}, plain="word")
        yield running


def details(caught: pytest.ExceptionInfo[grpc.RpcError]) -> str:
    text: str = caught.value.details()
    return text


def test_our_errors_reach_the_engine_as_their_message_alone(host: Host) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        host.create(RaisingProvider, {"error": "ours"})
    assert details(caught) == "set VAST_API_KEY\n  to one of your account's keys"


def test_a_foreign_error_shows_where_it_came_from(host: Host) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        host.create(RaisingProvider, {"error": "foreign"})
    assert "Traceback" in details(caught)
    assert "raising_provider.py" in details(caught)
    assert details(caught).rstrip().endswith("ZeroDivisionError: a bug")


@pytest.mark.parametrize(
    ("error", "name"),
    [
        pytest.param("exit", "SystemExit(3)", id="exit"),
        pytest.param("cancelled", "CancelledError", id="cancelled"),
        pytest.param("ctrl-c", "KeyboardInterrupt", id="ctrl-c"),
    ],
)
def test_whatever_else_is_raised_the_engine_gets_an_answer(host: Host, error: str, name: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        host.create(RaisingProvider, {"error": error})
    assert caught.value.code() == grpc.StatusCode.UNKNOWN
    assert name in details(caught)


def test_a_refused_key_is_one_message_without_a_traceback(host: Host) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        host.delete(LeaseProvider, UID, {"uid": UID, "fleet_id": a_fleet().id})
    assert "401" in details(caught)
    assert "set VAST_API_KEY to one of your account's keys" in details(caught)
    assert "Traceback" not in details(caught)


def test_a_machine_without_keys_for_the_bucket_is_one_message_without_a_traceback(host: Host) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        host.create(VastInstanceProvider, a_request().to_props())
    assert details(caught).startswith("no keys for the bucket. Set AWS_ACCESS_KEY_ID")
    assert "Traceback" not in details(caught)


def test_the_stacks_secrets_are_used_where_the_environment_has_none(host: Host, market: VastEmulator) -> None:
    assert host.create(RaisingProvider, {"ask": ["vast_api_key", "plain", "none"]}) == (
        "made",
        {"seen": {"vast_api_key": "a-wrong-key", "plain": "word", "none": None}},
    )
    with a_host(VAST_URL=market.url) as other:
        other.configure(vast_api_key={**SECRET, "value": market.api_key})
        other.delete(FleetProvider, a_fleet().id, {})


def test_the_environment_comes_before_the_stacks_secrets(market: VastEmulator) -> None:
    with a_host(VAST_URL=market.url, VAST_API_KEY=market.api_key) as other:
        other.configure(vast_api_key={**SECRET, "value": "a-key-turned-long-ago"})
        other.delete(FleetProvider, a_fleet().id, {})


def test_whole_numbers_survive_the_protocol_that_knows_only_floats(host: Host) -> None:
    request = a_request()
    applied = {"applied": engine_of(request).settings_hash(), "is_ready": True, "disk_gb": request.disk_gb}
    inputs = host.check(VastInstanceProvider, request.to_props())
    assert isinstance(inputs["model"]["max_model_len"], float)
    same = host.diff(VastInstanceProvider, {**inputs, **applied}, inputs)
    assert same.changes == provider_pb2.DiffResponse.DIFF_NONE
    other = host.diff(VastInstanceProvider, {**inputs, **applied}, {**inputs, "image": "vllm/vllm-openai:v0.33.0"})
    assert (other.changes, list(other.replaces)) == (provider_pb2.DiffResponse.DIFF_SOME, ["image"])
    assert other.deleteBeforeReplace


def test_a_lease_is_drawn_without_asking_anybody(host: Host, market: VastEmulator) -> None:
    before = len(market.requests)
    id_, outputs = host.create(LeaseProvider, {"fleet_id": "c0ffee12", "uid": None})
    assert outputs == {"fleet_id": "c0ffee12", "uid": id_}
    assert len(id_) == len(UID)
    assert len(market.requests) == before


def test_a_provider_travels_as_its_name_and_holds_nothing() -> None:
    for provider in (FleetProvider, LeaseProvider, VastInstanceProvider):
        assert len(dill.dumps(provider())) < 100


def begin_create(host: Host, props: Props) -> tuple[threading.Thread, list[grpc.RpcError]]:
    """Start a create that waits, and return when the process is at it."""
    errors: list[grpc.RpcError] = []

    def create() -> None:
        try:
            host.create(RaisingProvider, props)
        except grpc.RpcError as error:
            errors.append(error)

    host.create(RaisingProvider, {"ask": []})  # from here on the process is ours
    thread = threading.Thread(target=create)
    thread.start()
    return thread, errors


def test_cancel_ends_a_create_that_waits_with_one_plain_sentence() -> None:
    with a_host() as host:
        host.configure()
        thread, errors = begin_create(host, {"wait_seconds": 60})
        host.cancel()
        thread.join(PROMPT_SECONDS)
        assert [error.details() for error in errors] == ["stopped: Pulumi was told to stop"]


def test_a_process_whose_engine_is_gone_ends_what_it_is_at_and_then_itself() -> None:
    with a_host() as host:
        host.configure()
        thread, errors = begin_create(host, {"wait_seconds": 60})
        host.engine.close()
        thread.join(PROMPT_SECONDS)
        assert len(errors) == 1
        assert host.process.wait(PROMPT_SECONDS) == 1
