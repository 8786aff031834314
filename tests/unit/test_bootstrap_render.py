"""The files that are put on a machine, as text."""

import configparser
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from bootstrap.bundle import build_bundle, differing, pack
from bootstrap.door import render_door
from bootstrap.render import (
    ONSTART_CHARACTERS,
    cache_folder,
    fingerprint,
    render_engine_run,
    render_onstart,
    render_programs,
    render_supervisor_conf,
)
from bootstrap.steps import Engine, Identity

ENGINE = Engine("tiny@sha256:" + "ab" * 32, "tiny model", ())
IDENTITY = Identity("7", "certificate", "key", {"default": "token-a"}, "token-b", "token-c")


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
    script = render_onstart()
    assert len(script) <= ONSTART_CHARACTERS / 2  # the switch is to fit in beside it
    environment = {"PATH": os.environ["PATH"], "GPU_WORKSPACE": str(tmp_path), "CONTAINER_ID": "7", "A": "b\nc"}
    subprocess.run(["bash", "-c", script], env=environment, check=True)
    saved = tmp_path / "gpu-on-demand/container.env"
    assert {b"CONTAINER_ID=7", b"A=b\nc"} <= set(saved.read_bytes().split(b"\0"))
    assert saved.stat().st_mode & 0o777 == 0o600


def test_the_supervisor_listens_on_a_socket_alone() -> None:
    parser = configparser.RawConfigParser()
    parser.read_string(render_supervisor_conf())
    assert "inet_http_server" not in parser
    assert parser["unix_http_server"]["chmod"] == "0600"
    assert {name for name in parser.sections() if ":" in name} >= {"program:fetch", "program:door", "program:engine"}


@pytest.mark.parametrize("token", ["", "*", "a*", "{env.HOME}", "a b", 'a"b', "a\nb", "ä"])
def test_a_token_that_caddy_would_read_otherwise_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="token holds characters"):
        render_door(replace(IDENTITY, tokens={"default": token}))


def test_the_door_has_no_admin_interface_and_no_automatic_certificates() -> None:
    config = json.loads(render_door(IDENTITY))
    assert config["admin"]["disabled"] is True
    servers = config["apps"]["http"]["servers"]
    assert [server["automatic_https"] for server in servers.values()] == [{"disable": True}]


def test_a_program_is_started_anew_only_for_its_own_files() -> None:
    def prints(engine: Engine, identity: Identity, caddy: str) -> dict[str, str]:
        return {name: fingerprint(files) for name, files in render_programs(engine, identity, caddy).items()}

    before = prints(ENGINE, IDENTITY, "aa")
    assert prints(ENGINE, IDENTITY, "aa") == before
    longer = prints(replace(ENGINE, max_model_len=1), IDENTITY, "aa")
    assert (longer["door"] == before["door"], longer["engine"] == before["engine"]) == (True, False)
    for other in (prints(ENGINE, replace(IDENTITY, private_key="k"), "aa"), prints(ENGINE, IDENTITY, "bb")):
        assert (other["door"] == before["door"], other["engine"] == before["engine"]) == (False, True)


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


def test_the_bundle_carries_the_supervisor_and_ours_and_is_small() -> None:
    bundle = build_bundle(ENGINE, IDENTITY, "aa")
    assert {"host/start.py", "host/fetch.py", "host/machine.py", "supervisor/supervisord.py"} <= bundle.keys()
    assert not [path for path in bundle if "/tests/" in path or "__pycache__" in path]
    assert len(pack(bundle)) < 250_000


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
    programs = render_programs(ENGINE, IDENTITY, "aa")
    scripts = [render_onstart(), *(files["run"].decode() for files in programs.values())]
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
