"""What becomes of a machine that serves: changes, refreshes, its end, and its neighbours; with a played bootstrap."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from bootstrap import ready
from dynamic_providers.errors import BootError, BootstrapError, StackError, StoreError, UnavailableError
from dynamic_providers.lease.label import Phase
from dynamic_providers.vast import lifecycle, resource
from dynamic_providers.vast.rent import rent
from tests.sandbox.played import Played
from tests.sandbox.stage import UID, Stage, assert_receipts_equal_the_ledger

pytestmark = pytest.mark.usefixtures("played")


@pytest.fixture
def stage(played_stage: Stage) -> Stage:
    return played_stage


# The same machine later


def test_a_moving_market_changes_nothing(stage: Stage) -> None:
    machine = stage.create()
    stage.tell_market("reshuffle")
    before = dict(machine.outputs)
    assert machine.read() == before
    assert machine.verdict() == "unchanged"
    machine.delete()


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        pytest.param({}, "unchanged", id="nothing"),
        pytest.param({"release": "other"}, "update", id="model"),
        pytest.param({"vllm_args": ("--enable-prefix-caching",)}, "update", id="vllm_args"),
        pytest.param({"clients": ("default", "ci")}, "update", id="clients"),
        pytest.param({"max_hours": 9.0}, "update", id="max_hours"),
        pytest.param({"idle_minutes": 30}, "update", id="idle_minutes"),
        pytest.param({"attempts": 5, "boot_minutes": 30.0}, "unchanged", id="how-to-boot"),
        pytest.param({"max_usd_per_hour": 0.6}, "replace", id="need"),
        pytest.param({"disk_gb": 80.0}, "replace", id="disk"),
        pytest.param({"image": "vllm/vllm-openai:v0.33.0"}, "replace", id="image"),
        pytest.param({"uid": "ba9876543210"}, "replace", id="lease"),
    ],
)
def test_what_a_change_of_the_stack_file_means(stage: Stage, change: dict[str, Any], verdict: str) -> None:
    machine = stage.create()
    assert machine.verdict(stage.request(**change)) == verdict
    machine.delete()


@pytest.mark.parametrize(
    ("hours", "minutes"),
    [pytest.param(12.0, 15, id="longer"), pytest.param(4.0, 15, id="shorter"), pytest.param(8.0, 45, id="idle-limit")],
)
def test_other_terms_are_written_into_the_label(stage: Stage, hours: float, minutes: int) -> None:
    machine = stage.create()
    before = machine.instance.parsed
    stage.clock.sleep(1800)
    machine.update(stage.request(max_hours=hours, idle_minutes=minutes))
    after = machine.instance.parsed
    assert before
    assert after
    assert after.expires_at - before.expires_at == timedelta(hours=hours - 8)
    assert (after.phase, after.idle_minutes) == (Phase.READY, minutes)
    assert machine.outputs["expires_at"] == after.expires_at.isoformat()
    assert machine.verdict() == "unchanged"
    machine.delete()


def test_an_update_that_fails_puts_the_former_settings_back(stage: Stage, played: Played) -> None:
    machine = stage.create()
    label = machine.instance.parsed
    played.failures = [BootstrapError("engine", "vLLM ended at its start")]
    with pytest.raises(BootstrapError, match="vLLM ended"):
        machine.update(stage.request("other", max_hours=24.0, idle_minutes=60))
    assert [engine.served_name for _, engine in played.applied] == ["tiny", "other", "tiny"]
    after = machine.instance.parsed
    assert label
    assert after
    assert (after.expires_at, after.idle_minutes, after.phase) == (label.expires_at, label.idle_minutes, Phase.READY)
    assert machine.read()
    assert machine.verdict() == "unchanged"
    assert "the former settings serve again" in stage.said
    machine.delete()


def test_an_update_on_a_host_that_vanishes_destroys_nothing_and_says_what_to_do(stage: Stage, played: Played) -> None:
    machine = stage.create()
    gone = BootError("ssh", "the connection broke twice")
    played.failures = [gone, gone]
    with pytest.raises(BootstrapError, match=r"(?s)do not come back either.*pulumi up.*pulumi destroy"):
        machine.update(stage.request("other"))
    assert [instance.id for instance in stage.show()] == [machine.id]
    machine.delete()


def test_an_update_to_a_release_that_is_not_there_touches_nothing(stage: Stage, played: Played) -> None:
    machine = stage.create()
    label = machine.instance.label
    with pytest.raises(StoreError, match="lost"):
        machine.update(stage.request("lost"))
    assert machine.instance.label == label
    assert len(played.applied) == 1
    machine.delete()


def test_a_machine_that_the_market_stopped_is_replaced_old_one_first(stage: Stage) -> None:
    machine = stage.create()
    stage.tell_market(f"instances/{machine.id}", do="stop")
    found = machine.read()
    assert found
    assert found["is_stopped"]
    assert machine.verdict() == "replace"
    machine.delete()
    successor = stage.create()
    gone, now = stage.market.ledger()["instances"]
    assert gone["to"] <= now["from"]
    assert successor.verdict() == "unchanged"
    successor.delete()
    assert_receipts_equal_the_ledger(stage)


def test_a_stopped_machine_is_not_updated(stage: Stage) -> None:
    machine = stage.create()
    stage.tell_market(f"instances/{machine.id}", do="stop")
    with pytest.raises(BootError, match="does not run now"):
        machine.update(stage.request("other"))
    machine.delete()


def test_a_machine_that_the_market_forgot_is_gone(stage: Stage) -> None:
    machine = stage.create()
    stage.tell_market(f"instances/{machine.id}", do="forget")
    assert machine.read() is None
    machine.delete()
    assert f"instance {machine.id} is destroyed, billing stopped" in stage.said[-1]


@pytest.mark.parametrize("call", ["show", "list"])
def test_a_market_that_does_not_answer_is_unknown_and_not_gone(stage: Stage, call: str) -> None:
    machine = stage.create()
    if call == "list":
        stage.tell_market(f"instances/{machine.id}", do="forget")
    stage.market.fail("unavailable", on=call, times=6)
    with pytest.raises(UnavailableError):
        machine.read()
    machine.delete()


def reports(state: dict[str, Any] | None) -> Callable[..., Awaitable[dict[str, Any] | None]]:
    async def ask(*_: object, **__: object) -> dict[str, Any] | None:
        return state

    return ask


def test_a_machine_whose_state_cannot_be_asked_is_left_as_it_is(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = stage.create()
    before = dict(machine.outputs)
    monkeypatch.setattr(ready.Control, "_ask", reports(None))
    assert machine.read() == before
    machine.delete()


def test_a_machine_that_reports_other_settings_is_updated(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = stage.create()
    monkeypatch.setattr(ready.Control, "_ask", reports({"settings": None, "in_flight": 0}))
    assert machine.read()
    assert machine.verdict() == "update"
    machine.delete()


def test_a_machine_that_has_no_ports_yet_can_be_given_back(stage: Stage) -> None:
    rental = rent(stage.world, stage.request(), "")
    stage.clock.sleep(6.1)
    (instance,) = stage.show()
    assert (instance.status, dict(instance.ports)) == ("running", {})
    lifecycle.delete(stage.world, rental.instance_id, stage.request())
    assert not stage.show()


def test_two_deletes_are_as_good_as_one(stage: Stage) -> None:
    machine = stage.create()
    machine.delete()
    machine.delete()
    assert not stage.show()


# What is not ours, and what nobody knows of

FOREIGN = "somebody-elses"


@pytest.fixture
def provider(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the resources work in this world."""
    monkeypatch.setattr(resource._Provider, "_world", lambda _: stage.world)


@pytest.mark.usefixtures("provider")
def test_what_belongs_to_others_is_never_touched(stage: Stage) -> None:
    others = {
        rent(stage.world, stage.request(uid="ba9876543210"), "").instance_id,
        rent(stage.world, stage.request(fleet=replace(stage.fleet, id="c0ffee12")), "").instance_id,
        rent(stage.world, stage.request(), "").instance_id,
    }
    foreign = max(others)
    stage.world.market.relabel(foreign, FOREIGN)
    machine = stage.create()
    machine.update(stage.request("other"))
    stage.create()
    machine.delete()
    resource.LeaseProvider().delete(UID, {"fleet_id": stage.fleet.id, "uid": UID})
    assert {instance.id for instance in stage.show()} == others
    touched = [r for r in stage.market.requests if r["method"] in ("PUT", "POST", "DELETE") and FOREIGN not in str(r)]
    assert not [r["path"] for r in touched if any(str(other) in r["path"] for other in others)]
    for other in others:
        stage.world.market.destroy(other)


@pytest.mark.usefixtures("provider")
def test_the_end_of_a_lease_sweeps_what_no_state_knows(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    unknown = {rent(stage.world, stage.request(), "").instance_id for _ in range(2)}
    resource.LeaseProvider().delete(UID, {"fleet_id": stage.fleet.id, "uid": UID})
    assert not stage.show()
    said = capsys.readouterr().err
    assert all(f"instance {id_} of this lease is in no state" in said for id_ in unknown)
    assert_receipts_equal_the_ledger(stage)


@pytest.mark.usefixtures("provider")
def test_a_fleet_does_not_go_before_its_last_machine(stage: Stage) -> None:
    rental = rent(stage.world, stage.request(uid="ba9876543210"), "")
    fleet = resource.FleetProvider()
    with pytest.raises(StackError, match=f"still has machines: {rental.instance_id}"):
        fleet.delete(stage.fleet.id, {})
    stage.world.market.destroy(rental.instance_id)
    fleet.delete(stage.fleet.id, {})
