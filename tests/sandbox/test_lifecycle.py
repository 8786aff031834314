"""The life of a machine on hosts with real SSH, supervisor, Caddy and TLS; the model server is the stub."""

import asyncio
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from bootstrap import remote
from dynamic_providers.errors import BootError, BootstrapError
from dynamic_providers.lease import keys
from dynamic_providers.lease.certificates import make_ca, ssh_keypair
from dynamic_providers.lease.label import Phase
from dynamic_providers.vast.rent import give_back
from tests.sandbox.clocks import SwiftClock
from tests.sandbox.hosts.processes import find_processes
from tests.sandbox.stage import UID, Bucket, Machine, Stage, WatchedHosts, open_stage

ROOT = Path(__file__).resolve().parents[2]
QUESTION = {"model": "tiny", "prompt": "Hello", "max_tokens": 20}

# One machine for many claims


@dataclass
class Home:
    """A market with one machine on it, for tests that leave it as it was or say that they do not."""

    stage: Stage
    machine: Machine | None = None


@pytest.fixture(scope="module", autouse=True)
def quick_looks() -> Iterator[None]:
    """Look after what goes on more often than a real machine needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "LOOK_SECONDS", 0.15)
        yield


@pytest.fixture(scope="module")
def home(bucket: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    hosts = WatchedHosts(tmp_path_factory.mktemp("home") / "hosts", bucket.host_environment)
    with open_stage(bucket, hosts, SwiftClock()) as stage:
        yield Home(stage)
        for instance in stage.show():
            give_back(stage.world, instance)


@pytest.fixture
def served(home: Home) -> Iterator[Machine]:
    """Return a machine that serves `tiny`; what is done to it leaves it so."""
    if home.machine is None:  # adopts what an earlier test has left, and puts it right
        home.machine = home.stage.create()
    yield home.machine
    assert len(home.stage.show()) <= 1


@pytest.fixture
def changed(home: Home, served: Machine) -> Iterator[Machine]:
    """Return the same machine, to do with as one likes."""
    yield served
    home.machine = None


@dataclass
class Client:
    """Asks a machine from outside, with the path exactly as it is given."""

    machine: Machine
    token: str | None
    context: ssl.SSLContext | None = None

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        context = self.context or ssl.create_default_context(cadata=self.machine.request.fleet.ca_certificate)
        host, _, port = self.machine.outputs["endpoint"].removeprefix("https://").partition(":")
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        with closing(http.client.HTTPSConnection(host, int(port), context=context, timeout=10)) as connection:
            connection.request(method, path, json.dumps(body) if body else None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def completes(self, model: str) -> bool:
        status, text = self.ask("POST", "/v1/completions", QUESTION | {"model": model})
        return status == 200 and bool(json.loads(text)["choices"][0]["text"])


def client_of(machine: Machine, name: str = "default") -> Client:
    return Client(machine, machine.outputs["tokens"][name])


def hosts_of(stage: Stage) -> WatchedHosts:
    assert isinstance(stage.market.hosts, WatchedHosts)
    return stage.market.hosts


def workspace(machine: Machine) -> Path:
    return hosts_of(machine.stage).workspace(machine.id)


def pids(machine: Machine) -> dict[str, int]:
    """Return the processes of the machine that matter, by what they are."""
    found = {}
    for pid in find_processes(f"{hosts_of(machine.stage).root}/{machine.id}"):
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        for name, word in (("door", "bundle/door/door.json"), ("engine", "engine.sock"), ("supervisor", "start.py")):
            if any(word in w for w in words):
                found[name] = pid
    return found


def files(machine: Machine) -> dict[str, tuple[int, int]]:
    """Return what lies there but logs, caches and notes of what runs: inode and time of the last change."""
    root = workspace(machine)
    paths = [path for part in ("bin", "blobs", "models", "bundle") for path in (root / part).rglob("*")]
    stats = {str(p.relative_to(root)): p.stat() for p in paths if p.is_file() and "__pycache__" not in p.parts}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in stats.items()}


# The front door, seen from outside


@pytest.mark.parametrize(
    ("token", "method", "path", "status"),
    [
        pytest.param("client", "GET", "/v1/models", 200, id="client-token"),
        pytest.param("none", "GET", "/v1/models", 401, id="no-token"),
        pytest.param("wrong", "GET", "/v1/models", 401, id="wrong-token"),
        pytest.param("next", "GET", "/v1/models", 401, id="token-of-the-next-machine"),
        pytest.param("other-client", "GET", "/v1/models", 401, id="token-of-a-client-that-is-not-named"),
        pytest.param("client", "GET", "/health", 200, id="health"),
        pytest.param("client", "POST", "/invocations", 404, id="invocations"),
        pytest.param("client", "POST", "/tokenize", 404, id="tokenize"),
        pytest.param("client", "GET", "/docs", 404, id="docs"),
        pytest.param("client", "GET", "//v1/models", 404, id="double-slash"),
        pytest.param("client", "POST", "/v1/../invocations", 404, id="dots"),
        pytest.param("client", "GET", "/metrics", 404, id="the-engines-own-metrics"),
        pytest.param("client", "GET", "/metrics/vllm", 401, id="metrics-with-client-token"),
        pytest.param("scrape", "GET", "/metrics/vllm", 200, id="metrics-with-scrape-token"),
        pytest.param("scrape", "GET", "/control/state", 401, id="state-with-scrape-token"),
        pytest.param("control", "GET", "/control/state", 200, id="state-with-control-token"),
        pytest.param("control", "GET", "/v1/models", 401, id="models-with-control-token"),
    ],
)
def test_the_front_door(served: Machine, token: str, method: str, path: str, status: int) -> None:
    fleet = served.request.fleet
    tokens = {
        "client": served.outputs["client_token"],
        "none": None,
        "wrong": "wrong",
        "next": keys.client_token(fleet.sign, UID, served.id + 1, "default"),
        "other-client": keys.client_token(fleet.sign, UID, served.id, "ci"),
        "scrape": keys.scrape_token(fleet.observe, UID, served.id),
        "control": keys.control_token(fleet.observe, UID, served.id),
    }
    assert Client(served, tokens[token]).ask(method, path)[0] == status


def test_a_completion_comes_whole_or_streamed(served: Machine) -> None:
    assert client_of(served).completes("tiny")
    status, text = client_of(served).ask("POST", "/v1/completions", QUESTION | {"stream": True})
    assert status == 200
    assert len(re.findall("^data: {", text, re.MULTILINE)) > 5
    assert text.endswith("data: [DONE]\n\n")


def test_the_machine_says_what_is_applied(served: Machine) -> None:
    token = keys.control_token(served.request.fleet.observe, UID, served.id)
    state = json.loads(Client(served, token).ask("GET", "/control/state")[1])
    assert (state["settings"], state["instance"]) == (served.outputs["applied"], str(served.id))
    assert (state["armed"], state["in_flight"]) == (True, 0)
    for _ in range(200):  # what its agent last saw may be a look old
        if state["engine"]["state"] == "running":
            break
        time.sleep(0.1)
        state = json.loads(Client(served, token).ask("GET", "/control/state")[1])
    assert state["engine"]["state"] == "running"


def a_strangers_authority() -> str:
    return make_ca("22" * 32, datetime.now(UTC))


def test_the_certificate_holds_for_this_fleet_and_this_address_alone(served: Machine) -> None:
    for authority in (None, a_strangers_authority()):
        with pytest.raises(ssl.SSLCertVerificationError, match="CERTIFICATE_VERIFY_FAILED"):
            Client(served, None, ssl.create_default_context(cadata=authority)).ask("GET", "/health")
    ours = ssl.create_default_context(cadata=served.request.fleet.ca_certificate)
    place = (served.instance.address, served.instance.door_port)
    with socket.create_connection(place) as plain, pytest.raises(ssl.SSLCertVerificationError, match="IP address"):
        ours.wrap_socket(plain, server_hostname="127.77.254.254")
    with socket.create_connection(place) as plain, ours.wrap_socket(plain, server_hostname=UID) as tls:
        assert tls.version() == "TLSv1.3"


def test_no_secret_goes_where_strangers_look(served: Machine) -> None:
    stage, fleet, outputs = served.stage, served.request.fleet, served.outputs
    storage, private = stage.bucket.storage, (workspace(served) / "bundle/door/key.pem").read_text()
    never_there = {"sign": fleet.sign, "observe": fleet.observe, "S3 key": storage.secret_key}
    never_there["account key"] = stage.market.api_key
    of_the_machine = {
        "client token": outputs["client_token"],
        "scrape token": keys.scrape_token(fleet.observe, UID, served.id),
        "control token": keys.control_token(fleet.observe, UID, served.id),
        "TLS key": private.splitlines()[1],
        "SSH key": ssh_keypair(fleet.sign, UID)[0].splitlines()[3],
        "presigned URL": "X-Amz-Signature",
    }
    everything = never_there | of_the_machine
    marks = find_processes(f"{hosts_of(stage).root}/{served.id}")
    public = {
        "a request to the market": json.dumps(stage.market.requests),
        "what the operator was told": "\n".join(stage.said),
        "an argument": "\n".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in marks),
        "the door's log": (workspace(served) / "log/door.log").read_text(),
        "the engine's log": (workspace(served) / "log/engine.log").read_text(),
        "the download's log": (workspace(served) / "log/fetch.log").read_text(),
    }
    assert len(public["an argument"]) > 100
    assert not [request for request in stage.market.requests if request["key_in_url"]]
    assert not [(name, place) for name, s in everything.items() for place, text in public.items() if s in text]
    folder = hosts_of(stage).root / str(served.id)
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    found = [(name, path) for path in paths for name, s in never_there.items() if s.encode() in path.read_bytes()]
    assert not found


# The same machine again


def test_a_second_run_changes_nothing(served: Machine) -> None:
    before = pids(served), files(served)
    again = served.stage.create()
    assert again.id == served.id
    assert (pids(served), files(served)) == before
    assert set(before[0]) == {"door", "engine", "supervisor"}
    assert len(before[1]) > 20
    assert again.phase is Phase.READY
    same = ("endpoint", "tokens", "applied", "expires_at", "ssh_host_key")
    assert [again.outputs[key] for key in same] == [served.outputs[key] for key in same]


def test_a_refresh_finds_it_unchanged(served: Machine) -> None:
    before = dict(served.outputs)
    served.stage.tell_market("reshuffle")
    assert served.read() == before
    assert served.verdict() == "unchanged"


def test_another_model_takes_its_place_on_the_same_machine(changed: Machine) -> None:
    door, engine = pids(changed)["door"], pids(changed)["engine"]
    changed.update(changed.stage.request("other"))
    assert client_of(changed).completes("other")
    assert client_of(changed).ask("POST", "/v1/completions", QUESTION)[0] == 404
    assert pids(changed)["door"] == door
    assert pids(changed)["engine"] != engine
    assert changed.read()
    assert changed.verdict() == "unchanged"
    assert changed.verdict(changed.stage.request("tiny")) == "update"


def test_other_clients_get_in_and_former_ones_do_not(changed: Machine) -> None:
    former, engine = client_of(changed), pids(changed)["engine"]
    changed.update(changed.stage.request(clients=("ci",)))
    assert client_of(changed, "ci").completes("tiny")
    assert changed.outputs["client_token"] == changed.outputs["tokens"]["ci"]
    assert former.ask("GET", "/v1/models")[0] == 401
    assert pids(changed)["engine"] == engine


def test_another_term_is_in_the_label_and_in_the_certificate(changed: Machine) -> None:
    before, engine = changed.instance.parsed, pids(changed)["engine"]
    changed.update(changed.stage.request(max_hours=12.0))
    after = changed.instance.parsed
    assert before
    assert after
    assert (after.expires_at - before.expires_at, after.phase) == (timedelta(hours=4), Phase.READY)
    leaf = x509.load_pem_x509_certificate((workspace(changed) / "bundle/door/certificate.pem").read_bytes())
    assert leaf.not_valid_after_utc == after.expires_at + timedelta(days=1)
    assert pids(changed)["engine"] == engine
    assert client_of(changed).completes("tiny")


def test_a_bad_argument_fails_and_the_former_model_serves_again(changed: Machine) -> None:
    label = changed.instance.parsed
    with pytest.raises(BootstrapError, match="unrecognized arguments: --no-such-flag"):
        changed.update(changed.stage.request(vllm_args=("--no-such-flag",)))
    assert client_of(changed).completes("tiny")
    assert changed.read()
    assert changed.verdict() == "unchanged"
    after = changed.instance.parsed
    assert label
    assert after
    assert (after.expires_at, after.phase) == (label.expires_at, Phase.READY)


def test_a_spoilt_model_fails_by_name_and_the_former_one_serves_again(changed: Machine) -> None:
    with pytest.raises(BootstrapError, match=r"model\.safetensors: .* is not what its manifest says"):
        changed.update(changed.stage.request("spoilt"))
    assert client_of(changed).completes("tiny")
    assert changed.verdict() == "unchanged"


def power_off(machine: Machine) -> None:
    """End everything on the host, its SSH server too; the market has not noticed."""
    loop = machine.stage.market._loop
    asyncio.run_coroutine_threadsafe(hosts_of(machine.stage).stop(machine.id), loop).result(10)


def test_a_host_that_vanishes_under_an_update_is_kept_until_it_is_known_to_be_gone(changed: Machine) -> None:
    power_off(changed)
    changed.request = changed.stage.request(boot_minutes=0.1)  # nobody waits four minutes for SSH here
    with pytest.raises(BootstrapError, match=r"(?s)ssh: no login.*the former settings do not come back either"):
        changed.update(changed.stage.request("other", boot_minutes=0.1))
    assert changed.read()
    assert not changed.outputs["is_stopped"]
    assert changed.instance.id == changed.id
    changed.stage.tell_market(f"instances/{changed.id}", do="stop")
    assert changed.read()
    assert changed.outputs["is_stopped"]
    assert changed.verdict() == "replace"


# The end


@pytest.mark.parametrize("is_dead", [False, True], ids=["alive", "host-dead"])
def test_a_machine_goes_back_and_the_receipt_is_the_ledgers(changed: Machine, is_dead: bool) -> None:
    if is_dead:
        power_off(changed)
    changed.delete()
    assert not changed.stage.show()
    row = next(row for row in changed.stage.market.ledger()["instances"] if row["id"] == changed.id)
    match = re.search(rf"instance {changed.id} is destroyed, billing stopped: ([\d.]+) USD", changed.stage.said[-1])
    assert match
    assert float(match[1]) == pytest.approx(sum(row["usd"].values()), abs=1e-4)
    changed.stage.market.settle()
    assert not find_processes(f"{hosts_of(changed.stage).root}/")


# From nothing


@pytest.mark.parametrize(
    ("change", "error", "said", "left"),
    [
        pytest.param(
            {"release": "spoilt"},
            BootstrapError,
            r"weights: model\.safetensors: .* is not what its manifest says",
            "config.json",
            id="spoilt-model",
        ),
        pytest.param(
            {"vllm_args": ("--no-such-flag",)},
            BootstrapError,
            "unrecognized arguments: --no-such-flag",
            "model.safetensors",
            id="bad-argument",
        ),
    ],
)
def test_what_does_not_run_here_runs_nowhere_and_goes_back_at_once(
    stage: Stage, change: dict[str, Any], error: type[Exception], said: str, left: str
) -> None:
    with pytest.raises(error, match=said):
        stage.create(stage.request(**change))
    (instance_id,) = hosts_of(stage).left
    release = stage.bucket.releases[change.get("release", "tiny")]
    blob = next(file.sha256 for file in release.files if file.path == left)
    assert f"blobs/{blob}" in hosts_of(stage).left[instance_id]


def test_a_host_that_lies_about_its_gpu_gets_not_a_byte(stage: Stage) -> None:
    stage.market.fail("wrong_gpu", where="machine")
    with pytest.raises(BootError, match=r"the machine itself reports NVIDIA GeForce RTX 3060 \(12288 MiB\)"):
        stage.create(stage.request(attempts=1))
    stage.market.settle()
    (left,) = hosts_of(stage).left.values()
    assert left == {"container.env", "switch.log"}


KILLED_AT = (
    "bootstrap.weights._fetch",  # the bundle is there
    "bootstrap.weights._follow",  # the download goes on without us
    "bootstrap.ready.first_token",  # all is up, the label still says booting
)


def test_killed_wherever_it_may_be_the_next_run_goes_on(stage: Stage) -> None:
    request = stage.request()
    job = {"url": stage.market.url, "key": stage.market.api_key, "props": request.to_props()}
    seen = set()
    for point in KILLED_AT:
        done = subprocess.run(
            [sys.executable, "-m", "tests.sandbox.killed_create"],
            input=json.dumps(job | {"kill_at": point}),
            env={**os.environ, **stage.bucket.storage.environment},
            cwd=ROOT,
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == -9, done.stderr
        (instance,) = stage.show()
        assert instance.parsed
        assert instance.parsed.phase is Phase.BOOTING
        seen.add(instance.id)
    machine = stage.create()
    assert seen == {machine.id}
    assert len(stage.rents) == 1
    assert client_of(machine).completes("tiny")
    assert (machine.phase, machine.verdict()) == (Phase.READY, "unchanged")
    machine.delete()
