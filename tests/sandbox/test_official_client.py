"""The market's own client, vastai 1.9.1, finds in the emulator the market that it was written for."""

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from tests.sandbox.hosts.backend import SshHosts
from tests.sandbox.official_client import COMMAND, OfficialClient, Said, client_environment
from tests.sandbox.vast.server import VastEmulator

IMAGE = "vllm/vllm-openai:v0.11.0"
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMLrPlfrVZYPzqtnCXUjXxbO2KkHgOCFtmUZ46GbHjqz test@emu"
HEADERS = {"User-Agent": "vastai-cli/1.9.1", "Accept-Encoding": "gzip, deflate", "Accept": "*/*"}
DEFAULTS = {"verified": {"eq": True}, "external": {"eq": False}, "rentable": {"eq": True}}
CREATE: dict[str, Any] = {
    "client_id": "me",
    "image": IMAGE,
    "env": {},
    "price": None,
    "disk": 60.0,
    "label": None,
    "extra": None,
    "onstart": None,
    "image_login": None,
    "python_utf8": False,
    "lang_utf8": False,
    "use_jupyter_lab": False,
    "jupyter_dir": None,
    "force": False,
    "cancel_unavail": False,
    "template_hash_id": None,
    "user": None,
}
"""The body that the client sends when nothing is asked for."""


class Judge:
    """The market, the client that judges it, and what passed between the two."""

    def __init__(self, market: VastEmulator, client: OfficialClient) -> None:
        self.market, self.client = market, client

    def run(self, *words: object) -> Said:
        """Run `vastai`; errors that the market answers leave its status 0."""
        said = self.client.run(*words)
        assert said.status == 0, said
        return said

    def raw(self, *words: object) -> Any:
        return self.run(*words, "--raw").value

    def python(self, code: str, **names: Any) -> Any:
        said = self.client.python(code, url=self.market.url, key=self.market.api_key, **names)
        assert (said.status, said.err) == (0, ""), said
        return said.value

    @property
    def last(self) -> dict[str, Any]:
        """The last request."""
        return self.market.requests[-1]

    def sent(self, *, since: int = 0) -> list[tuple[str, str, Any]]:
        return [(r["method"], r["path"], r["body"]) for r in self.market.requests[since:]]

    def offer(self, **wanted: Any) -> dict[str, Any]:
        """Return an offer that takes 60 GB and two ports."""
        return next(
            row
            for row in self.market.offers()
            if row["disk_space"] >= 60 and row["direct_port_count"] >= 9 and wanted.items() <= row.items()
        )

    def rent(self, *words: object) -> int:
        create = ("create", "instance", self.offer()["id"], "--image", IMAGE, "--disk", 60, *words)
        return int(self.raw(*create)["new_contract"])

    def row(self, instance_id: int) -> dict[str, Any]:
        return next(row for row in self.market.instances if row["id"] == instance_id)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    root = tmp_path_factory.mktemp("official")
    for name in ("tools", "home"):
        (root / name).mkdir()
    with (
        VastEmulator(SshHosts(root / "hosts", root / "tools"), boot_seconds=0) as market,
        OfficialClient(client_environment(root / "home", market.url, market.api_key)) as client,
    ):
        client.run("show", "user")  # the first command of a home asks more than it was told to
        yield Judge(market, client)


@pytest.fixture
def judge(opened: Judge) -> Iterator[Judge]:
    yield opened
    opened.market.change_quirks(unpublished_ports="null")
    for row in opened.market.instances:
        opened.run("destroy", "instance", row["id"], "-y")
    opened.market.settle()
    assert opened.market.instances == []


# The client as a user starts it


def test_the_first_command_of_a_home_asks_for_gpu_names_without_a_key_and_for_the_user(tmp_path: Path) -> None:
    with VastEmulator(credit_usd=12.5) as market:
        said = subprocess.run(
            [COMMAND, "search", "offers", "gpu_name=H200", "--raw"],
            env=client_environment(tmp_path, market.url, market.api_key),
            capture_output=True,
            check=True,
            timeout=60,
        )
        assert {offer["gpu_name"] for offer in json.loads(said.stdout)} == {"H200"}
        names, user, search = market.requests
    assert (names["method"], names["path"], names["key_of"]) == ("GET", "/api/v0/gpu_names/unique/", "nobody")
    assert names["user_agent"].startswith("python-requests/")
    assert (user["method"], user["path"], user["key_of"]) == ("GET", "/api/v0/users/current", "account")
    assert (search["method"], search["path"], search["key_of"]) == ("POST", "/api/v0/bundles/", "account")
    assert HEADERS.items() <= user["headers"].items()
    assert "Content-Type" not in user["headers"]
    assert HEADERS.items() | {("Content-Type", "application/json")} <= search["headers"].items()
    assert (tmp_path / ".config/vastai/vast_role").exists()


def test_the_user_and_his_credit(judge: Judge) -> None:
    assert judge.raw("show", "user")["credit"] == pytest.approx(judge.market.credit_usd)
    assert (judge.last["method"], judge.last["path"]) == ("GET", "/api/v0/users/current")


# Search

SEARCHES = [
    pytest.param(
        (
            "gpu_name=RTX_4090 num_gpus=1 reliability>0.98 dph_total<0.5 geolocation in [SE,DE] gpu_ram>=24 "
            "cuda_vers>=12.4 inet_down>500 direct_port_count>=2",
            *("-o", "dph_total", "--limit", "5", "--storage", "40"),
        ),
        {
            **DEFAULTS,
            "gpu_name": {"eq": "RTX 4090"},
            "num_gpus": {"eq": "1"},
            "reliability": {"gt": "0.98"},
            "dph_total": {"lt": "0.5"},
            "geolocation": {"in": ["SE", "DE"]},
            "gpu_ram": {"gte": 24000.0},
            "cuda_max_good": {"gte": "12.4"},
            "inet_down": {"gt": "500"},
            "direct_port_count": {"gte": "2"},
            "order": [["dph_total", "asc"]],
            "type": "on-demand",
            "limit": 5,
            "allocated_storage": 40.0,
        },
        id="many-filters",
    ),
    pytest.param(
        (),
        {**DEFAULTS, "order": [["score", "desc"]], "type": "on-demand", "allocated_storage": 5.0},
        id="nothing-but-defaults",
    ),
    pytest.param(
        ("-n", "--type", "bid", "--limit", "2", "gpu_name=RTX_4090 verified=any rented=any"),
        {
            "gpu_name": {"eq": "RTX 4090"},
            "order": [["score", "desc"]],
            "type": "bid",
            "limit": 2,
            "allocated_storage": 5.0,
        },
        id="interruptible-without-defaults",
    ),
]


@pytest.mark.parametrize(("words", "body"), SEARCHES)
def test_search_sends_what_the_reference_says_and_prints_offers(
    judge: Judge, words: tuple[str, ...], body: dict[str, Any]
) -> None:
    offers = judge.raw("search", "offers", *words)
    assert (judge.last["method"], judge.last["path"], judge.last["body"]) == ("POST", "/api/v0/bundles/", body)
    assert list(judge.last["body"]) == list(body)
    assert 0 < len(offers) <= body.get("limit", 64)
    assert {offer["is_bid"] for offer in offers} == {body["type"] == "bid"}


def test_the_new_search_wraps_its_query(judge: Judge) -> None:
    offers = judge.raw("search", "offers", "--new", "--limit", "3", "num_gpus=1")
    query = {
        **DEFAULTS,
        "num_gpus": {"eq": "1"},
        "order": [["score", "desc"]],
        "type": "on-demand",
        "limit": 3,
        "allocated_storage": 5.0,
    }
    assert judge.sent()[-1] == ("PUT", "/api/v0/search/asks/", {"select_cols": ["*"], "q": query})
    assert [offer["num_gpus"] for offer in offers] == [1, 1, 1]


Row = Mapping[str, Any]
QUERIES: list[tuple[str, str, Callable[[Row], Any]]] = [
    ("eq", "num_gpus=2", lambda o: o["num_gpus"] == 2),
    ("eq-twice", "num_gpus==2", lambda o: o["num_gpus"] == 2),
    ("eq-word", "num_gpus eq 2", lambda o: o["num_gpus"] == 2),
    ("neq", "num_gpus!=1", lambda o: o["num_gpus"] != 1),
    ("neq-word", "num_gpus neq 1", lambda o: o["num_gpus"] != 1),
    ("lt", "inet_down<500", lambda o: o["inet_down"] < 500),
    ("lte", "num_gpus<=2", lambda o: o["num_gpus"] <= 2),
    ("gt", "num_gpus>2", lambda o: o["num_gpus"] > 2),
    ("gte", "num_gpus>=4", lambda o: o["num_gpus"] >= 4),
    ("gte-word", "num_gpus gte 4", lambda o: o["num_gpus"] >= 4),
    ("between", "dph_total>0.3 dph_total<0.6", lambda o: 0.3 < o["dph_total"] < 0.6),
    ("in", "gpu_name in [RTX_4090,H100_SXM]", lambda o: o["gpu_name"] in ("RTX 4090", "H100 SXM")),
    ("notin", "geolocation notin [US,DE,SE]", lambda o: o["geolocation"][-2:] not in ("US", "DE", "SE")),
    ("nin", "geolocation nin [US]", lambda o: o["geolocation"][-2:] != "US"),
    ("not-in", "geolocation not in [US]", lambda o: o["geolocation"][-2:] != "US"),
    ("quoted", 'gpu_name="RTX 4090"', lambda o: o["gpu_name"] == "RTX 4090"),
    ("alias-cuda", "cuda_vers>=13.0", lambda o: o["cuda_max_good"] >= 13.0),
    ("alias-dph", "dph<0.25", lambda o: o["dph_total"] < 0.25),
    ("alias-dlperf", "dlperf_usd>300", lambda o: o["dlperf_per_dphtotal"] > 300),
    ("alias-flops", "flops_usd>220", lambda o: o["flops_per_dphtotal"] > 220),
    ("alias-display", "display_active=false", lambda o: not o["gpu_display_active"]),
    ("gigabytes", "gpu_ram>=80", lambda o: o["gpu_ram"] >= 80_000),
    ("total-gigabytes", "gpu_total_ram>300", lambda o: o["gpu_total_ram"] > 300_000),
    ("cpu-gigabytes", "cpu_ram<60", lambda o: o["cpu_ram"] < 60_000),
    ("days", "duration>250", lambda o: o["duration"] > 250 * 86_400),
    ("driver", "driver_version>=580.95.05", lambda o: o["driver_vers"] >= 580_095_005),
    ("datacenter", "datacenter=true", lambda o: o["hosting_type"] == 1),
    ("os", "ubuntu_version=24.04", lambda o: o["os_version"] == "24.04"),
    ("static-ip", "static_ip=True", lambda o: o["static_ip"]),
    ("rented", "rented=False", lambda o: not o["rented"]),
    ("machine", "machine_id in [31007,31044]", lambda o: o["machine_id"] in (31_007, 31_044)),
    ("reliability", "reliability>0.995", lambda o: o["reliability"] > 0.995),
    ("compute-capability", "compute_cap>=900", lambda o: o["compute_cap"] >= 900),
    ("nothing-fits", "num_gpus=3", lambda o: o["num_gpus"] == 3),
]


@pytest.mark.parametrize(("query", "holds"), [pytest.param(text, holds, id=name) for name, text, holds in QUERIES])
def test_every_operator_and_alias_finds_exactly_the_offers_that_it_means(
    judge: Judge, query: str, holds: Callable[[Row], Any]
) -> None:
    usual = [o for o in judge.market.offers(5.0) if o["verification"] == "verified" and o["disk_space"] >= 5]
    fitting = sorted((o for o in usual if holds(o)), key=lambda o: -o["score"])
    assert [o["id"] for o in judge.raw("search", "offers", query)] == [o["id"] for o in fitting[:64]]
    assert len(fitting) < len(usual) or "display_active" in query or "rented" in query


@pytest.mark.parametrize(
    ("order", "key"),
    [
        pytest.param("dph_total", lambda o: o["dph_total"], id="ascending"),
        pytest.param("dph-", lambda o: -o["dph_total"], id="descending-by-an-alias"),
        pytest.param("num_gpus,total_flops-", lambda o: (o["num_gpus"], -o["total_flops"]), id="two-columns"),
    ],
)
def test_offers_come_in_the_order_that_was_asked_for(judge: Judge, order: str, key: Callable[[Row], Any]) -> None:
    offers = judge.raw("search", "offers", "-o", order)
    assert offers == sorted(offers, key=key)
    assert len(offers) == 64


def test_without_verified_the_others_come_too_and_the_table_prints_them(judge: Judge) -> None:
    offers = judge.raw("search", "offers", "verified=any")
    assert {offer["verification"] for offer in offers} > {"verified"}
    table = judge.run("search", "offers", "num_gpus=8", "--limit", "3").out
    shown = [offer for offer in judge.market.offers() if str(offer["id"]) in table]
    assert [offer["num_gpus"] for offer in shown] == [8, 8, 8]
    assert all(offer["gpu_name"].replace(" ", "_") in table for offer in shown)


def test_what_search_refuses_is_said_in_the_markets_words(judge: Judge) -> None:
    said = judge.run("search", "offers", "flavour=sweet")
    assert "Unrecognized field: flavour" in said.err
    assert "flavour is not a valid search key" in said.err
    judge.market.fail("search_quota")
    before = len(judge.market.requests)
    said = judge.run("search", "offers")
    assert "Daily search quota exceeded. Resets at " in said.err
    assert "00:00 UTC" in said.err
    assert len(judge.market.requests) == before + 1


# Create

CREATES = [
    pytest.param(
        (
            *("--disk", "60", "--label", "demo-1", "--ssh", "--direct"),
            *("--env", "-p 8000:8000 -e HF_TOKEN=hf_x -e MODEL_ID=Qwen/Qwen2.5-0.5B-Instruct -h myhost -v V.1:/data"),
            *("--onstart-cmd", "env >> /dev/null; echo hi", "--cancel-unavail"),
        ),
        {
            "env": {
                "-p 8000:8000": "1",
                "HF_TOKEN": "hf_x",
                "MODEL_ID": "Qwen/Qwen2.5-0.5B-Instruct",
                "-h": "myhost",
                "-v V.1:/data": "1",
            },
            "label": "demo-1",
            "onstart": "env >> /dev/null; echo hi",
            "cancel_unavail": True,
            "runtype": "ssh_direc ssh_proxy",
        },
        {"22/tcp", "8000/tcp"},
        id="direct-ssh",
    ),
    pytest.param(
        (
            *("--disk", "60", "--label", "demo-2", "--env", "-p 8000:8000/tcp -p 8001:8001/udp"),
            *("--args", "--model", "Qwen/Qwen2.5-0.5B-Instruct", "--port", "8000"),
        ),
        {
            "env": {"-p 8000:8000/tcp": "1", "-p 8001:8001/udp": "1"},
            "label": "demo-2",
            "runtype": "args",
            "args": ["--model", "Qwen/Qwen2.5-0.5B-Instruct", "--port", "8000"],
        },
        {"8000/tcp"},
        id="args",
    ),
    pytest.param(
        ("--disk", "60", "--bid_price", "120", "--entrypoint", "true", "--login", "-u u -p p ghcr.io"),
        {"price": 120.0, "onstart": "true", "image_login": "-u u -p p ghcr.io", "runtype": "ssh"},
        set(),
        id="interruptible",
    ),
    pytest.param(
        ("--jupyter", "--direct", "--jupyter-lab"),
        {"disk": 10, "use_jupyter_lab": True, "runtype": "jupyter_direc ssh_direc ssh_proxy"},
        {"22/tcp"},
        id="jupyter",
    ),
]


@pytest.mark.parametrize(("words", "change", "ports"), CREATES)
def test_create_sends_what_the_reference_says_and_rents_that(
    judge: Judge, words: tuple[str, ...], change: dict[str, Any], ports: set[str]
) -> None:
    offer = judge.offer()
    # `--args` swallows every word behind it, `--raw` too.
    create = ("create", "instance", offer["id"], "--raw", "--image", IMAGE, *words)
    created = judge.run(*create).value
    assert set(created) == {"success", "new_contract", "instance_api_key"}
    assert judge.sent()[-1] == ("PUT", f"/api/v0/asks/{offer['id']}/", CREATE | change)
    row = judge.row(created["new_contract"])
    assert (row["label"], row["image_uuid"], row["machine_id"]) == (change.get("label"), IMAGE, offer["machine_id"])
    assert row["extra_env"] == [list(pair) for pair in change.get("env", {}).items()]
    assert row["is_bid"] is ("price" in change)
    assert row["image_args"] == change.get("args", [])
    assert set(row["ports"] or {}) == ports
    assert offer["id"] not in {left["id"] for left in judge.market.offers()}


def test_a_template_is_asked_for_as_the_reference_says_and_refused_because_none_is_played(judge: Judge) -> None:
    offer = judge.offer()
    said = judge.run("create", "instance", offer["id"], "--template_hash", "abc123", "--disk", "64")
    body = CREATE | {"image": None, "disk": 64.0, "template_hash_id": "abc123"}
    assert judge.sent()[-1] == ("PUT", f"/api/v0/asks/{offer['id']}/", body)
    assert "templates are not played here" in said.err


def test_several_are_created_stopped_started_and_destroyed_at_once(judge: Judge) -> None:
    first = judge.offer()["id"]
    second = judge.offer(num_gpus=4)["id"]
    judge.run("create", "instances", first, second, "--image", IMAGE)
    assert judge.sent()[-1] == ("POST", "/api/v0/asks/bulk/", CREATE | {
        "disk": 10, "runtype": "ssh", "ids": [first, second]
    })  # fmt: skip
    ids = [row["id"] for row in judge.market.instances]
    assert len(ids) == 2
    for verb, state in (("stop", "stopped"), ("start", "running")):
        judge.run(verb, "instances", *ids)
        assert judge.sent()[-1] == ("PUT", "/api/v0/instances/", {"state": state, "ids": ids})
        assert {row["intended_status"] for row in judge.market.instances} == {state}
    assert "destroying instance" in judge.run("destroy", "instances", *ids, "-y").out
    assert judge.sent()[-1] == ("DELETE", "/api/v0/instances/", {"instance_ids": ids})
    assert judge.market.instances == []


# Read and change


def test_show_instance_reads_one_row_by_id(judge: Judge) -> None:
    instance_id = judge.rent("--label", "mine", "--env", "-e A=b", "--ssh", "--direct")
    row = judge.raw("show", "instance", instance_id)
    last = judge.last
    assert (last["method"], last["path"]) == ("GET", f"/api/v0/instances/{instance_id}/")
    assert last["query"] == {"owner": "me"}
    assert (row["id"], row["label"], row["extra_env"]) == (instance_id, "mine", {"A": "b"})
    assert row["ports"] == judge.row(instance_id)["ports"]
    assert str(instance_id) in judge.run("show", "instance", instance_id).out


def test_an_instance_that_is_not_there(judge: Judge) -> None:
    assert judge.raw("show", "instance", 1) == {"instances": None}
    said = judge.client.run("show", "instance", 1)
    assert (said.status, said.err) == (1, "Instance 1 not found or no longer exists.\n")


def test_show_instances_lists_page_by_page(judge: Judge) -> None:
    mine, other = judge.rent("--label", "demo"), judge.rent()
    assert [row["id"] for row in judge.raw("show", "instances")] == [mine, other]
    query = {"select_filters": "{}", "order_by": '[{"col": "id", "dir": "asc"}]', "limit": "25"}
    assert (judge.last["path"], judge.last["query"]) == ("/api/v1/instances/", query)
    envelope = judge.raw("show", "instances", "--label", "demo", "--limit", "10")
    assert judge.last["query"] == query | {"select_filters": '{"label": {"in": ["demo"]}}', "limit": "10"}
    assert [row["id"] for row in envelope["instances"]] == [mine]
    assert (envelope["instances_found"], envelope["total_instances"]) == (1, 2)
    assert envelope["label_counts"] == {"demo": 1, "": 1}
    assert judge.run("show", "instances", "-q").out.split() == [str(mine), str(other)]
    first = judge.raw("show", "instances", "--limit", "1")
    rest = judge.raw("show", "instances", "--limit", "1", "--next-token", first["next_token"])
    assert ([row["id"] for row in rest["instances"]], rest["next_token"]) == ([other], None)


def test_the_table_of_instances_asks_for_filters_and_columns(judge: Judge) -> None:
    judge.rent("--label", "a-label")
    before = len(judge.market.requests)
    table = judge.run("show", "instances", "--no-color").out
    assert "Labels: a-label: 1" in table
    assert "running │ a-label" in table
    assert [path for _, path, _ in judge.sent(since=before)] == ["/api/v0/instances/filters/", "/api/v1/instances/"]
    columns = "id actual_status label num_gpus gpu_name gpu_util disk_space disk_usage disk_util volume_info dph_total"
    columns += " image_uuid start_date verification"
    assert json.loads(judge.last["query"]["select_cols"]) == columns.split()


@pytest.mark.parametrize(
    ("words", "path", "body", "says"),
    [
        pytest.param(("label", "my-label"), "", {"label": "my-label"}, "set to my-label", id="label"),
        pytest.param(("stop",), "", {"state": "stopped"}, "stopping instance", id="stop"),
        pytest.param(("start",), "", {"state": "running"}, "starting instance", id="start"),
        pytest.param(("reboot",), "reboot/", {}, "Rebooting instance", id="reboot"),
        pytest.param(("recycle",), "recycle/", {}, "Recycling instance", id="recycle"),
    ],
)
def test_changes_are_sent_as_the_reference_says_and_happen(
    judge: Judge, words: tuple[str, ...], path: str, body: dict[str, Any], says: str
) -> None:
    instance_id = judge.rent()
    verb, *more = words
    assert says in judge.run(verb, "instance", instance_id, *more).out
    assert judge.sent()[-1] == ("PUT", f"/api/v0/instances/{path}{instance_id}/", body)
    judge.market.settle()
    row = judge.row(instance_id)
    assert row["label"] == body.get("label")
    assert row["intended_status"] == body.get("state", "running")
    assert row["actual_status"] == ("exited" if verb == "stop" else "running")


def test_a_start_that_is_queued_prints_the_markets_words(judge: Judge) -> None:
    instance_id = judge.rent()
    judge.run("stop", "instance", instance_id)
    judge.market.fail("no_resources")
    assert "resources are currently unavailable" in judge.run("start", "instance", instance_id).out
    assert judge.row(instance_id)["intended_status"] == "stopped"


def test_a_bid_is_changed(judge: Judge) -> None:
    instance_id = judge.rent("--bid_price", "100")
    assert "bid price changed" in judge.run("change", "bid", instance_id, "--price", "110.5").out
    body = {"client_id": "me", "price": 110.5}
    assert judge.sent()[-1] == ("PUT", f"/api/v0/instances/bid_price/{instance_id}/", body)
    assert judge.row(instance_id)["dph_base"] == 110.5


def test_destroy_is_sent_once_and_a_second_one_finds_nothing(judge: Judge) -> None:
    instance_id = judge.rent()
    assert judge.run("destroy", "instance", instance_id, "-y").out == f"destroying instance {instance_id}.\n"
    assert judge.sent()[-1] == ("DELETE", f"/api/v0/instances/{instance_id}/", {})
    assert judge.market.instances == []
    assert f"Instance {instance_id} not found." in judge.run("destroy", "instance", instance_id, "-y").err
    assert [row["id"] for row in judge.market.ledger()["instances"] if row["to"] is None] == []


def test_charges_are_what_the_ledger_says(judge: Judge) -> None:
    instance_id = judge.rent("--label", "charged")
    judge.run("destroy", "instance", instance_id, "-y")
    charges = judge.raw("show", "invoices-v1", "--charges", "--charge-type", "instance", "--latest-first", "-l", "1")
    (charge,) = charges["results"]
    (row,) = (row for row in judge.market.ledger()["instances"] if row["id"] == instance_id)
    assert (charge["source"], charge["metadata"]["label"]) == (f"instance-{instance_id}", "charged")
    assert charge["amount"] == pytest.approx(sum(row["usd"].values()))
    # The tree that people look at shows every charge and what it consists of.
    tree = judge.run("show", "invoices-v1", "--charges", "-f", "tree", "--no-color", "-l", "100", "--full").out
    assert f"Instance {instance_id}" in tree


# Keys, logins, logs


def test_keys_of_the_account(judge: Judge, tmp_path: Path) -> None:
    assert "ssh-key created" in judge.run("create", "ssh-key", PUBLIC_KEY).out
    assert judge.sent()[-1] == ("POST", "/api/v0/ssh/", {"ssh_key": PUBLIC_KEY})
    (key,) = judge.raw("show", "ssh-keys")
    assert (judge.last["path"], key["public_key"]) == ("/api/v0/ssh/", PUBLIC_KEY)
    other = PUBLIC_KEY.replace("test@emu", "other@emu")
    judge.run("update", "ssh-key", key["id"], other)
    assert judge.sent()[-1] == ("PUT", f"/api/v0/ssh/{key['id']}/", {"id": key["id"], "ssh_key": other})
    assert judge.raw("show", "ssh-keys")[0]["public_key"] == other
    judge.run("delete", "ssh-key", key["id"])
    assert judge.sent()[-1] == ("DELETE", f"/api/v0/ssh/{key['id']}/", {})
    assert judge.raw("show", "ssh-keys") == []
    (tmp_path / "k.pub").write_text(PUBLIC_KEY + "\n")
    # A known slip of client 1.9.1: it posts the path.
    assert "Invalid SSH key" in judge.run("create", "ssh-key", tmp_path / "k.pub").err


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_attached_key_opens_the_host_that_ssh_url_names_and_logs_tell_of_it(
    judge: Judge, tmp_path: Path, anyio_backend: str
) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519", comment="test@emu")
    (tmp_path / "k.pub").write_bytes(key.export_public_key())
    instance_id = judge.rent("--ssh", "--direct", "--onstart-cmd", "echo the container speaks")
    judge.run("attach", "ssh", instance_id, tmp_path / "k.pub")
    # The file as it is, its last line break included.
    body = {"ssh_key": key.export_public_key().decode()}
    assert judge.sent()[-1] == ("POST", f"/api/v0/instances/{instance_id}/ssh/", body)
    judge.market.settle()
    user, _, place = judge.run("ssh-url", instance_id).out.strip().removeprefix("ssh://").partition("@")
    host, _, port = place.partition(":")
    login = {"username": user, "client_keys": [key], "known_hosts": None, "config": [], "agent_path": None}
    async with asyncssh.connect(host, int(port), **login) as connection:
        assert "NVIDIA" in str((await connection.run("nvidia-smi -L", check=True)).stdout)
    before = len(judge.market.requests)
    logs = judge.run("logs", instance_id, "--tail", "50").out
    assert logs.splitlines()[:2] == ["the container speaks", "sshd: Accepted publickey for root"]
    request, *reads = judge.market.requests[before:]
    assert (request["path"], request["body"]) == (f"/api/v0/instances/request_logs/{instance_id}/", {"tail": "50"})
    assert [(read["status"], read["key_of"]) for read in reads] == [(404, "nobody"), (404, "nobody"), (200, "nobody")]
    attached = json.loads(judge.python(SHOW_KEYS, id=instance_id)["ssh_keys"])
    judge.run("detach", "ssh", instance_id, attached[0]["id"])
    assert judge.sent()[-1] == ("DELETE", f"/api/v0/instances/{instance_id}/ssh/{attached[0]['id']}/", {})
    judge.market.settle()
    with pytest.raises(asyncssh.PermissionDenied):
        await asyncssh.connect(host, int(port), **login)


def test_ssh_url_of_what_has_no_ports_yet(judge: Judge) -> None:
    instance_id = judge.rent("--ssh")
    # Client 1.9.1 meets `ports: null` unprepared; it was written for rows that lack the key.
    assert "NoneType" in judge.client.run("ssh-url", instance_id).err
    judge.market.change_quirks(unpublished_ports="absent")
    assert judge.run("ssh-url", instance_id).out == "error: ssh port not found\n"


SHOW_KEYS = """
import json, requests
reply = requests.get(f"{url}/api/v0/instances/{id}/ssh/", headers={"Authorization": f"Bearer {key}"})
print(json.dumps(reply.json()))
"""


def test_secrets(judge: Judge) -> None:
    assert "HF_TOKEN created" in judge.run("create", "env-var", "hf_token", "hf_abc").out
    assert judge.sent()[-1] == ("POST", "/api/v0/secrets/", {"key": "hf_token", "value": "hf_abc"})
    assert judge.raw("show", "env-vars") == {"HF_TOKEN": "*****"}
    assert "HF_TOKEN updated" in judge.run("update", "env-var", "HF_TOKEN", "hf_def").out
    assert "does not exist" in judge.run("update", "env-var", "OTHER", "x").err
    judge.run("delete", "env-var", "HF_TOKEN")
    assert judge.raw("show", "env-vars") == {}


# When the market says no, or nothing

ENDS = [
    pytest.param([{"kind": "offer_taken"}], 1, "no longer available", 0, id="taken"),
    pytest.param([{"kind": "insufficient_credit"}], 1, "lacks credit", 0, id="no-credit"),
    pytest.param([{"kind": "server_error", "on": "create"}], 1, "Something went wrong", 0, id="500"),
    pytest.param([{"kind": "rate_limited", "on": "create", "times": 3}], 3, "no detail message", 0, id="429-thrice"),
    pytest.param([{"kind": "rate_limited", "on": "create"}], 2, "", 1, id="429-once"),
    pytest.param(
        [{"kind": "rate_limited", "on": "create", "retry_after": 61, "form": "json"}], 1, "frequent", 0, id="429-long"
    ),
    pytest.param(
        [{"kind": "server_error", "on": "create", "status": 502, "where": "after"}],
        *(2, "no longer available", 1),
        id="502-hides-a-rent",
    ),
    pytest.param([{"kind": "reply_lost"}], 2, "no longer available", 1, id="reply-lost-hides-a-rent"),
    pytest.param([{"kind": "refused_but_rented"}], 1, "below the floor", 1, id="refused-but-rented"),
]


@pytest.mark.parametrize(("faults", "asked", "says", "rented"), ENDS)
def test_a_create_that_fails_ends_as_the_reference_says(
    judge: Judge, faults: list[dict[str, Any]], asked: int, says: str, rented: int
) -> None:
    for fault in faults:
        judge.market.fail(**fault)
    before = len(judge.market.requests)
    said = judge.run("create", "instance", judge.offer()["id"], "--image", IMAGE, "--disk", 60, "--cancel-unavail")
    assert says in said.err
    assert len(judge.market.requests) == before + asked
    assert len(judge.market.instances) == rented


def test_a_create_whose_connection_always_closes_is_sent_three_times(judge: Judge) -> None:
    judge.market.fail("request_lost", times=3)
    before = len(judge.market.requests)
    said = judge.client.run("create", "instance", judge.offer()["id"], "--image", IMAGE)
    assert (said.status, "Traceback" in said.err) == (1, True)
    assert [method for method, *_ in judge.sent(since=before)] == ["PUT"] * 3


def test_a_wrong_key_and_a_key_in_the_url(judge: Judge) -> None:
    assert "Invalid user key" in judge.run("show", "user", "--api-key", "nobodys").err
    code = "import json, requests; print(json.dumps(requests.get(f'{url}/api/v0/users/current?api_key={key}').json()))"
    assert judge.python(code)["error"] == "key_in_url"
    assert judge.last["key_in_url"]


# The SDK

SDK = """
import json
from vastai import VastAI
market = VastAI(api_key=key, server_url=url, retry=1)
"""


def test_the_sdk_searches_with_a_sentence_or_with_filters(judge: Judge) -> None:
    code = 'print(json.dumps(market.search_offers(query=query, limit=2, order="dph_total", storage=60)))'
    offers = judge.python(SDK + code, query="gpu_name=RTX_4090 num_gpus=1")
    common = {"order": [["dph_total", "asc"]], "type": "on-demand", "limit": 2, "allocated_storage": 60}
    words = {"gpu_name": {"eq": "RTX 4090"}, "num_gpus": {"eq": "1"}}
    assert judge.sent()[-1] == ("POST", "/api/v0/bundles/", {**DEFAULTS, **words, **common})
    assert judge.last["user_agent"] == "vastai-sdk/1.9.1"
    assert [(offer["gpu_name"], offer["num_gpus"]) for offer in offers] == [("RTX 4090", 1)] * 2
    offers = judge.python(SDK + code, query={"gpu_name": {"eq": "RTX 4090"}})
    body = {**DEFAULTS, "rented": {"eq": False}, "gpu_name": {"eq": "RTX 4090"}, **common}
    assert judge.sent()[-1] == ("POST", "/api/v0/bundles/", body)
    assert [offer["gpu_name"] for offer in offers] == ["RTX 4090"] * 2


def test_the_sdk_creates_shows_runs_commands_and_destroys(judge: Judge) -> None:
    code = """
created = market.create_instance(id=offer, image=image, disk=60, env={"-p 8000:8000": "1", "A": "b"}, label="l",
                                 runtype="args", args=["--model", "m"], cancel_unavail=True)
id = created["new_contract"]
shown = [market.show_instance(id=id), *market.show_instances()]
market.label_instance(id=id, label="other")
stopped = market.stop_instance(id=id)
listing = market.execute(id=id, command="ls")
print(json.dumps([created, shown, stopped, listing, market.destroy_instance(id=id), market.show_instance(id=id)]))
"""
    offer = judge.offer()["id"]
    before = len(judge.market.requests)
    created, shown, stopped, listing, destroyed, after = judge.python(SDK + code, offer=offer, image=IMAGE)
    body = CREATE | {
        "env": {"-p 8000:8000": "1", "A": "b"},
        "disk": 60,
        "label": "l",
        "cancel_unavail": True,
        "runtype": "args",
        "args": ["--model", "m"],
    }
    assert judge.sent(since=before)[0] == ("PUT", f"/api/v0/asks/{offer}/", body)
    assert {row["id"] for row in shown} == {created["new_contract"]}
    assert {row["label"] for row in shown} == {"l"}
    assert (stopped["success"], destroyed["success"], after, listing) == (True, True, None, "")
    (bill,) = (row for row in judge.market.ledger()["instances"] if row["id"] == created["new_contract"])
    assert (bill["label"], bill["to"] is None) == ("other", False)


def test_the_sdk_raises_what_the_market_refuses_without_trying_again(judge: Judge) -> None:
    code = """
import requests
try:
    market.create_instance(id=1, image="img")
except requests.HTTPError as error:
    print(json.dumps([error.response.status_code, error.response.json()["msg"]]))
"""
    before = len(judge.market.requests)
    status, message = judge.python(SDK + code)
    assert (status, "no_such_ask" in message) == (404, True)
    assert len(judge.market.requests) == before + 1


def test_the_small_client_searches_rents_and_destroys(judge: Judge) -> None:
    code = """
import json
from vastai.sync.client import SyncClient
from vastai.data.query import Query
from vastai.data.instance import InstanceConfig
market = SyncClient(api_key=key, vast_server=url)
offers = market.search(Query({"gpu_name": {"eq": "RTX 4090"}, "num_gpus": {"eq": 1}}), limit=3, allocated_storage=60)
config = InstanceConfig(image=image, disk=60, label="l", runtype="ssh_direct", env={"-p 8000:8000": "1"})
rented = offers[0].create_instance(config)
market.destroy_instance(rented.id)
print(json.dumps([[offer.id for offer in offers], rented.id, rented.label, rented.machine_id, offers[0].machine_id]))
"""
    before = len(judge.market.requests)
    offers, rented, label, machine, wanted = judge.python(code, image=IMAGE)
    search, create, listed, destroy = judge.market.requests[before:]
    assert search["body"]["num_gpus"] == {"eq": 1}
    assert (len(offers), label, machine) == (3, "l", wanted)
    body = {"image": IMAGE, "disk": 60, "label": "l", "env": {"-p 8000:8000": "1"}, "runtype": "ssh_direct"}
    assert (create["path"], create["body"]) == (f"/api/v0/asks/{offers[0]}/", body)
    assert listed["path"] == "/api/v1/instances/"
    assert (destroy["method"], destroy["path"]) == ("DELETE", f"/api/v0/instances/{rented}/")
    assert (destroy["body"], destroy["headers"]["Content-Length"]) == (None, "0")
    assert judge.market.instances == []
