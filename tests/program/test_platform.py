"""What the program declares for a platform, and for a gpu stack that names one."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pulumi
import pytest
from pulumi.runtime import rpc

from infra.settings import read_stack_file
from tests.program.engine import Engine, run_program
from tests.program.test_program import RUNNING, FakeStore
from tests.unit.builders import API_KEY, UID, a_fleet

ROOT = Path(__file__).parents[2]
FLEET = a_fleet()
KNOWN = {
    "fleet_id": FLEET.id,
    "ca_certificate": FLEET.ca_certificate,
    "sign": FLEET.sign,
    "observe": FLEET.observe,
}
STORE = {"bucket": "team-models", "location": "hel1"}
PLATFORM = "organization/gpu-on-demand/team"


@pytest.fixture(autouse=True)
def stores(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Return the buckets that were opened."""
    opened: list[str] = []

    def open_store(bucket: str, **_: Any) -> FakeStore:
        opened.append(bucket)
        return FakeStore()

    monkeypatch.setenv("VAST_API_KEY", API_KEY)
    monkeypatch.setattr("dynamic_providers.credentials.Store", open_store)
    yield opened
    pulumi.runtime.set_all_config({})


def run(stack: str, engine: Engine, *without: str, **change: Any) -> Engine:
    values = read_stack_file(ROOT / "stacks" / f"Pulumi.{stack}.yaml") | change
    pulumi.runtime.set_all_config(
        {
            f"gpu-on-demand:{key}": value if isinstance(value, str) else json.dumps(value)
            for key, value in values.items()
            if key not in without
        }
    )
    run_program(ROOT / "infra" / "__main__.py", engine, preview=False)
    return engine


def platform(unsupported: list[str] | None = None, **change: Any) -> Engine:
    return run("platform", Engine({"fleet": KNOWN, "bucket": {"unsupported": unsupported or []}}), **change)


def member(fleet: dict[str, Any] | None = None) -> Engine:
    given = {PLATFORM: {"fleet": KNOWN | {"store": STORE} | (fleet or {})}}
    return run("gpu-on", Engine({"lease": {"uid": UID}, "machine": RUNNING}, given), "store", platform="team")


def is_secret(value: Any) -> bool:
    return isinstance(value, dict) and value.get(rpc._special_sig_key) == rpc._special_secret_sig


def test_a_platform_is_a_fleet_and_a_bucket_of_its_own() -> None:
    requests = platform().requests
    types = {name: request.type for name, request in requests.items() if name in ("fleet", "bucket")}
    assert types == {
        "fleet": "pulumi-python:dynamic/vast:Fleet",
        "bucket": "pulumi-python:dynamic/store:Bucket",
    }
    assert len(requests) == 3  # and the stack itself
    assert {urn.rpartition("::")[2] for urn in requests["bucket"].dependencies} == {"fleet"}


def test_the_bucket_is_asked_for_what_the_stack_file_says() -> None:
    store = STORE | {"force_destroy": True, "project": 1234567, "keys": ["AAAAAAAAAAAA"], "take_over": "0123abcd"}
    inputs = platform(store=store).inputs("bucket")
    assert inputs["store"] == STORE
    assert inputs["fleet_id"] == FLEET.id
    asked = {key: inputs[key] for key in ("force_destroy", "project", "keys", "take_over")}
    assert asked == {"force_destroy": True, "project": "1234567", "keys": ["AAAAAAAAAAAA"], "take_over": "0123abcd"}
    assert inputs["programs"].keys() == {"caddy", "vmagent"}


def test_the_buckets_provider_is_kept_by_reference_alone() -> None:
    kept = platform().inputs("bucket")["__provider"]
    pickled = base64.b64decode(kept if isinstance(kept, str) else kept["value"])
    assert b"dynamic_providers.store.resource" in pickled
    assert len(pickled) < 120


def test_what_a_platform_gives_is_one_output_whose_keys_are_secret() -> None:
    exports = platform().exports
    assert {"fleet", "bucket", "unsupported"} <= exports.keys()
    fleet = exports["fleet"]
    assert {key for key, value in fleet.items() if is_secret(value)} == {"sign", "observe"}
    assert fleet["fleet_id"] == FLEET.id
    assert fleet["store"] == {"bucket": "gpu-inference-models", "location": "fsn1"}
    assert FLEET.sign not in json.dumps({key: value for key, value in fleet.items() if key != "sign"})


def test_where_metrics_go_is_given_to_the_stacks_and_nothing_where_there_is_none() -> None:
    assert "monitoring" not in platform().exports["fleet"]
    written = {"write_url": "https://m.example/api/v1/write", "ca_certificate": FLEET.ca_certificate}
    assert platform(monitoring=written).exports["fleet"]["monitoring"] == written


def test_what_the_server_refuses_is_a_warning_and_an_output(caplog: pytest.LogCaptureFixture) -> None:
    told = ["versioning: refused, NotImplemented"]
    assert platform(told).exports["unsupported"] == told
    assert "what is deleted by mistake cannot be had back; versioning: refused, NotImplemented" in caplog.text


def test_a_member_has_no_fleet_of_its_own_and_its_machine_is_of_the_platforms() -> None:
    engine = member()
    assert {name for name in engine.requests if name in ("fleet", "lease", "machine", "bucket")} == {"lease", "machine"}
    inputs = engine.inputs("machine")
    assert inputs["store"] == STORE
    assert (inputs["fleet_id"], inputs["ca_certificate"]) == (FLEET.id, FLEET.ca_certificate)
    assert engine.inputs("lease")["fleet_id"] == FLEET.id
    assert engine.exports["ca_certificate"] == FLEET.ca_certificate


def test_the_platforms_keys_are_secret_in_the_members_inputs() -> None:
    inputs = member().inputs("machine")
    assert is_secret(inputs["sign"])
    assert is_secret(inputs["observe"])
    assert inputs["sign"]["value"] == FLEET.sign


def test_a_members_model_is_looked_for_in_the_platforms_bucket(stores: list[str]) -> None:
    member()
    assert stores == ["team-models"]


@pytest.mark.parametrize(
    ("stacks", "told"),
    [
        pytest.param({}, "there is no stack 'team'; make it: pulumi stack init team", id="no-such-stack"),
        pytest.param({PLATFORM: {}}, "bring it up first: pulumi up -s team", id="not-up"),
        pytest.param({PLATFORM: {"fleet": KNOWN | {"sign": {}, "store": STORE}}}, "passphrase", id="other-passphrase"),
    ],
)
def test_a_platform_that_cannot_be_used_is_told_before_anything_is_declared(
    stacks: dict[str, dict[str, Any]], told: str
) -> None:
    engine = Engine({}, stacks)
    with pytest.raises(pulumi.RunError) as caught:
        run("gpu-on", engine, "store", platform="team")
    assert told in str(caught.value)
    assert "lease" not in engine.requests
