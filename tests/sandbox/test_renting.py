"""From a need to a machine that serves, and every way in which that fails; with a played bootstrap."""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pulumi.dynamic import Config, ConfigureRequest

from dynamic_providers.errors import (
    AccountError,
    BootError,
    BootstrapError,
    ConfigError,
    LeakError,
    NoOfferError,
    RefusedError,
    StackError,
    StoreError,
    UnavailableError,
)
from dynamic_providers.lease.label import Phase
from dynamic_providers.store.client import Store
from dynamic_providers.vast import lifecycle, resource
from dynamic_providers.vast.rent import rent
from dynamic_providers.vast.request import MachineRequest
from tests.sandbox.played import Played
from tests.sandbox.stage import Stage, assert_receipts_equal_the_ledger

pytestmark = pytest.mark.usefixtures("played")


@pytest.fixture
def stage(played_stage: Stage) -> Stage:
    return played_stage


def offers_asked(stage: Stage) -> list[str]:
    """Return the offers that were asked for, in order."""
    return [request["path"].rstrip("/").rpartition("/")[2] for request in stage.rents]


def offers_told(stage: Stage) -> list[str]:
    """Return the offers in the order in which the table showed them."""
    return [match[1] for line in stage.said if (match := re.match(r" +(\d{8}) +\d+ +1 × ", line))]


def machines_of(stage: Stage) -> list[int]:
    """Return on which machines something was rented, in order."""
    return [row["machine_id"] for row in stage.market.ledger()["instances"]]


# From nothing to a served machine, with and without obstacles


def test_create_rents_the_best_offer_and_brings_it_up(stage: Stage, played: Played) -> None:
    machine = stage.create()
    row = machine.instance
    assert offers_asked(stage) == offers_told(stage)[:1]
    assert machine.outputs["instance_id"] == str(row.id)
    assert machine.outputs["endpoint"] == f"https://{row.address}:{row.door_port}"
    assert machine.outputs["usd_per_hour"] == pytest.approx(row.usd_per_hour, abs=1e-6)
    assert machine.outputs["attempts"] == 1
    assert list(machine.outputs["phases"]) == ["scheduled", "image", "ssh", "weights", "engine", "first token"]
    assert machine.outputs["phases"]["image"] >= 5
    assert [engine.served_name for _, engine in played.applied] == ["tiny"]
    assert machine.phase is Phase.READY
    assert row.parsed
    assert row.parsed.expires_at.isoformat() == machine.outputs["expires_at"]
    assert row.parsed.expires_at - row.started_at == pytest.approx(timedelta(hours=8), abs=timedelta(seconds=2))
    assert machine.verdict() == "unchanged"
    machine.delete()


def test_the_rent_waits_for_nothing_and_leaves_nothing_to_chance(stage: Stage) -> None:
    stage.create().delete()
    (body,) = (request["body"] for request in stage.rents)
    assert body["cancel_unavail"] is True
    assert body["price"] is None
    assert body["disk"] == 60
    assert body["env"] == {"-p 8443:8443": "1"}
    assert body["runtype"] == "ssh_direct"
    assert len(body["onstart"]) <= 4048


@pytest.mark.parametrize(
    ("faults", "asked", "rented"),
    [
        pytest.param([{"kind": "offer_taken"}], 2, 1, id="offer-taken"),
        pytest.param([{"kind": "offer_taken", "times": 3}], 4, 1, id="three-offers-taken"),
        pytest.param([{"kind": "reply_lost", "on": "create"}], 1, 1, id="reply-lost-after-the-rent"),
        pytest.param([{"kind": "request_lost", "on": "create"}], 2, 1, id="reply-lost-before-the-rent"),
        pytest.param([{"kind": "unavailable", "on": "create"}], 2, 1, id="502-to-the-rent"),
        pytest.param([{"kind": "boot_hangs"}], 2, 2, id="boot-hangs"),
        pytest.param([{"kind": "wrong_gpu", "where": "row"}], 2, 2, id="wrong-gpu-in-the-row"),
        pytest.param([{"kind": "wrong_gpu", "where": "machine"}], 2, 2, id="wrong-gpu-on-the-machine"),
        pytest.param([{"kind": "boot_hangs"}, {"kind": "destroy_fails", "times": 2}], 2, 2, id="destroy-three-times"),
        pytest.param([{"kind": "boot_hangs"}, {"kind": "reply_lost", "on": "destroy"}], 2, 2, id="destroy-unanswered"),
        pytest.param([{"kind": "reply_lost", "on": "change", "times": 2}], 1, 1, id="relabel-unanswered"),
        pytest.param([{"kind": "reply_lost", "on": "attach_key"}], 1, 1, id="key-unanswered"),
        pytest.param([{"kind": "unavailable", "on": "search", "times": 3}], 1, 1, id="search-unavailable"),
        pytest.param([{"kind": "unavailable", "on": "list", "times": 3}], 1, 1, id="list-unavailable"),
        pytest.param([{"kind": "unavailable", "on": "show", "times": 3}], 1, 1, id="show-unavailable"),
    ],
)
def test_a_fault_on_the_way_ends_with_one_right_machine(
    stage: Stage, played: Played, faults: list[dict[str, Any]], asked: int, rented: int
) -> None:
    for fault in faults:
        stage.market.fail(**fault)
    machine = stage.create(stage.request(boot_minutes=3.0))
    assert [instance.id for instance in stage.show()] == [machine.id]
    assert (len(stage.rents), len(set(machines_of(stage)))) == (asked, rented)
    assert machine.outputs["attempts"] == rented
    assert [address for address, _ in played.applied] == [machine.instance.address]
    assert machine.phase is Phase.READY
    machine.delete()
    assert_receipts_equal_the_ledger(stage)


def test_a_host_that_hangs_is_given_its_deadline_and_no_more(stage: Stage) -> None:
    stage.market.fail("boot_hangs")
    stage.create(stage.request(boot_minutes=4.0)).delete()
    hung, _ = stage.market.ledger()["instances"]
    assert hung["to"] - hung["from"] == pytest.approx(0.6 * 4 * 60, abs=30)
    assert "still loading" in "\n".join(stage.said)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        pytest.param({"kind": "boot_hangs"}, "none of 3 machines came up; the last one: image: ", id="boot-hangs"),
        pytest.param({"kind": "wrong_gpu"}, "none of 3 machines came up; .* not what was asked", id="wrong-gpu"),
    ],
)
def test_when_every_attempt_fails_the_error_is_clear_and_nothing_is_left(
    stage: Stage, fault: dict[str, Any], said: str
) -> None:
    stage.market.fail(**fault, times=3)
    with pytest.raises(BootError, match=said) as caught:
        stage.create(stage.request(boot_minutes=3.0))
    assert "lease.attempts" in str(caught.value)
    assert not stage.show()
    assert len(set(machines_of(stage))) == 3
    assert_receipts_equal_the_ledger(stage)


def test_machines_that_let_us_down_are_not_asked_again_even_when_no_other_fits(stage: Stage) -> None:
    stage.market.fail("boot_hangs", times=10)
    with pytest.raises(NoOfferError, match=r"(?s)let us down before.*before that: image: ") as caught:
        stage.create(stage.request(attempts=10, boot_minutes=3.0))
    tried = machines_of(stage)
    assert len(set(tried)) == len(tried) > 3
    assert caught.value.turned_away["let us down before"] >= len(tried)


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(BootstrapError("engine", "vLLM ended at its start"), id="does-not-run"),
        pytest.param(KeyboardInterrupt(), id="ctrl-c"),
        pytest.param(RuntimeError("a bug"), id="bug"),
    ],
)
def test_whatever_breaks_the_bootstrap_gives_the_machine_back(
    stage: Stage, played: Played, error: BaseException
) -> None:
    played.failures = [error]
    with pytest.raises(type(error)):
        stage.create()
    assert len(machines_of(stage)) == 1
    assert not stage.show()


def test_a_refusal_that_rented_all_the_same_is_given_back(stage: Stage) -> None:
    stage.market.fail("refused_but_rented")
    with pytest.raises(RefusedError, match="invalid_price") as caught:
        stage.create()
    assert caught.value.new_contract in {row["id"] for row in stage.market.ledger()["instances"]}
    assert not stage.show()


def test_an_instance_that_cannot_be_ended_is_a_leak_that_says_what_to_do(stage: Stage) -> None:
    stage.market.fail("boot_hangs")
    stage.market.fail("destroy_fails", times=10_000)
    with pytest.raises(LeakError) as caught:
        stage.create(stage.request(boot_minutes=3.0))
    (left,) = stage.show()
    assert f"vastai destroy instance {left.id}" in str(caught.value)
    assert len(stage.rents) == 1, "no second machine while the first may bill"
    stage.tell_market(f"instances/{left.id}", do="forget")


# Refused before any money


def wrong_key(stage: Stage) -> None:
    stage.world.client._http.headers["Authorization"] = "Bearer wrong"


def no_credit(stage: Stage) -> None:
    stage.tell_market("account", credit=0)


def nothing(stage: Stage) -> None:
    """Leave everything as it is."""


@pytest.mark.parametrize(
    ("prepare", "change", "error", "said"),
    [
        pytest.param(wrong_key, {}, AccountError, "set VAST_API_KEY", id="wrong-key"),
        pytest.param(no_credit, {}, AccountError, r"(?s)0.00 USD of credit.*add credit under Billing", id="no-credit"),
        pytest.param(
            nothing, {"max_usd_per_hour": 0.05}, NoOfferError, r"(?s)max_usd_per_hour 75.*loosen", id="too-dear"
        ),
        pytest.param(nothing, {"gpus": ("B200",)}, NoOfferError, "the market shows no 1 × B200", id="no-such-gpu"),
        pytest.param(
            nothing,
            {"release": "lost"},
            StoreError,
            "(?s)lost model.safetensors of lost@.*gpu models push",
            id="blob-missing",
        ),
        pytest.param(
            nothing,
            {"release": "pickled"},
            StoreError,
            "(?s)pickled@sha256.* is not served:.*pytorch_model.bin.*--allow-pickle",
            id="pickled-weights",
        ),
    ],
)
def test_what_cannot_be_served_fails_before_anything_is_rented(
    stage: Stage,
    prepare: Callable[[Stage], None],
    change: dict[str, Any],
    error: type[StackError],
    said: str,
) -> None:
    prepare(stage)
    with pytest.raises(error, match=said) as caught:
        stage.create(stage.request(**change))
    assert not stage.rents
    assert len(str(caught.value).splitlines()) < 10


@pytest.mark.parametrize(
    ("name", "release", "endpoint", "said"),
    [
        pytest.param("gpu-inference-models", "tinny", "", "no model 'tinny'.*did you mean 'tiny'", id="model"),
        pytest.param("gpu-inference-models", f"tiny@sha256:{'0' * 64}", "", "no release sha256:0000", id="release"),
        pytest.param("another-bucket", "tiny", "", "no bucket 'another-bucket'", id="bucket"),
        pytest.param("gpu-inference-models", "tiny", "https://127.0.0.1:9", "no answer from", id="unreachable"),
    ],
)
def test_a_model_that_is_not_in_the_bucket_fails_before_anything_is_rented(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, name: str, release: str, endpoint: str, said: str
) -> None:
    for variable, value in stage.bucket.storage.environment.items():
        monkeypatch.setenv(variable, value)
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    asked = stage.request()
    asked = replace(asked, model=replace(asked.model, release=release))
    with pytest.raises(StoreError, match=said):
        lifecycle.create(stage.world, Store(name), asked)
    assert not stage.market.requests


def test_without_a_key_the_message_says_where_to_get_one(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAST_URL", stage.market.url)
    monkeypatch.delenv("VAST_API_KEY", raising=False)
    provider = resource.VastInstanceProvider()
    provider.configure(ConfigureRequest(Config({}, "gpu-on-demand")))
    with pytest.raises(ConfigError, match=r"export VAST_API_KEY=.*\(https://cloud.vast.ai/manage-keys/\)"):
        provider.create(stage.request().to_props())
    assert not stage.market.requests


# Adoption


def test_a_second_create_adopts_the_first(stage: Stage, played: Played) -> None:
    first = stage.create()
    stage.clock.sleep(600)
    second = stage.create()
    assert (second.id, len(stage.rents)) == (first.id, 1)
    kept = ("endpoint", "client_token", "tokens", "expires_at", "applied", "ssh_host_key", "usd_per_hour")
    assert [first.outputs[key] for key in kept] == [second.outputs[key] for key in kept]
    assert second.phase is Phase.READY
    second.delete()


def test_a_machine_that_was_rented_and_no_more_is_adopted(stage: Stage) -> None:
    rented = rent(stage.world, stage.request(), "").instance_id
    machine = stage.create()
    assert (machine.id, len(stage.rents), machine.phase) == (rented, 1, Phase.READY)
    machine.delete()


@pytest.mark.parametrize(
    ("hours", "minutes"),
    [pytest.param(8.0, 15, id="same"), pytest.param(12.0, 30, id="longer"), pytest.param(4.0, 5, id="shorter")],
)
def test_an_adopted_machine_gets_the_terms_that_are_asked_now(stage: Stage, hours: float, minutes: int) -> None:
    rental = rent(stage.world, stage.request(), "")
    stage.clock.sleep(600)
    machine = stage.create(stage.request(max_hours=hours, idle_minutes=minutes))
    label = machine.instance.parsed
    assert label
    assert abs(label.expires_at - rental.label.expires_at - timedelta(hours=hours - 8)) <= timedelta(seconds=2)
    assert label.idle_minutes == minutes
    assert machine.outputs["expires_at"] == label.expires_at.isoformat()
    machine.delete()


@pytest.mark.parametrize(
    ("ready", "kept"),
    [
        pytest.param((False, False), 0, id="oldest"),
        pytest.param((False, True), 1, id="ready-before-oldest"),
        pytest.param((True, True), 0, id="oldest-of-the-ready"),
    ],
)
def test_of_twins_one_stays(stage: Stage, ready: tuple[bool, bool], kept: int) -> None:
    twins = []
    for is_ready in ready:
        twin = rent(stage.world, stage.request(), "")
        stage.clock.sleep(60)
        if is_ready:
            stage.world.market.relabel(twin.instance_id, twin.label.ready().render())
        twins.append(twin.instance_id)
    machine = stage.create()
    assert machine.id == twins[kept]
    assert [instance.id for instance in stage.show()] == [machine.id]
    assert len(stage.rents) == 2
    machine.delete()
    assert_receipts_equal_the_ledger(stage)


def stop_it(stage: Stage, instance_id: int) -> MachineRequest:
    stage.tell_market(f"instances/{instance_id}", do="stop")
    return stage.request()


def let_its_lease_end(stage: Stage, instance_id: int) -> MachineRequest:
    stage.clock.sleep(9 * 3600)
    return stage.request()


def ask_for_more_disk(stage: Stage, instance_id: int) -> MachineRequest:
    return stage.request(disk_gb=80.0)


@pytest.mark.parametrize("change", [stop_it, let_its_lease_end, ask_for_more_disk], ids=lambda change: change.__name__)
def test_a_machine_of_this_lease_that_will_not_do_is_given_back_first(
    stage: Stage, change: Callable[[Stage, int], MachineRequest]
) -> None:
    former = rent(stage.world, stage.request(), "").instance_id
    machine = stage.create(change(stage, former))
    gone, now = stage.market.ledger()["instances"]
    assert (gone["id"], now["id"]) == (former, machine.id)
    assert gone["to"] <= now["from"]
    machine.delete()


def test_a_create_that_the_market_cannot_list_for_rents_nothing(stage: Stage) -> None:
    stage.market.fail("unavailable", on="list", times=6)
    with pytest.raises(UnavailableError):
        stage.create()
    assert not stage.rents


def test_when_nobody_can_say_whether_something_was_rented_the_error_does(stage: Stage) -> None:
    stage.market.fail("reply_lost", on="create")
    stage.market.fail("unavailable", on="list", times=6)
    calls = len(stage.calls("GET", "/api/v1/instances"))
    with pytest.raises(UnavailableError, match="`pulumi up` adopts it, `pulumi destroy` ends it"):
        rent(stage.world, stage.request(), "")
    assert len(stage.calls("GET", "/api/v1/instances")) - calls == 6
    machine = stage.create()
    assert len(stage.rents) == 1
    machine.delete()
