"""The sandbox as its user meets it: `python -m tests.sandbox` in one shell, commands in another."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.hosts.processes import find_processes
from tests.sandbox.second_shell import in_second_shell, processes_in
from tests.sandbox.world import ROOT, stack_models


def stand_up(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sandbox", "--folder", str(folder), "--boot-seconds", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_env(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not (folder / "env").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the sandbox never stood"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("s")
    with stand_up(folder) as process:
        try:
            wait_for_env(folder, process)
            yield folder
        finally:
            process.terminate()
            process.communicate(timeout=20)


def test_a_stack_stands_for_each_shipped_file_and_its_model_is_in_the_bucket(folder: Path) -> None:
    listed = in_second_shell(folder, "pulumi stack ls")
    assert listed.returncode == 0, listed.stderr
    assert all(stack in listed.stdout for stack in stack_models(ROOT))
    for stack in ("gpu-on", "gpu-embed"):  # that the market has machines for the others is test_stacks' to say
        preview = in_second_shell(folder, f"pulumi preview -s {stack}")
        assert preview.returncode == 0, preview.stdout + preview.stderr
        assert "+ 4 to create" in preview.stdout


def test_nothing_tracked_is_written_to(folder: Path) -> None:
    for path in (ROOT / "stacks").glob("Pulumi.*.yaml"):
        assert "encryptionsalt" not in path.read_text()
        assert "encryptionsalt" in (folder / "project" / "stacks" / path.name).read_text()


def test_commands_come_from_the_sandbox_and_the_environment_not_from_elsewhere(folder: Path) -> None:
    where = in_second_shell(folder, "command -v gpu python uv pulumi").stdout.split()
    assert [Path(path).parent for path in where[:3]] == [Path(sys.executable).parent] * 3
    assert len(where) == 4


def test_a_second_sandbox_in_the_same_folder_is_refused_and_the_first_lives_on(folder: Path) -> None:
    with stand_up(folder) as second:
        said, _ = second.communicate(timeout=30)
    assert second.returncode == 1
    assert "already" in said
    assert "kill" in said
    assert "Traceback" not in said
    assert (folder / "env").exists()
    assert in_second_shell(folder, "curl -sS $VAST_URL/sandbox/ledger").stdout.startswith('{"instances"')


@pytest.mark.real
def test_term_ends_everything_within_seconds_even_with_a_machine_up(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with stand_up(folder) as process:
        wait_for_env(folder, process)
        up = in_second_shell(folder, "pulumi up -y --skip-preview -s gpu-on")
        assert up.returncode == 0, up.stdout + up.stderr
        mark = f"{folder.resolve()}/hosts/"
        assert find_processes(mark)
        started = time.monotonic()
        process.terminate()
        said, _ = process.communicate(timeout=20)
    assert time.monotonic() - started < 5
    assert process.returncode == 0, said
    assert not (folder / "env").exists()
    assert find_processes(mark) == set()


def test_an_interrupt_while_it_comes_up_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with stand_up(folder) as process:
        deadline = time.monotonic() + 30
        while not (folder / "store" / "weed.log").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        process.communicate(timeout=20)
    assert time.monotonic() - started < 5
    assert not (folder / "env").exists()
    assert not processes_in(folder)


@pytest.mark.real
def test_it_ends_when_whoever_started_it_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    starter = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    command = [sys.executable, "-m", "tests.sandbox", "--folder", str(folder)]
    with subprocess.Popen([sys.executable, "-c", starter, *command], cwd=ROOT, stdout=subprocess.DEVNULL) as parent:
        wait_for_env(folder, parent)  # type: ignore[arg-type]
        parent.kill()
    deadline = time.monotonic() + 8
    while (folder / "env").exists() or processes_in(folder):
        assert time.monotonic() < deadline
        time.sleep(0.1)
