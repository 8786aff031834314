"""What others do to our machines with the market's own client, and what the next command makes of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from dynamic_providers.lease.label import Phase, parse_label
from dynamic_providers.lease.policy import Action, decide
from dynamic_providers.vast import resource
from dynamic_providers.vast.offers import survey_offers
from tests.sandbox.clocks import PlayedClock
from tests.sandbox.official_client import OfficialClient, client_environment
from tests.sandbox.played import play_bootstrap
from tests.sandbox.stage import UID, Bucket, Machine, Stage, open_stage
from tests.sandbox.vast.hosts import FakeHosts

IMAGE = "vllm/vllm-openai:v0.32.0"
PAUSE_SECONDS = 5.0
"""Nobody types faster than the market lets him."""
GARBAGE = "gpu-on-demand/1/soon/ready"
WORD = "do-not-touch"


@dataclass
class Bystander:
    """Somebody with the same account and the official client."""

    stage: Stage
    client: OfficialClient

    def run(self, *words: object) -> str:
        self.stage.clock.sleep(PAUSE_SECONDS)
        said = self.client.run(*words)
        assert (said.status, said.err) == (0, ""), said
        self.stage.clock.sleep(PAUSE_SECONDS)
        return said.out

    def destroy(self, instance_id: int) -> None:
        self.run("destroy", "instance", instance_id, "-y")

    def label(self, instance_id: int, label: str) -> None:
        self.run("label", "instance", instance_id, label)

    def rent(self, label: str, *, disk_gb: int = 60) -> int:
        """Rent what our stack would take as well."""
        before = {instance.id for instance in self.stage.show()}
        offer = self.stage.world.client.search_offers(["RTX 4090"], disk_gb=60.0)
        fitting = survey_offers(offer, self.stage.request().plan).quotes
        order = ("--image", IMAGE, "--disk", disk_gb, "--ssh", "--direct", "--env", "-p 8443:8443", "--label", label)
        self.run("create", "instance", fitting[0].offer.id, *order)
        (rented,) = {instance.id for instance in self.stage.show()} - before
        return rented


@dataclass
class Engine:
    """One stack in the hands of an engine that refreshes before whatever it does."""

    stage: Stage
    machine: Machine | None = None

    def refresh(self) -> None:
        if self.machine is not None and self.machine.read() is None:
            self.machine = None

    def up(self) -> str:
        """Return what it did about the machine."""
        self.refresh()
        if self.machine is None:
            self.machine = self.stage.create()
            return "create"
        verdict = self.machine.verdict()
        if verdict == "update":
            self.machine.update(self.machine.request)
        elif verdict == "replace":
            self.machine.delete()
            self.machine = self.stage.create()
        return verdict

    def destroy(self) -> None:
        self.refresh()
        if self.machine is not None:
            self.machine.delete()
            self.machine = None
        resource.LeaseProvider().delete(UID, {"fleet_id": self.stage.fleet.id, "uid": UID})

    @property
    def there(self) -> set[int]:
        return {instance.id for instance in self.stage.show()}


@pytest.fixture(scope="module")
def bystander(bucket: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bystander]:
    home: Path = tmp_path_factory.mktemp("home")
    with (
        open_stage(bucket, FakeHosts(), PlayedClock(), boot_seconds=6.0) as stage,
        play_bootstrap(stage),
        OfficialClient(client_environment(home, stage.market.url, stage.market.api_key)) as client,
    ):
        client.run("show", "user")  # the first command of a home asks more than it was told to
        yield Bystander(stage, client)


@pytest.fixture
def engine(bystander: Bystander, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """Return a stack that is up; after the test nothing may be left of it."""
    stage = bystander.stage
    monkeypatch.setattr(resource._Provider, "_world", lambda _: stage.world)
    stage.said.clear()
    engine = Engine(stage)
    assert engine.up() == "create"
    yield engine
    for instance_id in engine.there:
        bystander.destroy(instance_id)


def id_of(engine: Engine) -> int:
    assert engine.machine is not None
    return engine.machine.id


# Destroyed


def test_what_was_destroyed_is_noticed_and_rented_again(engine: Engine, bystander: Bystander) -> None:
    before = id_of(engine)
    bystander.destroy(before)
    engine.refresh()
    assert engine.machine is None
    assert engine.up() == "create"
    assert engine.there == {id_of(engine)} != {before}
    assert engine.up() == "unchanged"
    engine.destroy()
    assert engine.there == set()


def test_what_was_destroyed_need_not_be_given_back(engine: Engine, bystander: Bystander) -> None:
    bystander.destroy(id_of(engine))
    machine = engine.machine
    engine.destroy()
    assert engine.there == set()
    assert machine is not None
    machine.delete()  # nor if nobody has looked before
    assert engine.there == set()


# The label


def cut_in_the_stack(label: str) -> str:
    return label[: label.rindex("/") + 2]


def cut_in_the_run(label: str) -> str:
    return label[: label.rindex("/") - 2]


def cut_in_the_uid(label: str) -> str:
    return label[: label.index(UID) + 5]


def of_another_fleet(label: str) -> str:
    parsed = parse_label(label)
    assert parsed is not None
    return label.replace(parsed.fleet_id, "c0ffee12")


def of_another_lease(label: str) -> str:
    return label.replace(UID, "ba9876543210")


SPOILT: dict[str, Callable[[str], str]] = {
    "garbage": lambda _: GARBAGE,
    "word": lambda _: WORD,
    "cut-in-the-uid": cut_in_the_uid,
    "another-fleet": of_another_fleet,
    "another-lease": of_another_lease,
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_label_that_was_spoilt_is_put_right(
    engine: Engine, bystander: Bystander, spoil: Callable[[str], str]
) -> None:
    assert engine.machine is not None
    before, label = id_of(engine), engine.machine.instance.parsed
    engine.stage.clock.sleep(3600)
    bystander.label(before, spoil(str(engine.machine.instance.label)))
    engine.refresh()
    assert engine.machine.outputs["is_ready"] is False
    assert engine.up() == "update"
    after = engine.machine.instance.parsed
    assert engine.there == {before}
    assert label is not None
    assert after is not None
    assert (after.fleet_id, after.uid, after.phase) == (label.fleet_id, label.uid, Phase.READY)
    assert abs(after.expires_at - label.expires_at) < timedelta(minutes=1)  # no lease begins anew by this
    assert engine.up() == "unchanged"
    engine.destroy()
    assert engine.there == set()


@pytest.mark.parametrize("spoil", [SPOILT["garbage"], SPOILT["word"]], ids=["garbage", "word"])
def test_a_machine_that_the_state_knows_goes_back_whatever_its_label(
    engine: Engine, bystander: Bystander, spoil: Callable[[str], str]
) -> None:
    assert engine.machine is not None
    bystander.label(id_of(engine), spoil(str(engine.machine.instance.label)))
    engine.destroy()
    assert engine.there == set()


@pytest.mark.parametrize("cut", [cut_in_the_stack, cut_in_the_run], ids=["stack", "run"])
def test_a_label_that_lost_its_tail_still_does(engine: Engine, bystander: Bystander, cut: Callable[[str], str]) -> None:
    assert engine.machine is not None
    before = id_of(engine)
    bystander.label(before, cut(str(engine.machine.instance.label)))
    assert engine.up() == "unchanged"
    engine.machine = None  # as if the state were lost: adopted
    assert engine.up() == "create"
    assert id_of(engine) == before
    engine.destroy()
    assert engine.there == set()


def test_a_machine_without_state_and_label_is_nobodys_to_end_before_its_time(
    engine: Engine, bystander: Bystander
) -> None:
    lost = id_of(engine)
    bystander.label(lost, GARBAGE)
    engine.machine = None
    assert engine.up() == "create"
    engine.destroy()
    assert engine.there == {lost}
    (instance,) = engine.stage.show()
    verdict = decide(instance, engine.stage.fleet.id, engine.stage.clock.now())
    assert (verdict.action, verdict.is_alarming) == (Action.KEEP, True)


# A second machine


def test_a_second_machine_with_our_label_goes_with_the_lease(engine: Engine, bystander: Bystander) -> None:
    assert engine.machine is not None
    first = id_of(engine)
    second = bystander.rent(str(engine.machine.instance.label))
    assert engine.up() == "unchanged"
    assert id_of(engine) == first
    assert engine.there == {first, second}
    engine.destroy()
    assert engine.there == set()


def test_of_two_machines_without_a_state_the_older_is_kept(engine: Engine, bystander: Bystander) -> None:
    assert engine.machine is not None
    first = id_of(engine)
    second = bystander.rent(str(engine.machine.instance.label))
    assert engine.there == {first, second}
    engine.machine = None
    assert engine.up() == "create"
    assert engine.there == {id_of(engine)} == {first}
    engine.destroy()


def test_a_second_machine_takes_the_place_of_one_that_was_destroyed(engine: Engine, bystander: Bystander) -> None:
    assert engine.machine is not None
    first = id_of(engine)
    second = bystander.rent(str(engine.machine.instance.label))
    bystander.destroy(first)
    assert engine.up() == "create"
    assert engine.there == {id_of(engine)} == {second}
    assert engine.up() == "unchanged"
    engine.destroy()
    assert engine.there == set()


def test_a_second_machine_that_is_not_what_is_asked_does_not(engine: Engine, bystander: Bystander) -> None:
    assert engine.machine is not None
    first = id_of(engine)
    second = bystander.rent(str(engine.machine.instance.label), disk_gb=40)
    bystander.destroy(first)
    assert engine.up() == "create"
    assert engine.there == {id_of(engine)}
    assert id_of(engine) not in {first, second}
    engine.destroy()


# A foreign one


@pytest.mark.parametrize("label", [WORD, "gpu-on-demandish/1"])
def test_a_foreign_machine_is_never_touched(engine: Engine, bystander: Bystander, label: str) -> None:
    foreign = bystander.rent(label)
    market = engine.stage.market
    since = len(market.requests)
    assert engine.up() == "unchanged"
    bystander.destroy(id_of(engine))
    assert engine.up() == "create"
    bystander.label(id_of(engine), GARBAGE)
    assert engine.up() == "update"
    engine.destroy()
    engine.machine = None
    assert engine.up() == "create"
    engine.destroy()
    assert engine.there == {foreign}
    asked = [request for request in market.requests[since:] if str(foreign) in request["path"]]
    assert asked == []
    (left,) = engine.stage.show()
    assert (left.label or "") == label
