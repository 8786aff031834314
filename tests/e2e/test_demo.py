"""`make demo` as somebody who has just cloned the repository runs it."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.engines import ENGINES
from tests.sandbox.hosts.processes import find_processes
from tests.sandbox.second_shell import in_second_shell, processes_in
from tests.sandbox.world import ROOT

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


def demo(folder: Path, **switches: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sandbox.demo", "--folder", str(folder)],
        cwd=ROOT,
        env={**os.environ, **switches},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("is_stand_in", ENGINES)
def test_the_demo_goes_from_nothing_to_first_token_and_back(tmp_path: Path, is_stand_in: bool) -> None:
    with demo(tmp_path / "s", STANDIN="1" if is_stand_in else "") as process:
        said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    typed = [line.removeprefix("$ ") for line in said.splitlines() if line.startswith("$ ")]
    assert [line.split()[:2] for line in typed if line.startswith("pulumi")] == [
        ["pulumi", "preview"],
        ["pulumi", "up"],
        ["pulumi", "destroy"],
    ]
    asked = next(line for line in typed if line.startswith("curl") and "/v1/" in line)
    assert f"    {asked}\n" in said, "the curl line is the very one that `up` printed"
    for words in ("turned away", "first token", "billing stopped", "The model goes on:", "✓ no instance is left"):
        assert words in said
    assert "\033[" not in said, "colours belong on terminals only"
    assert not processes_in(tmp_path)


def test_keep_leaves_it_up_and_says_how_to_stop_it(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with demo(folder, KEEP="1") as process:
        said, _ = process.communicate(timeout=240)
    pid = int((folder / "lock").read_text())
    try:
        assert process.returncode == 0, said
        assert f"kill {pid}" in said
        market = in_second_shell(folder, "echo $VAST_URL").stdout.strip()
        with urllib.request.urlopen(f"{market}/sandbox/ledger", timeout=10) as answer:
            assert [row["to"] for row in json.load(answer)["instances"]] == [None]
        destroyed = in_second_shell(folder, "pulumi destroy -y -s gpu-on")
        assert "billing stopped" in destroyed.stdout + destroyed.stderr
    finally:
        os.kill(pid, signal.SIGTERM)


def test_an_interrupted_demo_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with demo(folder) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.lstrip().startswith("scheduled"):  # a machine is rented and boots
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130
    assert not (folder / "env").exists()
    assert not processes_in(tmp_path)
    assert not find_processes(f"{folder}/demo"), "the engine's providers are in process groups of their own"
