"""A team's metrics, from its stack files to Prometheus: a machine that `pulumi up` rented, with real vLLM on it."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from dynamic_providers.lease.monitoring import WriteTarget
from dynamic_providers.lease.register import NOT_PUSHED, PUSH_LABELS, find_metric
from dynamic_providers.store.binaries import VMAGENT, BinaryError, find_binary
from tests.e2e.receiver import Receiver, Series, wait_for
from tests.e2e.test_real_vllm import UP_LIMIT_SECONDS, client_of
from tests.sandbox.door_world import unix_get
from tests.sandbox.world import ROOT, Plan, World

pytestmark = [pytest.mark.real, pytest.mark.timeout(1500)]

UP = ("pulumi", "up", "-y", "--skip-preview", "-s")
RECORDED = ROOT / "tests/sandbox/data/vllm-0.32-metrics.txt"


@dataclass(frozen=True)
class Team:
    """A platform with a receiver of metrics, and one machine of it."""

    world: World
    receiver: Receiver
    outputs: dict[str, Any]

    @property
    def run(self) -> Path:
        """The machine's working directory."""
        return next((self.world.plan.folder / "hosts").glob("*/w/gpu-on-demand/run"))

    def labels(self) -> dict[str, str]:
        """Return what tells its metrics from those of other machines."""
        (machine,) = self.world.market.instances
        told: dict[str, str] = json.loads((self.run.parent / "bundle/agent/agent.json").read_text())
        return {
            "stack": "gpu-on",
            "model": self.outputs["model"],
            "instance_id": str(self.outputs["instance_id"]),
            "machine_id": str(machine["machine_id"]),
            "uid": told["uid"],
        }

    def page(self, job: str) -> set[Series]:
        """Return what is to arrive of a page, as it is on the machine itself just now."""
        socket, path = {"vllm": ("engine.sock", "/metrics"), "host": ("agent.sock", "/metrics/host")}[job]
        with unix_get(self.run / socket, path) as response:
            text = response.read().decode()
        labels = self.labels()
        shared = labels | {"job": job, "instance": labels["instance_id"]}
        return {
            frozenset(({"__name__": sample.name} | sample.labels | shared).items())
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name not in NOT_PUSHED and not sample.name.endswith("_created")
        }


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    try:
        find_binary(VMAGENT)
    except BinaryError as error:
        pytest.skip(f"needs vmagent: {error}")
    folder = tmp_path_factory.mktemp("receiver")
    with World(Plan(tmp_path_factory.mktemp("s"), real_vllm=True, boot_seconds=1)) as world:
        change(world, "gpu-on", "store", platform="platform")
        # The receiver lets in whom the fleet has signed for, and the fleet comes with the platform.
        world.run(*UP, "platform")
        fleet = json.loads(world.run("pulumi", "stack", "output", "--json", "-s", "platform"))["fleet"]
        with Receiver(folder, fleet["ca_certificate"]) as receiver:
            change(world, "platform", monitoring=receiver.target.to_props())
            world.run(*UP, "platform")
            world.run(*UP, "gpu-on", limit_seconds=UP_LIMIT_SECONDS)
            said = world.run("pulumi", "stack", "output", "--json", "--show-secrets", "-s", "gpu-on")
            yield Team(world, receiver, json.loads(said))
            world.run("pulumi", "destroy", "-y", "--skip-preview", "-s", "gpu-on")


def change(world: World, stack: str, *without: str, **change: Any) -> None:
    """Edit a stack file."""
    path = world.project / "stacks" / f"Pulumi.{stack}.yaml"
    document = yaml.safe_load(path.read_text())
    for key in without:
        del document["config"][f"gpu-on-demand:{key}"]
    document["config"] |= {f"gpu-on-demand:{key}": value for key, value in change.items()}
    path.write_text(yaml.safe_dump(document, sort_keys=False))


def names(series: set[Series]) -> set[str]:
    return {dict(one)["__name__"] for one in series}


def test_every_series_of_the_machine_reaches_the_receiver(team: Team, capsys: pytest.CaptureFixture[str]) -> None:
    with client_of(team.outputs) as client:
        client.completions.create(model=team.outputs["model"], prompt="hello world", max_tokens=8)
    # At the agent's next look; then all that the machine will ever tell is on its pages.
    wait_for(lambda: "vast_instance_last_request_timestamp_seconds" in names(team.page("host")), "the request is seen")
    asked = time.monotonic()
    wanted = {job: team.page(job) for job in ("vllm", "host")}
    wait_for(lambda: set[Series]().union(*wanted.values()) <= team.receiver.series(), "every series")
    took = time.monotonic() - asked
    assert all(len(page) > 20 for page in wanted.values())
    with capsys.disabled():  # a figure that the project promises: 30 s on a machine with nothing else to do
        print(f"\n{len(wanted['vllm'])} series of vLLM, {len(wanted['host'])} of the machine: there after {took:.1f} s")


def test_what_arrives_is_named_as_recorded_and_as_the_register_has_it(team: Team) -> None:
    every = team.receiver.series()
    assert {name for name in names(every) if find_metric(name) is None} == set()
    recorded = {
        sample.name for family in text_string_to_metric_families(RECORDED.read_text()) for sample in family.samples
    }
    assert recorded - names(every) == set(NOT_PUSHED)
    assert {
        "vast_instance_cost_per_hour",
        "vast_instance_provisioning_duration_seconds",
        "vast_instance_last_request_timestamp_seconds",
        "vast_instance_ssh_timeout_seconds",
        "vast_instance_expires_timestamp_seconds",
        "gpu_idle_time_seconds",
        "cold_start_latency_seconds",
    } <= names(every)
    for one in map(dict, every):
        assert {label: one[label] for label in PUSH_LABELS} == team.labels()


def test_both_pages_are_read_through_the_front_door(team: Team) -> None:
    for job in ("vllm", "host"):
        assert team.receiver.values(f'up{{job="{job}"}}')[-1] == 1


def test_a_platform_gives_its_receiver_to_its_stacks(team: Team) -> None:
    fleet = json.loads(team.world.run("pulumi", "stack", "output", "--json", "-s", "platform"))["fleet"]
    assert WriteTarget.from_props(fleet["monitoring"]) == team.receiver.target
