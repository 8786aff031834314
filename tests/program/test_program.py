"""What `infra/__main__.py` declares, read off the very requests that it sends to the engine."""

import base64
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pulumi
import pytest
from pulumi.runtime import rpc

from dynamic_providers.errors import StoreError
from dynamic_providers.store.manifest import Manifest, ModelFile, ModelRef
from dynamic_providers.vast.client import VastClient
from infra.settings import read_stack_file
from tests.program.engine import Engine, run_program
from tests.unit.builders import API_KEY, FakeVast, a_label, an_instance_row, says

ROOT = Path(__file__).parents[2]
S3_SECRET = "the-buckets-secret"
SIGN, OBSERVE, UID = "5a" * 32, "0b" * 32, "0123456789ab"
DIGEST = Manifest("llama-3.1-8b-instruct", (ModelFile("config.json", 16_000_000_000, "ab" * 32),)).digest
SECRET = rpc._special_secret_sig
RUNNING = {
    "endpoint": "https://203.0.113.7:40443",
    "instance_id": "4242",
    "usd_per_hour": 0.4,
    "phases": {"image": 3.0},
    "attempts": 1,
    "expires_at": "2026-03-14T23:09:26+00:00",
    "armed": True,
    "client_token": "token",
    "tokens": {"default": "token"},
}
KNOWN = {
    "fleet": {"fleet_id": "c0ffee12", "ca_certificate": "PEM", "sign": SIGN, "observe": OBSERVE},
    "lease": {"uid": UID},
}
EXISTING = {**KNOWN, "machine": RUNNING}


class FakeStore:
    """A bucket that holds one model."""

    def resolve(self, ref: ModelRef) -> Manifest:
        if ref.name != "llama-3.1-8b-instruct":
            raise StoreError(f"no model {ref.name!r}: push it with `gpu models push`")
        return Manifest(ref.name, (ModelFile("config.json", 16_000_000_000, "ab" * 32),))


@pytest.fixture
def vast() -> FakeVast:
    """Return a market that has not been told what to answer: who asks it fails."""
    return FakeVast(AssertionError("the market was asked"))


Program = Callable[..., Engine]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, vast: FakeVast) -> Iterator[Program]:
    """Return a function that runs the program on the shipped stack file, changed as told."""
    monkeypatch.setenv("VAST_API_KEY", API_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", S3_SECRET)
    monkeypatch.setattr("dynamic_providers.credentials.Store", lambda *_, **__: FakeStore())
    monkeypatch.setattr("dynamic_providers.credentials.VastClient", lambda key, *_, **__: client_of(vast, key))
    monkeypatch.setattr("dynamic_providers.vast.rent.Clock", lambda: vast.clock)

    def run(preview: bool = False, outputs: dict[str, Any] = EXISTING, **change: Any) -> Engine:
        values = read_stack_file(ROOT / "stacks" / "Pulumi.gpu-on.yaml") | change
        pulumi.runtime.set_all_config(
            {
                f"gpu-on-demand:{key}": value if isinstance(value, str) else json.dumps(value)
                for key, value in values.items()
            }
        )
        engine = Engine(outputs)
        run_program(ROOT / "infra" / "__main__.py", engine, preview=preview)
        return engine

    yield run
    pulumi.runtime.set_all_config({})


def client_of(vast: FakeVast, key: str) -> VastClient:
    assert key == API_KEY
    return vast.client


def test_a_gpu_stack_is_a_fleet_a_lease_and_a_machine(program: Program) -> None:
    requests = program().requests
    types = {name: request.type for name, request in requests.items() if name in ("fleet", "lease", "machine")}
    assert types == {
        "fleet": "pulumi-python:dynamic/vast:Fleet",
        "lease": "pulumi-python:dynamic/vast:Lease",
        "machine": "pulumi-python:dynamic/vast:Instance",
    }
    assert len(requests) == len(types) + 1  # and the stack itself


def test_the_machine_ends_before_its_lease_and_the_lease_before_its_fleet(program: Program) -> None:
    requests = program().requests
    before = {
        name: {urn.rpartition("::")[2] for urn in requests[name].dependencies}
        for name in ("fleet", "lease", "machine")
    }  # fmt: skip
    assert before == {"fleet": set(), "lease": {"fleet"}, "machine": {"fleet", "lease"}}


@pytest.mark.parametrize(
    ("name", "secrets"),
    [
        ("fleet", {"sign", "observe"}),
        ("lease", set()),
        ("machine", {"sign", "observe", "client_token", "tokens"}),
    ],
)
def test_secrets_are_marked_so_that_the_state_holds_them_encrypted(
    program: Program, name: str, secrets: set[str]
) -> None:
    assert secrets <= set(program().requests[name].additionalSecretOutputs)


def test_the_machine_is_asked_for_what_the_stack_file_says(program: Program) -> None:
    inputs = program().inputs("machine")
    assert inputs["need"]["gpus"] == ["RTX 4090", "RTX 3090"]
    assert inputs["need"]["max_usd_per_hour"] == 0.50
    assert inputs["terms"] == {"max_hours": 8, "idle_minutes": 15, "boot_minutes": 20, "attempts": 3}
    assert inputs["model"]["release"] == f"llama-3.1-8b-instruct@sha256:{DIGEST}"
    assert inputs["model"]["size_bytes"] == 16_000_000_000
    assert inputs["store"] == {"bucket": "gpu-inference-models", "location": "fsn1"}
    assert (inputs["stack"], inputs["uid"], inputs["fleet_id"]) == ("gpu-on", UID, "c0ffee12")


def test_no_key_and_no_url_is_an_input_of_anything(program: Program) -> None:
    engine = program()
    for name in engine.requests:
        sent = json.dumps(engine.inputs(name))
        assert API_KEY not in sent
        assert S3_SECRET not in sent
        assert "://" not in sent
        assert "X-Amz" not in sent


@pytest.mark.parametrize(
    ("name", "provider"), [("fleet", "FleetProvider"), ("lease", "LeaseProvider"), ("machine", "VastInstanceProvider")]
)
def test_a_provider_is_kept_by_reference_alone(program: Program, name: str, provider: str) -> None:
    # By value, `destroy` would run the code of the day of `up`, and whatever the object held would lie in the state.
    kept = program().inputs(name)["__provider"]
    pickled = base64.b64decode(kept if isinstance(kept, str) else kept["value"])
    assert b"dynamic_providers.vast.resource" in pickled
    assert provider.encode() in pickled
    assert len(pickled) < 120


def test_two_runs_send_the_same(program: Program) -> None:
    first, second = program(), program()
    assert {name: first.inputs(name) for name in first.requests} == {
        name: second.inputs(name) for name in second.requests
    }


OPEN = (
    "machines",
    "endpoint",
    "model",
    "model_digest",
    "instance_id",
    "usd_per_hour",
    "phases",
    "attempts",
    "expires_at",
    "armed",
)


def test_the_outputs_are_what_users_need(program: Program) -> None:
    exports = program().exports
    assert exports.keys() == {*OPEN, "ca_certificate", "client_token", "tokens"}
    assert exports["machines"] == [{name: exports[name] for name in OPEN[1:]}]
    assert exports["endpoint"] == RUNNING["endpoint"]
    assert exports["instance_id"] == "4242"
    assert exports["model"] == "llama-3.1-8b-instruct"
    assert exports["model_digest"] == f"sha256:{DIGEST}"
    assert exports["ca_certificate"] == "PEM"


def test_tokens_leave_the_program_only_as_secrets(program: Program) -> None:
    exports = program().exports
    marked = {name for name, value in exports.items() if isinstance(value, dict) and rpc._special_sig_key in value}
    assert marked == {"client_token", "tokens"}
    assert {exports[name][rpc._special_sig_key] for name in marked} == {SECRET}
    assert "token" not in json.dumps([exports[name] for name in OPEN])


# Preview

OFFER = {
    "id": 777,
    "machine_id": 12,
    "gpu_name": "RTX 4090",
    "num_gpus": 1,
    "gpu_ram": 24564,
    "dph_total": 0.41,
    "inet_down": 900,
    "inet_down_cost": 0.0,
    "disk_space": 500,
    "reliability2": 0.99,
    "geolocation": "Sweden, SE",
    "verification": "verified",
    "cuda_max_good": 13.0,
    "compute_cap": 890,
    "direct_port_count": 9,
    "duration": 1e7,
}


def a_market(
    *instances: dict[str, Any], credit: float = 10.0, offers: Sequence[dict[str, Any]] = (OFFER,)
) -> Callable[[httpx.Request], httpx.Response]:
    answers = {
        "/api/v0/users/current": {"credit": credit},
        "/api/v0/bundles/": {"offers": list(offers)},
        "/api/v1/instances/": {"instances": list(instances), "next_token": None},
    }
    return lambda request: says(200, answers[request.url.path])


def ours(**change: Any) -> dict[str, Any]:
    return an_instance_row(label=a_label().ready().render(), disk_space=100.0) | change


@pytest.mark.parametrize(
    ("outputs", "instances"),
    [
        pytest.param({}, [], id="before-the-first-update"),
        pytest.param({}, [ours()], id="beside-a-machine-of-another-stack"),
        pytest.param(KNOWN, [], id="machine-gone"),
        pytest.param(KNOWN, [ours(actual_status="exited", cur_state="stopped")], id="machine-stopped"),
    ],
)
def test_a_preview_shows_the_market_where_something_would_be_rented_and_rents_nothing(
    program: Program,
    vast: FakeVast,
    caplog: pytest.LogCaptureFixture,
    outputs: dict[str, Any],
    instances: list[dict[str, Any]],
) -> None:
    vast.answers = [a_market(*instances)]
    with caplog.at_level(logging.INFO):
        program(preview=True, outputs=outputs)
    assert "1 of 1 offers fit" in caplog.text
    assert "offer 777 wins" in caplog.text
    assert {line.split()[0] for line in vast.lines} <= {"GET", "POST"}
    assert {line.split()[1] for line in vast.lines if line[:4] == "POST"} == {"/api/v0/bundles/"}


def test_a_preview_beside_a_machine_that_runs_says_nothing_of_the_market(
    program: Program, vast: FakeVast, caplog: pytest.LogCaptureFixture
) -> None:
    vast.answers = [a_market(ours())]
    with caplog.at_level(logging.INFO):
        program(preview=True)
    assert "offers fit" not in caplog.text
    assert "POST /api/v0/bundles/" not in vast.lines


@pytest.mark.parametrize(
    ("market", "message"),
    [
        pytest.param(a_market(credit=0), "add credit", id="no-credit"),
        pytest.param(lambda _: says(401, {"error": "auth_error"}), "set VAST_API_KEY", id="wrong-key"),
        pytest.param(a_market(offers=[]), "no offer fits", id="no-offer"),
        pytest.param(a_market(offers=[OFFER | {"dph_total": 9.0}]), "max_usd_per_hour 1", id="all-too-dear"),
    ],
)
def test_a_preview_fails_where_the_update_would(
    program: Program, vast: FakeVast, market: Callable[[httpx.Request], httpx.Response], message: str
) -> None:
    vast.answers = [market]
    with pytest.raises(pulumi.RunError, match=message):
        program(preview=True, outputs={})


def test_an_update_asks_the_market_nothing_from_here(program: Program, vast: FakeVast) -> None:
    program(preview=False)
    assert vast.requests == []


# What cannot be, said before anything is declared


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        pytest.param(
            {"kind": "gpuu", "replicas": 2, "need": {"gpus": ["RTX 4O90"], "min_vram_gib": 24, "max_usd_per_hour": 1}},
            ["3 problems", "kind", "replicas", "need.gpus"],
            id="three-mistakes-in-one-file",
        ),
        pytest.param({"model": {"name": "another"}}, ["no model 'another'", "gpu models push"], id="no-such-model"),
        pytest.param(
            {"need": {"gpus": ["RTX 3060"], "min_vram_gib": 12, "max_usd_per_hour": 1}},
            ["need.min_vram_gib: 12", "at least 18 GiB"],
            id="model-bigger-than-the-gpu",
        ),
        pytest.param(
            {"need": {"gpus": ["RTX 4090"], "min_vram_gib": 24, "max_usd_per_hour": 1, "disk_gb": 20}},
            ["need.disk_gb: 20", "54 GB"],
            id="model-bigger-than-the-disk",
        ),
    ],
)
def test_a_stack_that_cannot_be_says_why_in_one_message(
    program: Program, change: dict[str, Any], messages: list[str]
) -> None:
    with pytest.raises(pulumi.RunError) as caught:
        program(**change)
    assert [text for text in messages if text not in str(caught.value)] == []


def test_without_a_key_nothing_is_declared(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VAST_API_KEY")
    with pytest.raises(pulumi.RunError, match="vast_api_key"):
        program()
