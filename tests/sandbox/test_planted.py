"""The search for planted secrets finds one wherever it is planted; that there are none is tests/e2e's to say."""

import base64
import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from dynamic_providers.lease.certificates import ssh_keypair
from tests.sandbox.hosts.processes import MARK
from tests.sandbox.planted import ProcessWatch, Secret, files_in, find, requests_of
from tests.sandbox.vast.server import VastEmulator

CANARY = Secret.of_text("canary", "p&ss wörd/+=?")
TEXT = CANARY.value.decode()
SPELLINGS: dict[str, Callable[[bytes], bytes]] = {
    "raw": lambda value: value,
    "base64": base64.b64encode,
    "base64-within": lambda value: base64.b64encode(b'{"key": "' + value + b'"}'),
    "base64-within-urlsafe": lambda value: base64.urlsafe_b64encode(b"token:" + value + b"!"),
    "hex": lambda value: value.hex().encode(),
    "url": lambda value: quote(value, safe="").encode(),
    "json": lambda value: json.dumps(value.decode()).encode(),
    "json-of-go": lambda value: value.replace(b"&", b"\\u0026"),
    "json-within-json": lambda value: json.dumps(json.dumps("a\n" + value.decode())).encode(),
    "broken-over-lines": lambda value: base64.encodebytes(b"." * 50 + value + b"." * 50),
    "packed": lambda value: base64.b64encode(gzip.compress(b"#!/bin/sh\nkey='" + value + b"'\n" * 99)),
}


@pytest.fixture(scope="module")
def market() -> Iterator[VastEmulator]:
    with VastEmulator() as running:
        yield running


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_secret_is_found_however_it_is_spelt(spelling: str) -> None:
    data = b"before " + SPELLINGS[spelling](CANARY.value) + b" after"
    assert find([CANARY], {"there": data}) == ["canary in there"]
    assert find([Secret.of_text("other", TEXT[::-1])], {"there": data}) == []


@pytest.mark.parametrize("spelling", ["raw", "base64", "url"])
@pytest.mark.parametrize(
    "place",
    [
        pytest.param({"path": "/api/v0/%s/"}, id="path"),
        pytest.param({"params": {"q": "%s"}}, id="query"),
        pytest.param({"headers": {"X-Note": "%s"}}, id="header"),
        pytest.param({"json": {"label": "%s"}}, id="label"),
        pytest.param({"json": {"env": {"-e KEY": "%s"}}}, id="env"),
        pytest.param({"json": {"onstart": "echo %s"}}, id="onstart"),
        pytest.param({"json": {"args": ["--key", "%s"]}}, id="args"),
        pytest.param({"content": "no JSON, but %s"}, id="text"),
    ],
)
def test_it_is_found_in_whatever_a_market_is_sent(market: VastEmulator, place: dict[str, Any], spelling: str) -> None:
    secret = Secret.of_text("canary", "p&ssword/+=?")
    word = SPELLINGS[spelling](secret.value).decode()
    request: dict[str, Any] = json.loads(json.dumps(place).replace("%s", word))
    path = request.pop("path", "/api/v0/asks/1/")
    httpx.put(f"{market.url}{quote(path, safe='/%')}", trust_env=False, timeout=5, **request)
    (found,) = find([secret], requests_of(market.requests[-1:]))
    assert found.startswith("canary in request 0, PUT /api/v0/")


def test_the_market_keeps_no_key_of_a_request_that_bears_it_where_it_belongs(market: VastEmulator) -> None:
    headers = {"Authorization": f"Bearer {market.api_key}"}
    httpx.get(f"{market.url}/api/v0/users/current/", headers=headers, trust_env=False).raise_for_status()
    key = Secret.of_text("account key", market.api_key)
    assert find([key], requests_of(market.requests[-1:])) == []
    assert find([key], {"a log": json.dumps(headers).encode()}) == ["account key in a log"]


@pytest.mark.parametrize("spelling", ["raw", "base64", "url"])
def test_it_is_found_in_a_file_and_in_a_files_name(tmp_path: Path, spelling: str) -> None:
    secret = Secret.of_text("canary", "a-token-of-32-letters")
    word = SPELLINGS[spelling](secret.value).decode()
    folder = tmp_path / "state"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "plain.json").write_text("{}")
    (folder / "deep" / "state.json").write_text(json.dumps({"outputs": {"token": word}}))
    (folder / f"backup-{word}").write_text("{}")
    assert find([secret], files_in(folder)) == [
        f"canary in state/backup-{word}",
        "canary in state/deep/state.json",
    ]


@pytest.mark.parametrize("spelling", ["raw", "base64", "url"])
@pytest.mark.parametrize("place", ["an argument", "the environment"])
def test_it_is_found_in_what_runs(tmp_path: Path, place: str, spelling: str) -> None:
    word = SPELLINGS[spelling](CANARY.value).decode()
    arguments = [word] if place == "an argument" else []
    variables = {"KEY": word} if place == "the environment" else {}
    with ProcessWatch(tmp_path) as watch:
        subprocess.run(
            [sys.executable, "-c", "import time; time.sleep(0.3)", *arguments],
            env={MARK: f"{tmp_path}/28400001", **variables},
            check=True,
        )
    assert any(found.startswith(f"canary in {place} of") for found in find([CANARY], watch.places))


def test_the_environment_of_what_runs_beside_a_machine_is_its_owners(tmp_path: Path) -> None:
    with ProcessWatch(tmp_path) as watch:
        subprocess.run([sys.executable, "-c", "import time; time.sleep(0.1)"], env={"KEY": TEXT}, check=True)
    assert watch.arguments
    assert find([CANARY], watch.places) == []


def test_a_private_key_is_found_in_any_file_format() -> None:
    private, public = ssh_keypair("5a" * 32, "0123456789ab")
    key = Secret.of_key("SSH key", private)
    assert find([key], {"file": private.encode()}) == ["SSH key in file"]
    assert find([key], {"state": json.dumps({"inputs": {"key": private}}).encode()}) == ["SSH key in state"]
    assert find([key], {"request": public.encode()}) == []
