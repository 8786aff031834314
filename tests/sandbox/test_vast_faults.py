"""The played market fails as the real one does, as often as it is told to, and then works again."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import asyncssh
import httpx
import pytest

from tests.sandbox.hosts.backend import SshHosts
from tests.sandbox.market_client import BOOT, GOOD_OFFER, ORDER, Market, open_market, refusal
from tests.sandbox.vast.billing import IMAGE_GB
from tests.sandbox.vast.faults import KINDS
from tests.sandbox.vast.hosts import SOUND, FakeHosts
from tests.sandbox.vast.quirks import Quirks

BID_OFFER = {**GOOD_OFFER, "type": "bid"}


@pytest.fixture
def market() -> Iterator[Market]:
    with open_market() as opened:
        yield opened


def instance_path(instance_id: int) -> str:
    return f"/api/v0/instances/{instance_id}/"


def fake_hosts(market: Market) -> FakeHosts:
    assert isinstance(market.emulator.hosts, FakeHosts)
    return market.emulator.hosts


def try_to_rent(market: Market, **order: Any) -> httpx.Response:
    offer_id = market.search(**GOOD_OFFER)[0]["id"]
    return market.http.put(f"/api/v0/asks/{offer_id}/", json=ORDER | order)


# Faults of a call


@pytest.mark.parametrize(
    ("fault", "status", "kind", "said"),
    [
        pytest.param({"status": 500}, 500, "application/json", "internal_error", id="500"),
        pytest.param({"status": 502}, 502, "text/html", "502 Bad Gateway", id="502"),
        pytest.param({"status": 503}, 503, "text/html", "503 Service", id="503"),
    ],
)
@pytest.mark.parametrize("where", ["before", "after"])
def test_a_server_error_before_does_nothing_and_one_after_has_done_it(
    market: Market, where: str, fault: dict[str, Any], status: int, kind: str, said: str
) -> None:
    market.emulator.fail("server_error", on="create", where=where, **fault)
    response = try_to_rent(market)
    assert (response.status_code, response.headers["Content-Type"].split(";")[0]) == (status, kind)
    assert said in response.text
    assert len(market.emulator.instances) == (where == "after")
    assert try_to_rent(market).status_code == 200


@pytest.mark.parametrize(
    ("on", "method", "path", "body"),
    [
        pytest.param("search", "POST", "/api/v0/bundles/", {}, id="search"),
        pytest.param("list", "GET", "/api/v1/instances/", None, id="list"),
        pytest.param("show", "GET", "/api/v0/instances/{}/", None, id="show"),
        pytest.param("label", "PUT", "/api/v0/instances/{}/", {"label": "x"}, id="label"),
        pytest.param("state", "PUT", "/api/v0/instances/{}/", {"state": "stopped"}, id="state"),
        pytest.param("attach", "POST", "/api/v0/instances/{}/ssh/", {"ssh_key": "ssh-ed25519 AAAA"}, id="attach"),
        pytest.param("destroy", "DELETE", "/api/v0/instances/{}/", {}, id="destroy"),
    ],
)
def test_a_fault_strikes_the_call_that_on_names_as_often_as_times_says(
    market: Market, on: str, method: str, path: str, body: Any
) -> None:
    instance_id = market.rent()
    market.emulator.fail("server_error", on=on, times=2, status=503)
    # A change of the label is no change of the state, and the other way round.
    other = {"label": {"state": "running"}}.get(on, {"label": "y"})
    market.call("PUT", instance_path(instance_id), other)
    statuses = [market.http.request(method, path.format(instance_id), json=body).status_code for _ in range(3)]
    assert statuses == [503, 503, 200]
    assert market.call("GET", "/sandbox/faults")["armed"] == []


@pytest.mark.parametrize(
    ("form", "body"),
    [
        pytest.param("text", "API requests too frequent", id="text"),
        pytest.param("detail", '{"detail": "API requests too frequent"}', id="detail"),
        pytest.param("json", '{"success": false, "error": "rate_limit_exceeded", "msg": "API requests', id="json"),
    ],
)
def test_a_429_comes_in_three_forms_and_may_say_when_to_come_back(market: Market, form: str, body: str) -> None:
    market.emulator.fail("rate_limited", on="list", form=form)
    market.emulator.fail("rate_limited", on="list", form=form, retry_after=2)
    first, second = (market.http.get("/api/v1/instances/") for _ in range(2))
    assert (first.status_code, "Retry-After" in first.headers) == (429, False)
    assert (second.status_code, second.headers["Retry-After"]) == (429, "2")
    assert first.text.startswith(body)
    assert market.listed({})["instances"] == []


def test_the_daily_search_quota_says_when_it_ends(market: Market) -> None:
    market.emulator.fail("search_quota")
    response = market.http.post("/api/v0/bundles/", json={})
    assert refusal(response) == (429, "search_quota_exceeded")
    assert int(response.headers["X-RateLimit-Reset"]) % 86_400 == 0
    assert 0 < int(response.headers["X-RateLimit-Reset"]) - market.clock() <= 86_400
    assert market.search()


@pytest.mark.parametrize(("where", "done_while_waiting"), [("before", False), ("after", True)])
def test_a_slow_reply_lets_the_caller_run_into_his_deadline(
    market: Market, where: str, done_while_waiting: bool
) -> None:
    instance_id = market.rent()
    market.emulator.fail("slow", on="destroy", where=where, seconds=0.3)
    with pytest.raises(httpx.ReadTimeout):
        market.http.delete(instance_path(instance_id), timeout=0.1)
    assert (not market.emulator.instances) is done_while_waiting
    deadline = time.monotonic() + 5
    while market.emulator.instances:  # what was asked for is done, although nobody waits for it
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("call", ["list", "show"])
def test_a_lagging_read_knows_neither_the_new_nor_the_end_of_the_old(market: Market, call: str) -> None:
    def known() -> set[int]:
        if call == "list":
            return {row["id"] for row in market.listed({})["instances"]}
        return {instance_id for instance_id in (old, new) if market.row(instance_id)}

    old = market.rent()
    market.clock.advance(31)
    new = market.rent()
    market.call("DELETE", instance_path(old))
    market.emulator.fail("list_lags", on=call, times=2)
    if call == "list":
        assert (known(), known()) == ({old}, {old})
    else:
        assert known() == {old}
    assert known() == {new}


def test_a_list_that_lacks_a_page_tells_of_it_in_its_counts(market: Market) -> None:
    ids = [market.rent() for _ in range(3)]
    market.emulator.fail("page_missing")
    first = market.listed({}, limit=2)
    assert (first["instances"], first["instances_found"], first["total_instances"]) == ([], 3, 3)
    rest = market.listed({}, limit=2, after_token=first["next_token"])
    assert [row["id"] for row in rest["instances"]] == ids[2:]
    assert [row["id"] for row in market.listed({})["instances"]] == ids


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"kind": "rate_limited", "form": "song"}, id="form"),
        pytest.param({"kind": "server_error", "status": 404}, id="status"),
        pytest.param({"kind": "server_error", "where": "machine"}, id="where"),
        pytest.param({"kind": "slow", "seconds": -1}, id="seconds"),
        pytest.param({"kind": "slow", "seconds": "3"}, id="seconds-as-text"),
        pytest.param({"kind": "boot_hangs", "seconds": 3}, id="seconds-for-what-has-none"),
        pytest.param({"kind": "offer_taken", "on": "list"}, id="on-for-what-has-no-choice"),
        pytest.param({"kind": "ssh_dropped", "after": -1}, id="after"),
    ],
)
def test_an_option_that_does_not_fit_its_fault_is_refused(market: Market, fault: dict[str, Any]) -> None:
    assert refusal(market.http.post("/sandbox/faults", json=fault)) == (400, "invalid_args")
    assert market.call("GET", "/sandbox/faults")["armed"] == []


def test_every_fault_is_explained_and_can_be_armed_without_options(market: Market) -> None:
    for kind in KINDS:
        market.emulator.fail(kind)
    faults = market.call("GET", "/sandbox/faults")
    assert set(faults["kinds"]) == {fault["kind"] for fault in faults["armed"]} == set(KINDS)


# Faults of the market


@pytest.mark.parametrize("kind", ["insufficient_credit", "spend_rate_limit"])
def test_an_account_that_may_not_rent(market: Market, kind: str) -> None:
    market.emulator.fail(kind)
    assert refusal(try_to_rent(market)) == (400, kind)
    assert not market.emulator.instances
    assert try_to_rent(market).status_code == 200


def test_a_refusal_that_names_a_contract_leaves_a_stopped_instance_whose_disk_bills(market: Market) -> None:
    market.emulator.fail("refused_but_rented")
    response = try_to_rent(market)
    assert response.status_code == 400
    assert response.json()["success"] is False
    (row,) = market.emulator.instances
    assert (row["id"], row["intended_status"]) == (response.json()["new_contract"], "stopped")
    market.clock.advance(3600)
    usd = market.emulator.ledger()["instances"][0]["usd"]
    assert (usd["gpu"], usd["disk"] > 0) == (0, True)


def test_a_destroy_that_lies_changes_nothing(market: Market) -> None:
    instance_id = market.rent()
    market.emulator.fail("destroy_lies", times=2)
    for _ in range(2):
        assert market.call("DELETE", instance_path(instance_id))["success"]
        assert market.row(instance_id)["id"] == instance_id
    market.call("DELETE", instance_path(instance_id))
    assert market.row(instance_id) is None


def test_a_start_without_free_gpus_is_queued_and_bills_once_it_comes(market: Market) -> None:
    instance_id = market.boot()
    market.row(instance_id)
    market.call("PUT", instance_path(instance_id), {"state": "stopped"})
    market.emulator.fail("no_resources", seconds=100)
    response = market.http.put(instance_path(instance_id), json={"state": "running"})
    assert refusal(response) == (200, "resources_unavailable")
    assert market.row(instance_id)["intended_status"] == "stopped"
    market.clock.advance(101)
    assert market.row(instance_id)["intended_status"] == "running"
    market.call("PUT", instance_path(instance_id), {"state": "stopped"})
    market.emulator.fail("no_resources", seconds=100)
    market.http.put(instance_path(instance_id), json={"state": "running"})
    market.call("PUT", instance_path(instance_id), {"state": "stopped"})
    market.clock.advance(1000)
    assert market.row(instance_id)["intended_status"] == "stopped"


# Faults of an instance


@pytest.mark.parametrize(
    ("kind", "status", "said"),
    [
        pytest.param("image_pull_error", "loading", "Error response from daemon: manifest for", id="image-pull"),
        pytest.param("oci_error", "created", ": OCI runtime create failed:", id="oci"),
    ],
)
def test_an_instance_that_never_runs_says_why_only_in_its_message(
    market: Market, kind: str, status: str, said: str
) -> None:
    market.emulator.fail(kind)
    sick, sound = market.rent(), market.rent()
    market.clock.advance(BOOT * 20)
    row = market.row(sick)
    assert (row["actual_status"], row["intended_status"], row["ports"]) == (status, "running", None)
    assert said in row["status_msg"]
    assert market.row(sound)["actual_status"] == "running"


def test_an_instance_without_a_port_map_runs_unreachable(market: Market) -> None:
    market.emulator.fail("no_port_map")
    row = market.row(market.boot())
    assert (row["actual_status"], row["ports"], row["ssh_port"]) == ("running", None, None)
    assert row["public_ipaddr"]
    assert market.row(market.boot())["ports"]


def test_a_late_ssh_server_comes_by_the_markets_clock(market: Market) -> None:
    market.emulator.fail("ssh_late", seconds=50)
    instance_id = market.boot()
    market.row(instance_id)
    assert fake_hosts(market).ssh[instance_id].is_refused
    market.clock.advance(50)
    market.row(instance_id)
    market.emulator.settle()
    assert fake_hosts(market).ssh[instance_id] == SOUND


def test_a_host_that_is_offline_bills_nothing_and_comes_back(market: Market) -> None:
    market.emulator.fail("host_offline", seconds=1000)
    offer = market.search(**GOOD_OFFER)[0]
    instance_id = market.rent()
    market.clock.advance(BOOT)
    market.emulator.settle()
    assert market.row(instance_id)["actual_status"] == "offline"
    assert market.row(instance_id)["intended_status"] == "running"
    market.emulator.settle()
    assert fake_hosts(market).unplugged == {instance_id}
    market.clock.advance(1000)
    assert market.row(instance_id)["actual_status"] == "running"
    market.emulator.settle()
    assert fake_hosts(market).unplugged == set()
    market.clock.advance(100)
    usd = market.emulator.ledger()["instances"][0]["usd"]
    assert usd["gpu"] == pytest.approx(100 / 3600 * offer["dph_base"])
    assert usd["disk"] == pytest.approx((BOOT + 100) / 3600 * 60 * offer["storage_cost"] / 720)
    assert usd["bytes"] == pytest.approx(IMAGE_GB * offer["inet_down_cost"])


def test_a_running_host_goes_offline_and_back_when_it_is_told_to(market: Market) -> None:
    instance_id = market.boot()
    market.row(instance_id)
    market.call("POST", f"/sandbox/instances/{instance_id}", {"do": "offline"})
    market.clock.advance(1e7)
    assert market.row(instance_id)["actual_status"] == "offline"
    market.call("POST", f"/sandbox/instances/{instance_id}", {"do": "online"})
    assert market.row(instance_id)["actual_status"] == "running"


def test_credit_that_is_used_up_stops_everything(market: Market) -> None:
    other = market.boot()
    market.emulator.fail("stopped_by_credit", seconds=100)
    instance_id = market.boot()
    assert market.row(instance_id)["actual_status"] == "running"
    market.clock.advance(100)
    for stopped in (instance_id, other):
        assert market.row(stopped)["intended_status"] == "stopped"
    assert market.emulator.credit_usd == pytest.approx(0)
    assert refusal(try_to_rent(market)) == (400, "insufficient_credit")


# Interruptible instances


def a_bid(market: Market, share: float, **order: Any) -> httpx.Response:
    offer = market.search(**BID_OFFER)[0]
    assert offer["is_bid"]
    return market.http.put(f"/api/v0/asks/{offer['id']}/", json=ORDER | {"price": offer["min_bid"] * share} | order)


def test_a_bid_below_the_floor_leaves_a_stopped_instance_unless_told_to_cancel(market: Market) -> None:
    cancelled = a_bid(market, 0.5, cancel_unavail=True)
    assert refusal(cancelled) == (400, "invalid_price")
    assert not market.emulator.instances
    waiting = a_bid(market, 0.5)
    assert refusal(waiting) == (400, "invalid_price")
    (row,) = market.emulator.instances
    assert (row["id"], row["cur_state"], row["next_state"]) == (waiting.json()["new_contract"], "stopped", "stopped")


def test_who_is_outbid_is_stopped_until_he_bids_more_and_pays_what_he_bid(market: Market) -> None:
    market.emulator.fail("outbid", seconds=100)
    on_demand = market.boot()
    assert market.row(on_demand)["actual_status"] == "running"
    market.emulator.fail("outbid", seconds=100)
    created = a_bid(market, 1.2).json()["new_contract"]
    bid = market.row(created)["dph_base"]
    market.clock.advance(BOOT + 100)
    row = market.row(created)
    assert (row["intended_status"], row["cur_state"], row["next_state"]) == ("stopped",) * 3
    assert row["min_bid"] > bid
    assert market.row(on_demand)["intended_status"] == "running"
    market.call("PUT", f"/api/v0/instances/bid_price/{created}/", {"client_id": "me", "price": bid * 2})
    market.clock.advance(BOOT)
    assert market.row(created)["actual_status"] == "running"
    spent = market.emulator.ledger()["instances"][1]["usd"]["gpu"]
    market.clock.advance(3600)
    assert market.emulator.ledger()["instances"][1]["usd"]["gpu"] - spent == pytest.approx(bid * 2)
    assert spent == pytest.approx(bid * 100 / 3600 + bid * 2 * (BOOT - BOOT * 0.3) / 3600)


def test_only_an_interruptible_instance_has_a_bid(market: Market) -> None:
    instance_id = market.boot()
    response = market.http.put(f"/api/v0/instances/bid_price/{instance_id}/", json={"price": 1.0})
    assert refusal(response) == (400, "invalid_args")


# Limits


def test_a_call_that_comes_too_soon_is_refused_and_the_next_one_after_the_interval_is_not() -> None:
    with open_market(rate_limits=1.0, quirks=Quirks(tells_when_to_retry=True)) as market:
        instance_id = market.rent()
        assert market.row(instance_id)
        refused = market.http.get(instance_path(instance_id))
        assert (refused.status_code, refused.text) == (429, "API requests too frequent: endpoint threshold=2.0")
        assert refused.headers["Retry-After"] == "2"
        assert market.listed({})["total_instances"] == 1  # another endpoint, another interval
        market.clock.advance(2)
        assert market.row(instance_id)


def test_a_create_that_comes_too_soon_costs_a_penalty() -> None:
    with open_market(rate_limits=1.0, quirks=Quirks(too_often="json")) as market:
        assert try_to_rent(market).status_code == 200
        market.clock.advance(4)
        assert refusal(try_to_rent(market)) == (429, "rate_limit_exceeded")
        market.clock.advance(11)
        assert try_to_rent(market).status_code == 429
        market.clock.advance(12)
        assert try_to_rent(market).status_code == 200
        assert len(market.emulator.instances) == 2


@pytest.mark.parametrize(("scale", "pause"), [(1.0, 60.0), (0.1, 6.0)])
def test_ten_searches_a_minute(scale: float, pause: float) -> None:
    with open_market(rate_limits=scale) as market:
        assert [market.http.post("/api/v0/bundles/", json={}).status_code for _ in range(11)] == [200] * 10 + [429]
        market.clock.advance(pause)
        assert market.http.post("/api/v0/bundles/", json={}).status_code == 200


def test_limits_count_each_key_for_itself() -> None:
    with open_market(rate_limits=1.0) as market:
        instance_id = market.boot()
        market.row(instance_id)
        own = {"Authorization": f"Bearer {fake_hosts(market).running[instance_id].api_key}"}
        assert market.http.get(instance_path(instance_id), headers=own).status_code == 200


# Quirks


def test_each_quirk_is_explained_and_none_takes_nonsense(market: Market) -> None:
    for field in fields(Quirks):
        assert f"        {field.name}: " in (Quirks.__doc__ or "")
        response = market.http.post("/sandbox/quirks", json={field.name: "nonsense"})
        assert refusal(response) == (400, "invalid_args")
    assert market.call("GET", "/sandbox/quirks") == market.call("POST", "/sandbox/quirks", {})


def test_an_unknown_instance_is_null_or_404(market: Market) -> None:
    assert market.row(1) is None
    market.call("POST", "/sandbox/quirks", {"unknown_by_id": "404", "gone_word": "not_found"})
    assert refusal(market.http.get(instance_path(1))) == (404, "not_found")
    assert refusal(market.http.delete(instance_path(1))) == (404, "not_found")


@pytest.mark.parametrize("status", [400, 404, 410])
def test_a_taken_offer_has_whatever_status_but_the_same_words(status: Any) -> None:
    with open_market(quirks=Quirks(taken_status=status)) as market:
        market.emulator.fail("offer_taken", times=2)
        for cancel in (True, False):
            response = try_to_rent(market, cancel_unavail=cancel)
            assert response.status_code == status
            assert "no_such_ask" in response.json()["error"] + response.json()["msg"]


def test_a_refused_create_may_come_with_status_200() -> None:
    with open_market(quirks=Quirks(refused_create_status=200)) as market:
        response = try_to_rent(market, disk=1)
        assert refusal(response) == (200, "invalid_args")
        assert response.json()["success"] is False


def test_numbers_as_text_are_taken_only_where_they_are(market: Market) -> None:
    assert refusal(try_to_rent(market, disk="60")) == (400, "invalid_args")
    market.call("POST", "/sandbox/quirks", {"takes_text_numbers": True})
    assert try_to_rent(market, disk="60").status_code == 200
    assert refusal(try_to_rent(market, disk="much")) == (400, "invalid_args")


def test_ports_by_id_in_three_shapes_while_the_list_has_the_map(market: Market) -> None:
    instance_id = market.boot()
    listed = market.listed({})["instances"][0]["ports"]
    assert market.row(instance_id)["ports"] == listed
    market.call("POST", "/sandbox/quirks", {"ports_by_id": "missing"})
    assert "ports" not in market.row(instance_id)
    market.call("POST", "/sandbox/quirks", {"ports_by_id": "numbers"})
    assert market.row(instance_id)["ports"] == [int(listed["22/tcp"][0]["HostPort"])]
    assert market.listed({})["instances"][0]["ports"] == listed


@pytest.mark.parametrize(("what", "has_key"), [("null", True), ("absent", False)])
def test_ports_that_are_not_published_yet(what: Any, has_key: bool) -> None:
    with open_market(quirks=Quirks(unpublished_ports=what)) as market:
        market.rent()
        (row,) = market.listed({})["instances"]
        assert (row.get("ports"), "ports" in row) == (None, has_key)


@pytest.mark.parametrize(("whose", "ends"), [("all", True), ("none", False)])
def test_addresses_with_the_end_of_their_line(whose: Any, ends: bool) -> None:
    with open_market(quirks=Quirks(untidy_addresses=whose)) as market:
        addresses = [market.row(instance_id)["public_ipaddr"] for instance_id in (market.boot(), market.boot())]
        assert [address.endswith("\n") for address in addresses] == [ends, ends]


def test_reads_that_always_lag() -> None:
    with open_market(quirks=Quirks(show_lag_seconds=3, list_lag_seconds=30)) as market:
        instance_id = market.rent()
        assert market.row(instance_id) is None
        market.clock.advance(3)
        assert market.row(instance_id)["id"] == instance_id
        assert market.listed({})["instances"] == []
        market.clock.advance(27)
        assert len(market.listed({})["instances"]) == 1
        market.call("DELETE", instance_path(instance_id))
        assert len(market.listed({})["instances"]) == 1
        assert market.emulator.ledger()["instances"][0]["to"] == market.clock()
        market.clock.advance(30)
        assert (market.listed({})["instances"], market.row(instance_id)) == ([], None)


def test_a_label_may_be_cut(market: Market) -> None:
    market.call("POST", "/sandbox/quirks", {"kept_label_length": 4})
    instance_id = market.rent(label="a-long-label")
    assert market.row(instance_id)["label"] == "a-lo"
    market.call("PUT", instance_path(instance_id), {"label": "another"})
    assert market.row(instance_id)["label"] == "anot"


def test_an_unknown_key_is_401_or_404(market: Market) -> None:
    market.call("POST", "/sandbox/quirks", {"bad_key_status": 404})
    response = market.http.get("/api/v0/users/current", headers={"Authorization": "Bearer nobodys"})
    assert refusal(response) == (404, "auth_error")


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMLrPlfrVZYPzqtnCXUjXxbO2KkHgOCFtmUZ46GbHjqz me@laptop"


@pytest.mark.parametrize("reach", [True, False])
def test_a_new_key_of_the_account_reaches_running_instances_or_not(reach: bool) -> None:
    with open_market(quirks=Quirks(account_keys_reach_running=reach)) as market:
        instance_id = market.boot()
        market.row(instance_id)
        market.call("POST", "/api/v0/ssh/", {"ssh_key": KEY})
        market.emulator.settle()
        assert (KEY in fake_hosts(market).keys[instance_id]) is reach


def test_a_team_has_no_ssh_keys(market: Market) -> None:
    market.call("POST", "/sandbox/quirks", {"is_team_key": True})
    response = market.http.post("/api/v0/ssh/", json={"ssh_key": KEY})
    assert refusal(response) == (400, "team_ssh_keys_not_supported")


# Further calls


def test_secrets_are_kept_in_capitals_never_shown_and_given_to_new_instances(market: Market) -> None:
    path = "/api/v0/secrets/"
    assert market.call("POST", path, {"key": "hf_token", "value": "hf_abc"})["success"]
    assert refusal(market.http.post(path, json={"key": "HF_TOKEN", "value": "x"})) == (400, "existing_key")
    assert refusal(market.http.post(path, json={"key": "A", "value": "two words"})) == (400, "missing_input")
    assert refusal(market.http.put(path, json={"key": "B", "value": "x"})) == (400, "nonexistent_key")
    assert market.call("GET", path)["secrets"] == {"HF_TOKEN": "*****"}
    market.call("PUT", path, {"key": "HF_TOKEN", "value": "hf_def"})
    instance_id = market.boot()
    market.row(instance_id)
    assert fake_hosts(market).running[instance_id].env == {"HF_TOKEN": "hf_def"}
    assert "hf_def" not in json.dumps(market.row(instance_id))
    assert market.http.request("DELETE", path, json={"key": "hf_token"}).json()["success"]
    assert market.call("GET", path)["secrets"] == {}


def test_the_tail_of_a_log_is_there_a_little_later_for_who_knows_its_url(market: Market) -> None:
    instance_id = market.boot()
    market.row(instance_id)
    path = f"/api/v0/instances/request_logs/{instance_id}/"
    answer = market.call("PUT", path, {"tail": "50"})
    replies = [httpx.get(answer["result_url"]) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [404, 404, 200]
    assert (replies[2].text, replies[2].headers["Content-Type"]) == (
        f"start of {instance_id}\n",
        "text/plain; charset=utf-8",
    )
    assert refusal(market.http.put(path, json={"tail": "all"})) == (400, "invalid_args")
    filtered = market.call("PUT", path, {"filter": "nothing like it"})["result_url"]
    assert [httpx.get(filtered).text for _ in range(3)][2] == ""


@pytest.mark.parametrize(
    "command", [pytest.param(text, id=text[:8] or "empty") for text in ("cat x", "sh -c ls", "", "ls " + "x" * 512)]
)
def test_only_a_few_short_commands_are_run(market: Market, command: str) -> None:
    instance_id = market.boot()
    response = market.http.put(f"/api/v0/instances/command/{instance_id}/", json={"command": command})
    assert refusal(response) == (400, "invalid_args")


def test_many_at_once(market: Market) -> None:
    offers = [offer["id"] for offer in market.search(**GOOD_OFFER)[:2]]
    created = market.call("POST", "/api/v0/asks/bulk/", {**ORDER, "ids": [*offers, offers[0]]})
    assert [result["success"] for result in created["results"]] == [True, True, False]
    ids = [result["new_contract"] for result in created["results"][:2]]
    market.call("PUT", "/api/v0/instances/", {"state": "stopped", "ids": ids})
    rows = market.call("GET", "/api/v0/instances/", owner="me")
    assert rows["instances_found"] == 2
    assert {row["intended_status"] for row in rows["instances"]} == {"stopped"}
    market.http.request("DELETE", "/api/v0/instances/", json={"instance_ids": ids})
    assert market.emulator.instances == []


def test_an_invalid_token_and_a_search_by_url(market: Market) -> None:
    assert refusal(market.http.get("/api/v1/instances/", params={"after_token": "x"})) == (400, "invalid_token")
    found = market.call("GET", "/api/v0/bundles/", q=json.dumps(GOOD_OFFER))["offers"]
    assert found == market.search(**GOOD_OFFER)


# On real hosts

CLIENT_KEY = asyncssh.generate_private_key("ssh-ed25519")


@contextlib.asynccontextmanager
async def a_rented_host(tmp_path: Path, *faults: dict[str, Any]) -> AsyncIterator[tuple[Market, dict[str, Any]]]:
    (tmp_path / "tools").mkdir()
    hosts = SshHosts(tmp_path / "hosts", tmp_path / "tools")
    with open_market(hosts=hosts, quirks=Quirks(untidy_addresses="none")) as market:
        for fault in faults:
            market.emulator.fail(**fault)
        market.call("POST", "/api/v0/ssh/", {"ssh_key": CLIENT_KEY.export_public_key().decode()})
        instance_id = market.boot(onstart="echo the container speaks")
        yield market, market.row(instance_id)
        await asyncio.to_thread(market.emulator.stop)


def connect(row: dict[str, Any]) -> Any:
    return asyncssh.connect(
        row["public_ipaddr"],
        int(row["ports"]["22/tcp"][0]["HostPort"]),
        username="root",
        client_keys=[CLIENT_KEY],
        known_hosts=None,
        config=[],
        agent_path=None,
    )


async def log_in(row: dict[str, Any]) -> str:
    async with connect(row) as connection:
        return str(connection.get_server_host_key().get_fingerprint())


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_refused_ssh_is_repaired_at_the_same_address(tmp_path: Path) -> None:
    async with a_rented_host(tmp_path, {"kind": "ssh_refused"}) as (market, row):
        with pytest.raises(ConnectionRefusedError):
            await log_in(row)
        market.call("POST", f"/sandbox/instances/{row['id']}", {"do": "ssh_sound"})
        market.emulator.settle()
        before = await log_in(row)
        market.call("POST", f"/sandbox/instances/{row['id']}", {"do": "ssh_refused"})
        market.emulator.settle()
        with pytest.raises(ConnectionRefusedError):
            await log_in(row)
        market.call("POST", f"/sandbox/instances/{row['id']}", {"do": "ssh_sound"})
        market.emulator.settle()
        assert await log_in(row) == before


@pytest.mark.anyio
async def test_the_host_key_changes_after_so_many_logins(tmp_path: Path) -> None:
    async with a_rented_host(tmp_path, {"kind": "ssh_other_host_key", "after": 2}) as (_, row):
        keys = [await log_in(row) for _ in range(4)]
        assert keys[0] == keys[1] != keys[2] == keys[3]


@pytest.mark.anyio
async def test_a_connection_drops_in_the_middle_of_a_command_which_runs_on(tmp_path: Path) -> None:
    async with a_rented_host(tmp_path, {"kind": "ssh_dropped", "after": 1}) as (_, row):
        async with connect(row) as connection:
            assert (await connection.run("echo one")).stdout == "one\n"
            cut = await connection.run("touch begun; sleep 0.3; touch done")
            assert (cut.exit_status, cut.exit_signal) == (None, None)
        async with connect(row) as connection:
            done = await connection.run("until [ -e done ]; do sleep 0.02; done; ls")
            assert str(done.stdout).split() == ["begun", "done", "onstart.sh"]


@pytest.mark.anyio
async def test_an_offline_host_is_reached_by_nobody_and_its_processes_live_on(tmp_path: Path) -> None:
    async with a_rented_host(tmp_path) as (market, row):
        async with connect(row) as connection:
            await connection.run("sleep 300 > /dev/null 2>&1 & echo $! > pid")
            market.call("POST", f"/sandbox/instances/{row['id']}", {"do": "offline"})
            market.emulator.settle()
            with pytest.raises((OSError, asyncssh.Error)):
                await connection.run("true", check=True)
        with pytest.raises(ConnectionRefusedError):
            await log_in(row)
        market.call("POST", f"/sandbox/instances/{row['id']}", {"do": "online"})
        market.emulator.settle()
        async with connect(row) as connection:
            assert (await connection.run("kill -0 $(cat pid)")).exit_status == 0


@pytest.mark.anyio
async def test_logs_and_commands_come_from_the_host(tmp_path: Path) -> None:
    async with a_rented_host(tmp_path) as (market, row):
        await log_in(row)

        def output(path: str, body: dict[str, Any]) -> str:
            url = market.call("PUT", f"/api/v0/instances/{path}/{row['id']}/", body)["result_url"]
            return [httpx.get(url).text for _ in range(3)][2]

        assert output("request_logs", {"tail": "50"}).splitlines() == [
            "the container speaks",
            "sshd: Accepted publickey for root",
        ]
        assert output("request_logs", {"tail": "1"}).splitlines() == ["sshd: Accepted publickey for root"]
        assert output("command", {"command": "ls"}) == "onstart.sh\n"
        assert output("request_logs", {"daemon_logs": "true"}).startswith("success, running vllm")
