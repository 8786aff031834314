"""What the agent leaves for others to read, also on a disk that is full."""

import errno
from pathlib import Path
from typing import Any

import pytest

from bootstrap.host.watching.files import BLOCK_BYTES, beat, put, read_object


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every new file be made, and none take a byte."""
    write_text = Path.write_text

    def refuse(self: Path, *args: Any, **options: Any) -> int:
        write_text(self, "")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", refuse)


def test_a_file_is_put_by_rename(tmp_path: Path) -> None:
    path = tmp_path / "drain"
    assert put(path, "1800000000")
    with path.open() as reader:
        assert put(path, "0")
        assert (reader.read(), path.read_text()) == ("1800000000", "0")
    assert [entry.name for entry in tmp_path.iterdir()] == ["drain"]


@pytest.mark.parametrize(("before", "after"), [("0", "1800000000"), ("1800000000", "0"), ("{}", '{"a": 1}')])
def test_on_a_full_disk_it_is_written_over(tmp_path: Path, full_disk: None, before: str, after: str) -> None:
    path = tmp_path / "drain"
    path.write_bytes(before.encode())
    inode = path.stat().st_ino
    assert put(path, after)
    assert (path.read_text(), path.stat().st_ino) == (after, inode)
    assert [entry.name for entry in tmp_path.iterdir()] == ["drain"]


def test_on_a_full_disk_what_is_not_there_or_too_long_is_left(tmp_path: Path, full_disk: None) -> None:
    path = tmp_path / "drain"
    assert not put(path, "0")
    assert not path.exists()
    path.write_bytes(b"kept")
    assert not put(path, "x" * (BLOCK_BYTES + 1))
    assert path.read_text() == "kept"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff", b"[" * 100_000], ids=lambda c: str(c[:4]))
def test_what_is_no_object_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lease.json"
    assert read_object(path) is None
    path.write_bytes(content)
    assert read_object(path) is None


def test_a_heartbeat_moves_and_a_folder_that_is_gone_ends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat"
    beat(path)
    assert path.stat().st_mode & 0o077 == 0
    path.touch()
    before = path.stat().st_mtime_ns
    while path.stat().st_mtime_ns == before:
        beat(path)
    beat(tmp_path / "gone" / "heartbeat")
