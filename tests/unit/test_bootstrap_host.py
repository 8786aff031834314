"""What runs on the machine: room on the disk, links, and the environment that programs see."""

import ast
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bootstrap import bundle
from bootstrap.host import machine, start

HOST = Path(machine.__file__).parent


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("run", "blobs", "models"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "run")
    return tmp_path


def blob(name: str, size: int = 10) -> dict[str, Any]:
    return {"path": f"blobs/{name}", "size": size}


@pytest.mark.parametrize(
    ("free", "short"),
    [
        pytest.param(machine.RESERVE_BYTES + 10, 0, id="just-enough"),
        pytest.param(machine.RESERVE_BYTES + 9, 1, id="one-byte-short"),
        pytest.param(0, machine.RESERVE_BYTES + 10, id="full"),
    ],
)
def test_room_is_asked_for_what_is_missing_and_a_reserve(
    root: Path, monkeypatch: pytest.MonkeyPatch, free: int, short: int
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    (root / "blobs/there").write_bytes(b"x" * 99)
    look = machine.missing([blob("there", 99), blob("new")])
    assert look["files"] == [blob("new")]
    assert look["short_bytes"] == short


def test_a_full_disk_does_not_matter_where_nothing_is_missing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    (root / "blobs/there").touch()
    assert machine.missing([blob("there")])["short_bytes"] == 0


def test_what_a_broken_off_download_left_counts_as_room(root: Path) -> None:
    (root / "blobs/new.part").write_bytes(b"x" * 8192)
    assert machine.missing([blob("new", 10_000)])["need_bytes"] <= 10_000 - 8192


def test_pruning_keeps_what_both_models_have_and_what_is_on_its_way(root: Path) -> None:
    for name in ("both", "old", "new.part", "new.part.done", "old.part", "old.part.done"):
        (root / "blobs" / name).write_text(name)
    machine.link("models/old", [{"path": "a/b", "blob": "blobs/both"}, {"path": "c", "blob": "blobs/old"}])
    machine.prune([blob("both"), blob("new")])
    assert {path.name for path in (root / "blobs").iterdir()} == {"both", "new.part", "new.part.done"}
    assert not (root / "models/old").exists()


def test_a_models_folder_is_hard_links_and_made_only_once(root: Path) -> None:
    (root / "blobs/one").write_text("1")
    links = [{"path": "a/b.json", "blob": "blobs/one"}, {"path": "c.json", "blob": "blobs/one"}]
    assert machine.link("models/m", links) == {"changed": True}
    assert (root / "models/m/a/b.json").samefile(root / "blobs/one")
    assert machine.link("models/m", links) == {"changed": False}
    (root / "models/m/c.json").unlink()
    assert machine.link("models/m", links) == {"changed": True}
    assert (root / "models/m/c.json").exists()


def test_the_log_is_told_of_one_process_whatever_was_started_after_it(root: Path) -> None:
    (root / "log").mkdir()
    log = root / "log/engine.log"
    before, later = "=== engine starts as 1, a\nold\n", "=== engine starts as 3, c\nagain\n"
    log.write_text(before + "=== engine starts as 2, b\nnew\nlast\n" + later)
    assert machine.tail("engine", 2) == {"lines": ["new", "last"]}
    log.write_text("=== engine starts as 2, b\n" + "x" * machine.LOG_BYTES + "\nlast\n" + later)
    assert machine.tail("engine", 2)["lines"] == ["last"]  # though the start is too far back to be seen
    assert machine.tail("door", 2) == {"lines": []}


def test_programs_see_the_containers_environment_without_secrets() -> None:
    session = {"PATH": "/bin", "HOME": "/root", "SSH_CONNECTION": "1.2.3.4", "TERM": "dumb", "ONLY_HERE": "1"}
    container = {
        "PATH": "/usr/local/cuda/bin:/bin",
        "LD_LIBRARY_PATH": "/usr/local/nvidia/lib64",
        "CONTAINER_ID": "7",
        "CONTAINER_API_KEY": "secret",
        "HF_TOKEN": "secret",
        "VLLM_API_KEY": "secret",
        "JUPYTER_TOKEN": "secret",
    }
    seen = start.choose_environment(session, container)
    assert seen == {
        "PATH": "/usr/local/cuda/bin:/bin",
        "HOME": "/root",
        "ONLY_HERE": "1",
        "LD_LIBRARY_PATH": "/usr/local/nvidia/lib64",
        "CONTAINER_ID": "7",
    }


def test_an_environment_file_may_hold_line_breaks_or_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "container.env"
    assert start.read_environment(path) == {}
    path.write_bytes(b"A=1\nstill=A\0B=\xff\0")
    assert start.read_environment(path) == {"A": "1\nstill=A", "B": "\udcff"}


@pytest.mark.parametrize("path", sorted(HOST.rglob("*.py")), ids=lambda path: str(path.relative_to(HOST)))
def test_what_runs_on_the_machine_needs_what_lies_there_alone(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 10))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    others = {name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names}
    carried = {name for name in others if name.startswith(("bootstrap.host.", "dynamic_providers.lease."))}
    rules = {f"dynamic_providers.lease.{name.removesuffix('.py')}" for name in bundle.RULES}
    assert {name for name in carried if name.startswith("dynamic_providers.")} <= rules
    packages = {name.partition(".")[0] for name in others - carried}
    assert packages <= {"certifi", "pynvml", *bundle.PACKAGES}  # certifi comes with the image
