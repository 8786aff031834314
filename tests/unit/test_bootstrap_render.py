"""The files that are put on a machine, as text."""

import configparser
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from bootstrap.bundle import build_bundle, differing, pack
from bootstrap.door import render_door
from bootstrap.host import start
from bootstrap.onstart import CHARACTERS, render_onstart
from bootstrap.render import (
    PROGRAMS,
    cache_folder,
    fingerprint,
    render_engine_run,
    render_programs,
    render_supervisor_conf,
)
from bootstrap.steps import Engine, Identity
from dynamic_providers.lease.monitoring import WriteTarget

ENGINE = Engine("tiny@sha256:" + "ab" * 32, "tiny model", ())
IDENTITY = Identity("7", "certificate", "key", {"default": "token-a"}, "token-b", "token-c", uid="uid0")
PROGRAM_DIGESTS = {"caddy": "aa", "vmagent": "cc"}
TARGET = WriteTarget("https://metrics.example.org/api/v1/write")
ONSTART = render_onstart(timedelta(minutes=20), timedelta(minutes=25), datetime(2026, 11, 27, tzinfo=UTC))


def arguments(engine: Engine, folder: Path) -> list[str]:
    """Return what the script gives to `vllm`, a shell having read it."""
    (folder / "run").mkdir(exist_ok=True)
    tool = folder / "vllm"
    tool.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nenv >env.txt\n')
    tool.chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}"}
    script = ["bash", "-c", render_engine_run(engine)]
    done = subprocess.run(script, cwd=folder / "run", env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_vllm_serves_the_release_from_the_disk_on_a_socket(tmp_path: Path) -> None:
    given = arguments(ENGINE, tmp_path)
    assert given[:4] == ["serve", f"{tmp_path}/models/{'ab' * 32}", "--uds", "engine.sock"]
    assert given[given.index("--served-model-name") + 1] == "tiny model"
    assert not {"--max-model-len", "--tensor-parallel-size", "--trust-remote-code", "--host"} & set(given)
    environment = (tmp_path / "run/env.txt").read_text().splitlines()
    assert {"HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1", "VLLM_NO_USAGE_STATS=1", "DO_NOT_TRACK=1"} <= set(environment)


def test_compile_caches_lie_in_one_folder_of_ours_where_they_are_kept(tmp_path: Path) -> None:
    arguments(replace(ENGINE, startup_cache=True), tmp_path)
    environment = dict(line.partition("=")[::2] for line in (tmp_path / "run/env.txt").read_text().splitlines())
    for name in ("VLLM_CACHE_ROOT", "FLASHINFER_WORKSPACE_BASE", "CUDA_CACHE_PATH"):
        assert Path(environment[name]).parent == tmp_path / cache_folder(ENGINE)
    arguments(ENGINE, tmp_path)
    assert "VLLM_CACHE_ROOT" not in (tmp_path / "run/env.txt").read_text()


def test_what_is_asked_becomes_arguments_and_quotes_cannot_break_out(tmp_path: Path) -> None:
    nasty = '{"a": "$(touch pwned); `touch pwned`\'"}'
    asked = replace(ENGINE, max_model_len=8192, gpu_count=2, vllm_args=("--hf-overrides", nasty))
    given = arguments(asked, tmp_path)
    assert given[given.index("--max-model-len") + 1] == "8192"
    assert given[given.index("--tensor-parallel-size") + 1] == "2"
    assert given[-2:] == ["--hf-overrides", nasty]
    assert not list(tmp_path.rglob("pwned"))


def test_onstart_is_short_public_and_saves_what_ssh_sessions_do_not_see(tmp_path: Path) -> None:
    assert len(ONSTART) <= CHARACTERS
    environment = {"PATH": os.environ["PATH"], "GPU_WORKSPACE": str(tmp_path), "CONTAINER_ID": "7", "A": "b\nc"}
    with started(ONSTART, environment):
        pass
    saved = tmp_path / "gpu-on-demand/container.env"
    assert {b"CONTAINER_ID=7", b"A=b\nc"} <= set(saved.read_bytes().split(b"\0"))
    assert saved.stat().st_mode & 0o777 == 0o600


@contextmanager
def started(script: str, environment: Mapping[str, str]) -> Iterator[None]:
    """Run *script* as a container's start; what it leaves running ends with the block."""
    mark = {"ONSTART_TEST": uuid4().hex}
    subprocess.run(["bash", "-c", script], env={**environment, **mark}, check=True)
    try:
        yield
    finally:
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark["ONSTART_TEST"].encode() in (process / "environ").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)


def test_the_supervisor_listens_on_a_socket_alone() -> None:
    parser = configparser.RawConfigParser()
    parser.read_string(render_supervisor_conf())
    assert "inet_http_server" not in parser
    assert parser["unix_http_server"]["chmod"] == "0600"
    assert {name for name in parser.sections() if name.startswith("program:")} == {f"program:{n}" for n in PROGRAMS}


def test_what_start_keeps_is_what_the_supervisor_runs() -> None:
    assert set(start.KEPT) == PROGRAMS.keys() - {"fetch"}


@pytest.mark.parametrize("token", ["", "*", "a*", "{env.HOME}", "a b", 'a"b', "a\nb", "ä"])
def test_a_token_that_caddy_would_read_otherwise_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="token holds characters"):
        render_door(replace(IDENTITY, tokens={"default": token}))


def test_the_door_has_no_admin_interface_and_no_automatic_certificates() -> None:
    config = json.loads(render_door(IDENTITY))
    assert config["admin"]["disabled"] is True
    servers = config["apps"]["http"]["servers"]
    assert [server["automatic_https"] for server in servers.values()] == [{"disable": True}] * 2


def prints(
    engine: Engine = ENGINE, identity: Identity = IDENTITY, caddy: str = "aa", code: str = "v1"
) -> dict[str, str]:
    programs = render_programs(engine, identity, {"caddy": caddy, "vmagent": "cc"}, code)
    return {name: fingerprint(files) for name, files in programs.items()}


@pytest.mark.parametrize(
    ("changed", "starts"),
    [
        pytest.param(prints(), set(), id="nothing"),
        pytest.param(prints(replace(ENGINE, max_model_len=1)), {"engine"}, id="argument"),
        pytest.param(prints(identity=replace(IDENTITY, private_key="k")), {"door"}, id="certificate"),
        pytest.param(prints(identity=replace(IDENTITY, tokens={"a": "t"})), {"door"}, id="clients"),
        pytest.param(prints(caddy="bb"), {"door"}, id="caddy"),
        pytest.param(prints(code="v2"), {"agent"}, id="code"),
        pytest.param(prints(identity=replace(IDENTITY, usd_per_hour=1.0)), {"agent"}, id="price"),
        pytest.param(prints(replace(ENGINE, monitoring=TARGET)), {"push"}, id="monitoring"),
    ],
)
def test_a_program_is_started_anew_only_for_its_own_files(changed: dict[str, str], starts: set[str]) -> None:
    before = prints()
    assert {name for name in changed if changed[name] != before.get(name)} == starts


def test_without_vmagent_nothing_is_pushed() -> None:
    engine = replace(ENGINE, monitoring=TARGET)
    assert "push" not in render_programs(engine, IDENTITY, {"caddy": "aa"}, "v1")


def test_the_machine_computes_the_same_fingerprint(tmp_path: Path) -> None:
    files = {"run": b"exit 0\n", "Door.json": b"{}", "key.pem": b"k\n"}
    program = Path(__file__).parents[2] / "bootstrap/host/program.sh"
    for name, content in files.items():
        path = tmp_path / "bundle/door" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "run/started").mkdir(parents=True)
    environment = {"PATH": os.environ["PATH"], "LANG": "en_US.UTF-8"}
    subprocess.run(["bash", str(program), "door"], cwd=tmp_path / "run", env=environment, check=True)
    assert (tmp_path / "run/started/door").read_text().strip() == fingerprint(files)


def test_the_bundle_carries_all_that_runs_there_and_is_small() -> None:
    bundle = build_bundle(render_programs(ENGINE, IDENTITY, PROGRAM_DIGESTS, "v1"))
    assert {"host/start.py", "host/fetch.py", "host/machine.py", "host/agent.py", "agent/agent.json"} <= bundle.keys()
    assert {"supervisor/supervisord.py", "prometheus_client/exposition.py", "pynvml.py"} <= bundle.keys()
    assert {"dynamic_providers/lease/policy.py", "dynamic_providers/lease/metrics.py"} <= bundle.keys()
    assert not [path for path in bundle if "/tests/" in path or "__pycache__" in path]
    assert len(pack(bundle)) < 350_000


def test_only_what_differs_is_put_and_nobody_else_may_read_it() -> None:
    bundle = {"a": b"1", "door/b c": b"2", "new": b"3"}
    listing = "".join(
        f"{hashlib.sha256(content).hexdigest()}  ./{path}\n"
        for path, content in {"a": b"1", "door/b c": b"old", "stray": b""}.items()
    )
    missing = differing(bundle, listing)
    assert missing == {"door/b c": b"2", "new": b"3"}
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(pack(missing)))) as tar:
        assert {(info.name, info.mode) for info in tar} == {("door/b c", 0o600), ("new", 0o600)}


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_the_scripts_are_valid_shell() -> None:
    programs = render_programs(replace(ENGINE, monitoring=TARGET), IDENTITY, PROGRAM_DIGESTS, "v1")
    switch = Path(start.__file__).with_name("switch.sh").read_text()
    scripts = [ONSTART, switch, *(files["run"].decode() for files in programs.values())]
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
