"""The providers as Pulumi calls them: what a fleet and a lease draw, keep, refuse and sweep."""

import json
import re
from typing import Any

import httpx
import pytest

from dynamic_providers.errors import LeakError, StackError
from dynamic_providers.lease import keys
from dynamic_providers.lease.certificates import fleet_id
from dynamic_providers.vast.rent import World
from dynamic_providers.vast.resource import FleetProvider, LeaseProvider, how_to_ask
from tests.unit.builders import UID, FakeVast, a_label, an_instance_row, says

LEASE = {"fleet_id": "c0ffee12", "uid": UID}


class Account:
    """A market with some instances; those in `stubborn` are not destroyed, whatever is asked."""

    def __init__(self, *rows: dict[str, Any], stubborn: tuple[int, ...] = ()) -> None:
        self.rows = {row["id"]: row for row in rows}
        self.stubborn = stubborn
        self.vast = FakeVast(self.answer)

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/v1/instances/":
            return says(200, {"instances": list(self.rows.values()), "next_token": None})
        if request.method == "DELETE" and (id_ := int(request.url.path.split("/")[-2])) not in self.stubborn:
            self.rows.pop(id_, None)
        return says(200, {"success": True})

    def serve(self, monkeypatch: pytest.MonkeyPatch) -> None:
        world = World(self.vast.client, lambda _: None, self.vast.clock)
        monkeypatch.setattr("dynamic_providers.vast.resource._Provider._world", lambda _: world)


def test_a_fleet_draws_keys_of_its_own() -> None:
    made = [FleetProvider().create({"__provider": "kept"}) for _ in range(2)]
    first, second = (result.outs or {} for result in made)
    assert first["sign"] != second["sign"]
    assert re.fullmatch("[0-9a-f]{64}", first["sign"])
    assert first["observe"] == keys.observe_key(first["sign"])
    assert made[0].id == first["fleet_id"] == fleet_id(first["ca_certificate"])
    assert first["__provider"] == "kept"


def test_a_fleet_never_changes() -> None:
    assert FleetProvider().diff("c0ffee12", {"sign": "a"}, {"sign": "b"}).changes is False


@pytest.mark.parametrize(
    ("label", "goes"),
    [
        pytest.param(a_label().render(), False, id="a-machine-of-the-fleet"),
        pytest.param(a_label(uid="ffffffffffff").ready().render(), False, id="of-another-lease-of-it"),
        pytest.param(a_label(fleet_id="deadbeef").render(), True, id="of-another-fleet"),
        pytest.param("my-training", True, id="foreign"),
        pytest.param(None, True, id="no-label"),
    ],
)
def test_a_fleet_goes_only_after_its_last_machine(
    monkeypatch: pytest.MonkeyPatch, label: str | None, goes: bool
) -> None:
    account = Account(an_instance_row(id=9, label=label))
    account.serve(monkeypatch)
    if goes:
        FleetProvider().delete("c0ffee12", {})
    else:
        with pytest.raises(StackError, match="still has machines: 9"):
            FleetProvider().delete("c0ffee12", {})
    assert list(account.rows) == [9]


def test_a_lease_draws_a_uid_that_fits_the_label_and_calls_nobody() -> None:
    made = [LeaseProvider().create({"fleet_id": "c0ffee12"}) for _ in range(2)]
    assert made[0].id != made[1].id
    assert re.fullmatch("[0-9a-f]{12}", made[0].id)
    assert made[0].outs == {"fleet_id": "c0ffee12", "uid": made[0].id}


@pytest.mark.parametrize(("fleet", "replaces"), [("c0ffee12", []), ("deadbeef", ["fleet_id"])])
def test_another_fleet_is_another_lease(fleet: str, replaces: list[str]) -> None:
    found = LeaseProvider().diff(UID, LEASE, {"fleet_id": fleet})
    assert (found.changes, found.replaces) == (bool(replaces), replaces)


STRANGERS = [
    an_instance_row(id=1, label="my-training"),
    an_instance_row(id=2, label=a_label(fleet_id="deadbeef").render()),
    an_instance_row(id=3, label=a_label(uid="ffffffffffff").render()),
]


def test_the_end_of_a_lease_takes_back_what_the_engine_never_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = [an_instance_row(id=8), an_instance_row(id=9, label=a_label().ready().render())]
    account = Account(*STRANGERS, *mine)
    account.serve(monkeypatch)
    LeaseProvider().delete(UID, LEASE)
    assert list(account.rows) == [1, 2, 3]


def test_the_end_of_a_lease_without_machines_destroys_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    account = Account(*STRANGERS)
    account.serve(monkeypatch)
    LeaseProvider().delete(UID, LEASE)
    assert {request.method for request in account.vast.requests} == {"GET"}


def test_one_machine_that_cannot_be_ended_does_not_save_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    account = Account(an_instance_row(id=8), an_instance_row(id=9), stubborn=(8,))
    account.serve(monkeypatch)
    with pytest.raises(StackError, match="vastai destroy instance 8") as caught:
        LeaseProvider().delete(UID, LEASE)
    assert "INSTANCE 9" not in str(caught.value)
    assert list(account.rows) == [8]
    assert str(LeakError(8, "x")).splitlines()[1] in str(caught.value)


def test_the_line_that_asks_takes_its_secrets_from_pulumi_and_asks_for_the_model() -> None:
    line = how_to_ask("gpu-on", "llama-3.1-8b-instruct")
    assert "\n" not in line
    assert "$(pulumi stack output -s gpu-on --show-secrets client_token)" in line
    assert "<(pulumi stack output -s gpu-on ca_certificate)" in line
    body = json.loads(re.findall(r"-d '(.*?)'", line)[0])
    assert body["model"] == "llama-3.1-8b-instruct"


def test_a_model_that_embeds_is_asked_for_a_vector() -> None:
    line = how_to_ask("gpu-embed", "qwen3-embedding-4b", embeds=True)
    assert line.endswith('endpoint)/v1/embeddings"')
    body = json.loads(re.findall(r"-d '(.*?)'", line)[0])
    assert body.keys() == {"model", "input"}
