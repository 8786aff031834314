"""What vmagent on a machine is started from."""

import json
import re
import shlex
from typing import Any

import pytest

from bootstrap.push import DROPPED, PAGES, render_push
from dynamic_providers.lease.monitoring import WriteTarget
from dynamic_providers.lease.register import NOT_PUSHED, PUSH_LABELS

LABELS = dict(zip(PUSH_LABELS, ("gpu-on", "org/a-model:v1.2", "7", "55", "uid0"), strict=True))
URL = "https://metrics.example:8427/api/v1/write"


def rendered(ca_certificate: str | None = None, vmagent: str = "../bin/vmagent-ab") -> dict[str, str]:
    return render_push(
        WriteTarget(URL, ca_certificate), labels=LABELS, scrape_token="sesame", ca_certificate="FLEET", vmagent=vmagent
    )


def command(files: dict[str, str]) -> list[str]:
    return shlex.split(files["run"].splitlines()[-1])


def jobs(files: dict[str, str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(files["scrape.yaml"])["scrape_configs"]
    return found


def test_it_becomes_vmagent_wherever_that_lies() -> None:
    assert command(rendered(vmagent="../bin/a b"))[:2] == ["exec", "../bin/a b"]


def test_it_listens_nowhere_and_shows_the_machines_own_certificate() -> None:
    words = command(rendered())
    assert "-httpListenAddr=" in words
    assert f"-remoteWrite.url={URL}" in words
    assert "-remoteWrite.tlsCertFile=../bundle/door/certificate.pem" in words
    assert "-remoteWrite.tlsKeyFile=../bundle/door/key.pem" in words


@pytest.mark.parametrize(("own", "named"), [(None, False), ("WRITE", True)], ids=["public-ca", "own-ca"])
def test_the_receivers_authority_is_named_only_where_it_has_one_of_its_own(own: str | None, named: bool) -> None:
    files = rendered(own)
    assert files["write-ca.pem"] == (own or "")
    assert ("-remoteWrite.tlsCAFile=../bundle/push/write-ca.pem" in command(files)) is named


def test_the_same_files_whatever_the_receiver() -> None:
    assert rendered().keys() == rendered("WRITE").keys()


def test_no_secret_stands_where_processes_are_listed() -> None:
    files = rendered("WRITE")
    assert [name for name, text in files.items() if "sesame" in text] == ["scrape-token"]


def test_each_page_is_read_through_the_front_door_which_is_known_by_the_uid() -> None:
    found = jobs(rendered())
    assert {job["job_name"]: job["metrics_path"] for job in found} == PAGES
    for job in found:
        assert job["scheme"] == "https"
        assert job["tls_config"] == {"ca_file": "ca.pem", "server_name": "uid0"}
        assert job["authorization"]["credentials_file"] == "scrape-token"
    assert rendered()["ca.pem"] == "FLEET"


def test_everything_carries_the_labels_of_its_machine() -> None:
    assert json.loads(rendered()["scrape.yaml"])["global"]["external_labels"] == LABELS
    assert {target["labels"]["instance"] for job in jobs(rendered()) for target in job["static_configs"]} == {"7"}


@pytest.mark.parametrize(
    ("name", "dropped"),
    [
        *((name, True) for name in NOT_PUSHED),
        ("vllm:prompt_tokens_created", True),
        ("vllm:prompt_tokens_total", False),
        ("vllm:cache_config_info_total", False),
        ("created", False),
    ],
)
def test_what_is_of_no_use_elsewhere_stays(name: str, dropped: bool) -> None:
    # Anchored at both ends, as vmagent reads it.
    assert bool(re.fullmatch(DROPPED, name)) is dropped
    assert all(
        rule["regex"] == DROPPED and rule["action"] == "drop"
        for job in jobs(rendered())
        for rule in job["metric_relabel_configs"]
    )
