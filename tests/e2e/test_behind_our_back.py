"""Whoever has the official client, and what the commands that one types make of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamic_providers.lease.label import Phase
from dynamic_providers.vast.models import Instance
from tests.sandbox.official_client import OfficialClient, client_environment
from tests.sandbox.world import Plan, World

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

STACK = "gpu-on"
WORD = "somebody-elses"


class Desk:
    """A shell with `pulumi` in it, and another with `vastai`."""

    def __init__(self, world: World, client: OfficialClient) -> None:
        self.world, self._client = world, client

    def pulumi(self, kind: str) -> str:
        return self.world.run("pulumi", kind, "-y", "--skip-preview", "-s", STACK)

    def vastai(self, *words: object) -> str:
        said = self._client.run(*words)
        assert (said.status, said.err) == (0, ""), said
        return said.out

    def up(self) -> Instance:
        """Run `up`; return the machine that the state then names."""
        self.pulumi("up")
        named = self.world.run("pulumi", "stack", "output", "instance_id", "-s", STACK).strip()
        return next(instance for instance in self.instances() if str(instance.id) == named)

    def instances(self) -> list[Instance]:
        """Return what the market itself knows."""
        return [Instance.from_api(row) for row in self.world.market.instances]

    def rent(self, label: str) -> dict[str, Any]:
        """Rent what is cheap with the official client; return the market's row of it."""
        offers = [row for row in self.world.market.offers() if row["num_gpus"] == 1 and row["disk_space"] > 60]
        offer = min(offers, key=lambda row: row["dph_total"])["id"]
        before = {instance.id for instance in self.instances()}
        self.vastai("create", "instance", offer, "--image", "ubuntu:24.04", "--disk", 20, "--ssh", "--label", label)
        (rented,) = (row for row in self.world.market.instances if row["id"] not in before)
        return dict(rented)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder: Path = tmp_path_factory.mktemp("behind") / "s"
    home = tmp_path_factory.mktemp("home")
    with (
        World(Plan(folder, boot_seconds=0.5)) as world,
        OfficialClient(client_environment(home, world.market.url, world.market.api_key)) as client,
    ):
        client.run("show", "user")  # the first command of a home asks more than it was told to
        yield Desk(world, client)
        world.run("pulumi", "destroy", "-y", "--skip-preview", "-s", STACK)
        assert not world.market.instances


def test_a_machine_that_was_destroyed_is_missed_and_rented_again(desk: Desk) -> None:
    first = desk.up()
    desk.vastai("destroy", "instance", first.id, "-y")
    assert "1 deleted" in desk.pulumi("refresh")
    second = desk.up()
    assert [instance.id for instance in desk.instances()] == [second.id]
    assert second.id != first.id


def test_a_label_that_was_changed_is_put_back_with_the_same_end(desk: Desk) -> None:
    machine = desk.up()
    desk.vastai("label", "instance", machine.id, WORD)
    again = desk.up()
    assert (again.id, len(desk.instances())) == (machine.id, 1)
    before, after = machine.parsed, again.parsed
    assert before is not None
    assert after is not None
    assert (after.uid, after.fleet_id, after.phase) == (before.uid, before.fleet_id, Phase.READY)
    assert abs((after.expires_at - before.expires_at).total_seconds()) < 60
    assert "4 unchanged" in desk.pulumi("up")


def test_a_second_machine_goes_with_the_first_and_a_foreign_one_stays(desk: Desk) -> None:
    machine = desk.up()
    twin = desk.rent(str(machine.label))
    foreign = desk.rent(WORD)
    assert desk.up().id == machine.id
    since = len(desk.world.market.requests)
    desk.pulumi("destroy")
    assert [instance.id for instance in desk.instances()] == [foreign["id"]]
    assert desk.instances()[0].label == WORD
    asked = [request["path"] for request in desk.world.market.requests[since:]]
    assert any(str(twin["id"]) in path for path in asked)
    assert not any(str(foreign["id"]) in path for path in asked)
    desk.vastai("destroy", "instance", foreign["id"], "-y")
