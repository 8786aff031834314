"""The played market behaves as the market's documentation says, and its bills add up."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import httpx
import pytest

from tests.sandbox.hosts.backend import SshHosts
from tests.sandbox.market_client import BOOT, GOOD_OFFER, ORDER, Market, open_market, refusal
from tests.sandbox.vast.billing import IMAGE_GB
from tests.sandbox.vast.clock import ManualClock
from tests.sandbox.vast.hosts import FakeHosts
from tests.sandbox.vast.server import VastEmulator

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMLrPlfrVZYPzqtnCXUjXxbO2KkHgOCFtmUZ46GbHjqz me@laptop"


@pytest.fixture
def market() -> Iterator[Market]:
    with open_market() as opened:
        yield opened


# Search


def test_every_reply_has_a_date_and_exactly_the_content_type_that_the_official_client_takes(market: Market) -> None:
    for path in ("/api/v0/gpu_names/unique/", "/api/v0/users/current", "/api/v0/nothing/"):
        response = market.http.get(path)
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["Date"] == "Mon, 21 Sep 2026 14:13:20 GMT"


@pytest.mark.parametrize(
    ("query", "holds"),
    [
        pytest.param({"gpu_name": {"eq": "RTX 4090"}}, lambda o: o["gpu_name"] == "RTX 4090", id="eq"),
        pytest.param({"gpu_name": {"neq": "RTX 4090"}}, lambda o: o["gpu_name"] != "RTX 4090", id="neq"),
        pytest.param({"num_gpus": {"eq": "2"}}, lambda o: o["num_gpus"] == 2, id="numbers-may-be-strings"),
        pytest.param({"dph_total": {"lt": "0.5", "gt": 0.3}}, lambda o: 0.3 < o["dph_total"] < 0.5, id="lt-and-gt"),
        pytest.param({"gpu_ram": {"gte": 24000.0}}, lambda o: o["gpu_ram"] >= 24000, id="gte"),
        pytest.param({"inet_down": {"lte": 700}}, lambda o: o["inet_down"] <= 700, id="lte"),
        pytest.param({"geolocation": {"in": ["SE", "DE"]}}, lambda o: o["geolocation"][-2:] in "SE DE", id="country"),
        pytest.param({"geolocation": {"notin": ["US"]}}, lambda o: o["geolocation"][-2:] != "US", id="notin"),
        pytest.param({"verified": {"eq": False}}, lambda o: o["verification"] != "verified", id="verified"),
        pytest.param({"datacenter": {"eq": "true"}}, lambda o: o["hosting_type"] == 1, id="datacenter"),
        pytest.param({"cpu_cores": {"gte": 1}}, lambda o: o["cpu_cores"] is not None, id="null-satisfies-nothing"),
        pytest.param({"gpu_ram_GB": {"gte": 80}}, lambda o: o["gpu_ram"] >= 80_000, id="gigabytes"),
        pytest.param({"duration": {"gte": 1e6}}, lambda o: o["duration"] >= 1e6, id="seconds-left"),
        pytest.param({"allocated_storage": 400}, lambda o: o["disk_space"] >= 400, id="storage-implies-disk"),
    ],
)
def test_search_returns_what_was_asked_for_and_not_all(market: Market, query: dict[str, Any], holds: Any) -> None:
    offers = market.search(**query)
    assert offers
    assert all(holds(offer) for offer in offers)
    assert not all(holds(row) for row in market.emulator.offers())


def test_search_sorts_limits_and_prices_with_the_disk_that_is_asked_for(market: Market) -> None:
    offers = market.search(order=[["dph_total", "asc"]], limit=10, allocated_storage=100)
    assert [offer["dph_total"] for offer in offers] == sorted(offer["dph_total"] for offer in offers)
    assert len(offers) == 10
    for offer in offers:
        assert offer["dph_total"] == pytest.approx(offer["dph_base"] + 100 * offer["storage_cost"] / 720)
    assert len(market.search()) == 64


@pytest.mark.parametrize(
    ("query", "status"),
    [
        pytest.param({"gpu_nam": {"eq": "x"}}, 400, id="unknown-column"),
        pytest.param({"num_gpus": {"equals": 1}}, 400, id="unknown-operator"),
        pytest.param({"num_gpus": {"eq": "one"}}, 400, id="not-a-number"),
        pytest.param({"type": "gift"}, 400, id="unknown-type"),
        pytest.param({"order": "dph_total"}, 400, id="order-as-text"),
        pytest.param({"limit": "many"}, 400, id="limit-as-text"),
        pytest.param({"allocated_storage": "big"}, 400, id="storage-as-text"),
        pytest.param({"gpu_name": "RTX 4090"}, 400, id="no-operator"),
        pytest.param({"gpu_name": {"in": "RTX 4090"}}, 400, id="in-without-a-list"),
    ],
)
def test_search_refuses_what_it_does_not_understand(market: Market, query: dict[str, Any], status: int) -> None:
    assert refusal(market.http.post("/api/v0/bundles/", json=query)) == (status, "invalid_request")


def test_offers_are_varied_and_the_same_for_the_same_seed(market: Market) -> None:
    offers = market.emulator.offers()
    assert len(offers) > 300
    assert len({offer["gpu_name"] for offer in offers}) >= 20
    assert {offer["num_gpus"] for offer in offers} == {1, 2, 4, 8}
    assert len({offer["geolocation"][-2:] for offer in offers}) > 12
    assert {offer["gpu_frac"] for offer in offers} >= {0.125, 0.25, 0.5, 1.0}
    with VastEmulator(clock=ManualClock()) as again, VastEmulator(clock=ManualClock(), seed=8) as other:
        assert again.offers() == offers
        assert other.offers() != offers


@pytest.mark.parametrize("seed", range(6))
def test_whatever_the_seed_a_usual_need_is_met_also_after_a_reshuffle(seed: int) -> None:
    usual = GOOD_OFFER | {
        "dph_total": {"lte": 0.5},
        "geolocation": {"in": ["BG", "CZ", "DE", "FR", "NL", "NO", "PL", "SE"]},
    }
    with VastEmulator(clock=ManualClock(), seed=seed) as emulator:
        market = Market(emulator, ManualClock())
        for _ in range(3):
            assert len({offer["machine_id"] for offer in market.search(**usual)}) >= 6
            market.call("POST", "/sandbox/reshuffle")
        market.http.close()


def test_a_reshuffle_moves_prices_offers_come_and_go_and_what_is_rented_keeps_its_price(market: Market) -> None:
    instance_id = market.boot()
    price = market.row(instance_id)["dph_total"]
    before = {offer["id"]: offer["dph_base"] for offer in market.emulator.offers()}
    market.call("POST", "/sandbox/reshuffle")
    after = {offer["id"]: offer["dph_base"] for offer in market.emulator.offers()}
    assert before.keys() - after.keys()
    assert after.keys() - before.keys()
    assert any(after[offer_id] != before[offer_id] for offer_id in before.keys() & after.keys())
    assert market.row(instance_id)["dph_total"] == price


# Keys


@pytest.mark.parametrize(
    ("headers", "params", "expected"),
    [
        pytest.param({}, {}, (401, "auth_error"), id="no-key"),
        pytest.param({"Authorization": "Bearer wrong"}, {}, (401, "auth_error"), id="wrong-key"),
        pytest.param({"Authorization": "Basic sandbox-key"}, {}, (401, "auth_error"), id="not-bearer"),
        pytest.param({}, {"api_key": "sandbox-key"}, (400, "key_in_url"), id="key-as-parameter"),
        pytest.param(
            {"Authorization": "Bearer sandbox-key"}, {"x": "sandbox-key"}, (400, "key_in_url"), id="key-in-the-url-too"
        ),
    ],
)
def test_a_call_without_its_key_in_the_header_fails_and_is_recorded(
    market: Market, headers: dict[str, str], params: dict[str, str], expected: tuple[int, str]
) -> None:
    response = httpx.get(f"{market.emulator.url}/api/v0/users/current", headers=headers, params=params)
    assert refusal(response) == expected
    last = market.call("GET", "/sandbox/requests")["requests"][-2]
    assert (last["path"], last["status"]) == ("/api/v0/users/current", expected[0])
    assert last["key_in_url"] == (expected[1] == "key_in_url")


def test_search_and_gpu_names_need_no_key(market: Market) -> None:
    assert httpx.post(f"{market.emulator.url}/api/v0/bundles/", json={}).json()["offers"]
    assert "RTX 4090" in httpx.get(f"{market.emulator.url}/api/v0/gpu_names/unique").json()["gpu_names"]


def test_the_instances_own_key_reads_and_ends_that_instance_and_nothing_else(market: Market) -> None:
    hosts = market.emulator.hosts
    assert isinstance(hosts, FakeHosts)
    mine, other = market.boot(), market.boot()
    market.row(mine)
    headers = {"Authorization": f"Bearer {hosts.running[mine].api_key}"}
    with httpx.Client(base_url=market.emulator.url, headers=headers) as machine:
        assert machine.get(f"/api/v0/instances/{mine}/").json()["instances"]["id"] == mine
        for method, path in (("GET", f"instances/{other}/"), ("DELETE", f"instances/{other}/"), ("GET", "instances/")):
            assert machine.request(method, f"/api/v0/{path}").status_code == 403
        assert machine.delete(f"/api/v0/instances/{mine}/").json()["success"]
        assert machine.get(f"/api/v0/instances/{mine}/").status_code == 401
    assert [row["id"] for row in market.emulator.instances] == [other]


# Renting


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"disk": 7}, "disk must be at least 8", id="small-disk"),
        pytest.param({"disk": "60"}, "disk has the wrong type", id="disk-as-text"),
        pytest.param({"image": ""}, "image is missing", id="no-image"),
        pytest.param({"onstart": "x" * 4049}, "onstart is longer", id="long-onstart"),
        pytest.param({"label": "x" * 257}, "label is longer", id="long-label"),
        pytest.param({"env": "-p 8443:8443"}, "env has the wrong type", id="env-as-docker-flags"),
        pytest.param({"env": {"A": 1}}, "env must map strings", id="env-with-a-number"),
        pytest.param({"env": {"A": "x" * 257}}, "an env key or value is longer", id="long-env-value"),
        pytest.param({"env": {"-p 8443": "1"}}, "a port is not like", id="half-a-port"),
        pytest.param({"env": {"--privileged": "1"}}, "only -p, -e", id="docker-flag"),
        pytest.param({"runtype": "telnet"}, "unknown runtype", id="runtype"),
        pytest.param({"onstrat": "x"}, "unknown key onstrat", id="typing-error"),
        pytest.param({"cancel_unavail": 1}, "cancel_unavail has the wrong type", id="number-for-a-bool"),
        pytest.param({"price": True}, "price has the wrong type", id="bool-for-a-number"),
        pytest.param({"disk": 900_000}, "the machine has", id="disk-bigger-than-the-machines"),
    ],
)
def test_create_is_checked_strictly(market: Market, change: dict[str, Any], reason: str) -> None:
    offer_id = market.search(**GOOD_OFFER)[0]["id"]
    response = market.http.put(f"/api/v0/asks/{offer_id}/", json=ORDER | change)
    assert refusal(response) == (400, "invalid_args")
    assert reason in response.json()["msg"]
    assert not market.emulator.instances


def test_an_offer_is_good_for_one_rent_and_comes_back_under_another_id(market: Market) -> None:
    offer = market.search(**GOOD_OFFER)[0]
    path = f"/api/v0/asks/{offer['id']}/"
    instance_id = market.call("PUT", path, ORDER)["new_contract"]
    taken = market.http.put(path, json=ORDER)
    assert refusal(taken) == (410, "no_such_ask")
    queued = market.http.put(path, json=ORDER | {"cancel_unavail": False})
    assert refusal(queued) == (404, "invalid_args")
    assert "no_such_ask" in queued.json()["msg"]
    market.call("DELETE", f"/api/v0/instances/{instance_id}/")
    again = [row for row in market.emulator.offers() if row["machine_id"] == offer["machine_id"]]
    assert offer["num_gpus"] in {row["num_gpus"] for row in again}
    assert offer["id"] not in {row["id"] for row in again}


def test_renting_a_slice_takes_the_bigger_slices_of_that_machine_off_the_market(market: Market) -> None:
    whole = next(row for row in market.emulator.offers() if row["num_gpus"] == 4 and row["gpu_frac"] == 1.0)
    sizes = [row["num_gpus"] for row in market.emulator.offers() if row["machine_id"] == whole["machine_id"]]
    assert sorted(sizes) == [1, 2, 4]
    one = next(
        row for row in market.emulator.offers() if row["machine_id"] == whole["machine_id"] and row["num_gpus"] == 1
    )
    market.call("PUT", f"/api/v0/asks/{one['id']}/", ORDER | {"disk": 8})
    left = [row["num_gpus"] for row in market.emulator.offers() if row["machine_id"] == whole["machine_id"]]
    assert sorted(left) == [1, 2]


def test_an_account_without_credit_rents_nothing_and_what_runs_is_stopped(market: Market) -> None:
    instance_id = market.boot()
    assert market.row(instance_id)["actual_status"] == "running"
    market.call("POST", "/sandbox/account", {"credit": 0})
    offer_id = market.search(**GOOD_OFFER)[0]["id"]
    assert refusal(market.http.put(f"/api/v0/asks/{offer_id}/", json=ORDER)) == (400, "insufficient_credit")
    assert market.row(instance_id)["intended_status"] == "stopped"


def test_an_instance_boots_by_the_clock(market: Market) -> None:
    instance_id = market.rent(env={"-p 8443:8443": "1", "A": "b"})
    seen = []
    for _ in range(60):
        row = market.row(instance_id)
        seen.append(row["actual_status"])
        if row["actual_status"] != "running":
            assert row["ports"] is None
            assert row["public_ipaddr"] is None
        market.clock.advance(BOOT / 50)
    assert list(dict.fromkeys(seen)) == [None, "created", "loading", "running"]
    assert set(row["ports"]) == {"22/tcp", "8443/tcp"}
    assert isinstance(row["ports"]["22/tcp"][0]["HostPort"], str)
    assert row["public_ipaddr"].strip().startswith("203.0.113.")
    assert row["status_msg"] == "success, running vllm/vllm-openai_v0.32.0/ssh"
    assert row["extra_env"] == [["-p 8443:8443", "1"], ["A", "b"]]
    assert isinstance(row["start_date"], float)


def test_while_loading_the_message_tells_of_layers(market: Market) -> None:
    instance_id = market.rent()
    messages = set()
    for _ in range(40):
        market.clock.advance(BOOT / 50)
        messages.add(market.row(instance_id)["status_msg"])
    layers = {message.split(": ")[0] for message in messages if message}
    assert len(layers) > 3
    assert {"Pulling fs layer", "Pull complete"} <= {message.split(": ")[1] for message in messages if message}


def test_without_enough_direct_ports_an_instance_runs_unreachable(market: Market) -> None:
    offer = market.search(direct_port_count={"eq": 0}, disk_space={"gte": 60})[0]
    instance_id = market.call("PUT", f"/api/v0/asks/{offer['id']}/", ORDER)["new_contract"]
    market.clock.advance(BOOT * 2)
    row = market.row(instance_id)
    assert (row["actual_status"], row["ports"]) == ("running", None)


def test_stop_and_start(market: Market) -> None:
    instance_id = market.boot()
    market.row(instance_id)
    market.call("PUT", f"/api/v0/instances/{instance_id}/", {"state": "stopped"})
    market.emulator.settle()
    row = market.row(instance_id)
    assert (row["actual_status"], row["cur_state"], row["intended_status"]) == ("exited", "stopped", "stopped")
    assert row["ports"] is None
    market.call("PUT", f"/api/v0/instances/{instance_id}/", {"state": "running"})
    assert market.row(instance_id)["actual_status"] != "running"
    market.clock.advance(BOOT)
    assert market.row(instance_id)["actual_status"] == "running"
    assert isinstance(market.emulator.hosts, FakeHosts)
    assert len(market.emulator.hosts.starts) == 2


@pytest.mark.parametrize(
    ("do", "left"), [pytest.param("stop", "exited", id="stop"), pytest.param("forget", None, id="forget")]
)
def test_what_the_market_does_by_itself(market: Market, do: str, left: str | None) -> None:
    instance_id = market.boot()
    market.row(instance_id)
    market.call("POST", f"/sandbox/instances/{instance_id}", {"do": do})
    market.emulator.settle()
    row = market.row(instance_id)
    assert (row and row["actual_status"]) == left


def test_labels_are_read_back_and_filter_the_list_page_by_page(market: Market) -> None:
    ids = [market.rent(label="mine" if number % 2 else None) for number in range(7)]
    market.call("PUT", f"/api/v0/instances/{ids[0]}/", {"label": "mine"})
    assert market.row(ids[0])["label"] == "mine"
    mine = [ids[0], *ids[1::2]]
    seen: list[int] = []
    token: dict[str, str] = {}
    while True:
        page = market.listed({"label": {"in": ["mine"]}}, limit=3, **token)
        seen += [row["id"] for row in page["instances"]]
        if page["next_token"] is None:
            break
        token = {"after_token": page["next_token"]}
    assert seen == mine
    assert (page["instances_found"], page["total_instances"]) == (4, 7)
    assert page["label_counts"] == {"mine": 4, "": 3}
    assert [row["id"] for row in market.listed({"label": {"in": [None]}})["instances"]] == ids[2::2]


def test_a_page_continues_where_the_last_one_ended_although_rows_went(market: Market) -> None:
    ids = [market.rent() for _ in range(5)]
    order = json.dumps([{"col": "id", "dir": "desc"}])
    page = market.listed({}, limit=2, order_by=order)
    market.call("DELETE", f"/api/v0/instances/{ids[4]}/")
    rest = market.listed({}, limit=9, order_by=order, after_token=page["next_token"])
    assert [row["id"] for row in rest["instances"]] == [ids[2], ids[1], ids[0]]


def test_the_list_filters_only_by_stored_columns_and_selects_columns(market: Market) -> None:
    instance_id = market.rent()
    response = market.http.get("/api/v1/instances/", params={"select_filters": '{"dph_total": {"lt": 1}}'})
    assert refusal(response) == (400, "invalid_request")
    rows = market.listed({"id": {"eq": instance_id}}, select_cols=json.dumps(["id", "flavour"]))["instances"]
    assert rows == [{"id": instance_id, "flavour": None}]


def test_what_was_destroyed_is_null_by_id_and_404_to_change(market: Market) -> None:
    instance_id = market.boot()
    market.row(instance_id)
    assert market.call("DELETE", f"/api/v0/instances/{instance_id}/")["success"]
    assert market.row(instance_id) is None
    assert market.listed({})["instances"] == []
    for method, body in (("DELETE", None), ("PUT", {"label": "x"})):
        response = market.http.request(method, f"/api/v0/instances/{instance_id}/", json=body)
        assert refusal(response) == (404, "no_such_instance")
    market.emulator.settle()
    assert isinstance(market.emulator.hosts, FakeHosts)
    assert market.emulator.hosts.destroyed == [instance_id]


def test_keys_of_the_account_go_to_new_instances_and_attached_ones_to_that_instance(market: Market) -> None:
    hosts = market.emulator.hosts
    assert isinstance(hosts, FakeHosts)
    market.call("POST", "/api/v0/ssh/", {"ssh_key": KEY})
    instance_id = market.boot()
    market.row(instance_id)
    assert hosts.keys[instance_id] == (KEY,)
    more = KEY.replace("AAAAI", "AAAAJ")
    market.call("POST", f"/api/v0/instances/{instance_id}/ssh/", {"ssh_key": more + "\n"})
    market.emulator.settle()
    assert hosts.keys[instance_id] == (KEY, more)
    keys = json.loads(market.call("GET", f"/api/v0/instances/{instance_id}/ssh/")["ssh_keys"])
    market.call("DELETE", f"/api/v0/instances/{instance_id}/ssh/{keys[0]['id']}/")
    market.emulator.settle()
    assert hosts.keys[instance_id] == (more,)
    for bad in ("k.pub", "", None, "ssh-ed25519"):
        response = market.http.post(f"/api/v0/instances/{instance_id}/ssh/", json={"ssh_key": bad})
        assert refusal(response) == (400, "invalid_args")


# Billing


def test_the_bill_adds_up_to_the_second(market: Market) -> None:
    offer = market.search(**GOOD_OFFER)[0]
    instance_id = market.rent()
    market.clock.advance(BOOT + 100)
    market.row(instance_id)
    market.call("PUT", f"/api/v0/instances/{instance_id}/", {"state": "stopped"})
    market.clock.advance(1000.5)
    market.call("DELETE", f"/api/v0/instances/{instance_id}/")
    market.clock.advance(50_000)
    (row,) = market.emulator.ledger()["instances"]
    assert row["usd"]["gpu"] == pytest.approx(100 / 3600 * offer["dph_base"])
    assert row["usd"]["disk"] == pytest.approx((BOOT + 1100.5) / 3600 * 60 * offer["storage_cost"] / 720)
    assert row["usd"]["bytes"] == pytest.approx(IMAGE_GB * offer["inet_down_cost"])
    assert row["to"] - row["from"] == pytest.approx(BOOT + 1100.5)
    assert (row["id"], row["label"], row["machine_id"]) == (instance_id, ORDER["label"], offer["machine_id"])


def test_charges_ledger_and_credit_agree(market: Market) -> None:
    first, second = market.boot(), market.boot()
    market.row(second)
    market.clock.advance(3600)
    market.call("DELETE", f"/api/v0/instances/{first}/")
    ledger = market.call("GET", "/sandbox/ledger")
    days = {"day": {"gte": market.clock() - 86_400, "lte": market.clock()}}
    charges = market.call("GET", "/api/v0/charges/", select_filters=json.dumps(days))
    assert [charge["source"] for charge in charges["results"]] == [f"instance-{first}", f"instance-{second}"]
    assert [row["to"] for row in ledger["instances"]] == [market.clock(), None]
    for charge, row in zip(charges["results"], ledger["instances"], strict=True):
        assert charge["amount"] == sum(row["usd"].values())
        assert [item["amount"] for item in charge["items"]] == list(row["usd"].values())
        assert [item["type"] for item in charge["items"]] == ["gpu", "disk", "bwd"]
        assert charge["metadata"]["label"] == ORDER["label"]
    credit = market.call("GET", "/api/v0/users/current")["credit"]
    assert credit == pytest.approx(25 - ledger["usd_total"], abs=1e-12)
    assert ledger["usd_total"] > 0.3


def test_charges_need_days_and_show_only_those(market: Market) -> None:
    market.rent()
    assert refusal(market.http.get("/api/v0/charges/")) == (400, "invalid_request")
    long_ago = json.dumps({"day": {"gte": 0, "lte": 86_400}})
    assert market.call("GET", "/api/v0/charges/", select_filters=long_ago)["results"] == []


# Faults


def test_offer_taken(market: Market) -> None:
    market.call("POST", "/sandbox/faults", {"kind": "offer_taken"})
    offer_id = market.search(**GOOD_OFFER)[0]["id"]
    response = market.http.put(f"/api/v0/asks/{offer_id}/", json=ORDER | {"cancel_unavail": True})
    assert refusal(response) == (410, "no_such_ask")
    assert offer_id not in {offer["id"] for offer in market.emulator.offers()}
    assert market.rent()


def test_reply_lost_after_create_leaves_an_instance(market: Market) -> None:
    market.emulator.fail("reply_lost", on="create")
    with pytest.raises(httpx.TransportError):
        market.rent()
    assert [row["label"] for row in market.emulator.instances] == [ORDER["label"]]
    assert market.rent()


def test_a_lost_request_and_a_502_do_nothing(market: Market) -> None:
    market.emulator.fail("request_lost", on="create")
    with pytest.raises(httpx.TransportError):
        market.rent()
    market.emulator.fail("unavailable", on="create")
    with pytest.raises(httpx.HTTPStatusError, match="502"):
        market.rent()
    assert not market.emulator.instances
    assert market.rent()


def test_a_refusal_may_have_rented_all_the_same(market: Market) -> None:
    market.emulator.fail("refused_but_rented")
    offer = market.search(**GOOD_OFFER)[0]
    response = market.http.put(f"/api/v0/asks/{offer['id']}/", json=ORDER)
    assert response.status_code == 400
    row = market.row(response.json()["new_contract"])
    assert (row["intended_status"], row["label"]) == ("stopped", ORDER["label"])


def test_boot_hangs_and_bills_no_gpu(market: Market) -> None:
    market.emulator.fail("boot_hangs")
    instance_id, healthy = market.rent(), market.rent()
    market.clock.advance(BOOT * 100)
    assert market.row(instance_id)["actual_status"] == "loading"
    assert market.row(healthy)["actual_status"] == "running"
    usd = market.emulator.ledger()["instances"][0]["usd"]
    assert usd["gpu"] == 0
    assert usd["disk"] > 0


@pytest.mark.parametrize(
    ("where", "shown", "actual"),
    [
        pytest.param("row", "RTX 3060", False, id="the-row-shows-a-smaller-one"),
        pytest.param("machine", None, True, id="only-the-machine-has-a-smaller-one"),
    ],
)
def test_wrong_gpu(market: Market, where: str, shown: str | None, actual: bool) -> None:
    market.emulator.fail("wrong_gpu", where=where)
    instance_id = market.boot()
    row = market.row(instance_id)
    assert (row["gpu_name"] == "RTX 3060") is (shown is not None)
    assert isinstance(market.emulator.hosts, FakeHosts)
    (gpu,) = market.emulator.hosts.running[instance_id].gpus
    assert (gpu.name == "NVIDIA GeForce RTX 3060") is actual
    assert market.row(market.boot())["gpu_name"] in ("RTX 3090", "RTX 4090")


def test_destroy_fails_so_many_times(market: Market) -> None:
    instance_id = market.rent()
    market.emulator.fail("destroy_fails", times=2)
    path = f"/api/v0/instances/{instance_id}/"
    assert [market.http.delete(path).status_code for _ in range(3)] == [500, 500, 200]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"kind": "earthquake"}, id="kind"),
        pytest.param({"kind": "reply_lost", "on": "crate"}, id="call"),
        pytest.param({"kind": "wrong_gpu", "where": "here"}, id="where"),
        pytest.param({"kind": "destroy_fails", "times": 0}, id="times"),
        pytest.param({"kind": "destroy_fails", "time": 2}, id="key"),
    ],
)
def test_a_fault_that_could_never_strike_is_refused(market: Market, fault: dict[str, Any]) -> None:
    assert refusal(market.http.post("/sandbox/faults", json=fault)) == (400, "invalid_args")


# With real hosts


async def read_from_host(row: dict[str, Any], key: asyncssh.SSHKey) -> str:
    async with asyncssh.connect(
        row["public_ipaddr"].strip(),
        int(row["ports"]["22/tcp"][0]["HostPort"]),
        username="root",
        client_keys=[key],
        known_hosts=None,
        config=[],
    ) as connection:
        return str((await connection.run("nvidia-smi -L; cat started", check=True)).stdout)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_rented_host_is_reached_where_its_row_says(tmp_path: Path, anyio_backend: str) -> None:
    clock = ManualClock()
    key = asyncssh.generate_private_key("ssh-ed25519")
    (tmp_path / "tools").mkdir()
    with VastEmulator(SshHosts(tmp_path / "hosts", tmp_path / "tools"), boot_seconds=BOOT, clock=clock) as emulator:
        market = Market(emulator, clock)
        instance_id = market.rent(onstart="echo $CONTAINER_ID > started")
        market.call("POST", f"/api/v0/instances/{instance_id}/ssh/", {"ssh_key": key.export_public_key().decode()})
        clock.advance(BOOT * 1.1)
        output = await read_from_host(market.row(instance_id), key)
        assert "NVIDIA GeForce RTX" in output
        assert output.endswith(f"{instance_id}\n")
        market.call("DELETE", f"/api/v0/instances/{instance_id}/")
        emulator.settle()
        assert list((tmp_path / "hosts").iterdir()) == []
        market.http.close()
