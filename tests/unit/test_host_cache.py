"""Packing and unpacking on the machine: nothing gets out of the folder, and nothing but plain files into it."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from bootstrap.host import cache

MOST = 10_000


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Return an archive of a folder with a file, a program, an empty folder and links."""
    source = tmp_path / "caches/abc"
    (source / "vllm/torch").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / "vllm/torch/graph").write_bytes(b"graph")
    (source / "kernel.so").write_bytes(b"kernel")
    (source / "kernel.so").chmod(0o755)
    (source / "out").symlink_to("/etc/passwd")
    (source / "folder").symlink_to(tmp_path)
    cache.pack(str(source), str(tmp_path / "a.tar.gz"), MOST)
    return tmp_path / "a.tar.gz"


def tree(folder: Path) -> dict[str, int | None]:
    """Return what is there, with the mode of each file."""
    return {
        str(path.relative_to(folder)): path.stat().st_mode & 0o777 if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_what_is_packed_comes_back_without_its_links(packed: Path, tmp_path: Path) -> None:
    cache.unpack(packed, tmp_path / "new", MOST)
    assert tree(tmp_path / "new") == {
        "vllm": None,
        "vllm/torch": None,
        "vllm/torch/graph": 0o600,
        "kernel.so": 0o700,
        "empty": None,
    }
    assert (tmp_path / "new/kernel.so").read_bytes() == b"kernel"


def test_what_is_packed_is_told_by_size_and_digests(packed: Path, tmp_path: Path) -> None:
    import base64
    import hashlib

    told = cache.pack(str(tmp_path / "caches/abc"), str(packed), MOST)
    data = packed.read_bytes()
    md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
    assert told == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "md5": md5}


@pytest.mark.parametrize("folder", ["caches/none", "caches/abc/empty"])
def test_of_nothing_nothing_is_packed(folder: str, packed: Path, tmp_path: Path) -> None:
    packed.unlink()
    with pytest.raises(cache.CacheError, match="left none"):
        cache.pack(str(tmp_path / folder), str(packed), MOST)
    assert not packed.exists()


def test_too_much_is_not_packed_and_leaves_no_half_archive(packed: Path, tmp_path: Path) -> None:
    packed.unlink()
    (tmp_path / "caches/abc/big").write_bytes(bytes(range(256)) * 100)
    with pytest.raises(cache.CacheError, match=r"more than 0\.0 MB"):
        cache.pack(str(tmp_path / "caches/abc"), str(packed), 100)
    assert [path.name for path in tmp_path.iterdir()] == ["caches"]


def an_archive(path: Path, name: str, content: bytes = b"x", **member: Any) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(content) if "type" not in member else 0
        for field, value in member.items():
            setattr(info, field, value)
        tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("member", "said"),
    [
        pytest.param({"name": "../out"}, "leads out", id="upwards"),
        pytest.param({"name": "a/../../out"}, "leads out", id="upwards-inside"),
        pytest.param({"name": "/etc/out"}, "leads out", id="absolute"),
        pytest.param({"name": "a//b"}, "leads out", id="empty-part"),
        pytest.param({"name": "l", "type": tarfile.SYMTYPE, "linkname": "/etc"}, "no plain file", id="link-out"),
        pytest.param({"name": "l", "type": tarfile.SYMTYPE, "linkname": "a"}, "no plain file", id="link-inside"),
        pytest.param({"name": "l", "type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}, "no plain file", id="hard"),
        pytest.param({"name": "d", "type": tarfile.CHRTYPE}, "no plain file", id="device"),
        pytest.param({"name": "f", "type": tarfile.FIFOTYPE}, "no plain file", id="pipe"),
        pytest.param({"name": "bomb", "content": bytes(MOST + 1)}, "too much", id="bomb"),
    ],
)
def test_an_archive_that_nobody_here_packs_is_not_unpacked(member: dict[str, Any], said: str, tmp_path: Path) -> None:
    archive = an_archive(tmp_path / "a.tar.gz", **member)
    with pytest.raises(cache.CacheError, match=said):
        cache.unpack(archive, tmp_path / "in/new", MOST)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["a.tar.gz", "in"]


def test_half_an_archive_is_not_unpacked(packed: Path, tmp_path: Path) -> None:
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises((EOFError, tarfile.TarError)):
        cache.unpack(packed, tmp_path / "new", MOST)
    assert not (tmp_path / "new").exists()


def test_what_is_there_already_stays(tmp_path: Path) -> None:
    (tmp_path / "caches").mkdir()
    url = "http://127.0.0.1:9/never-asked"
    assert cache.restore(str(tmp_path / "caches"), str(tmp_path / "a"), url, 1, "0" * 64) == {"there": True}


def test_a_store_that_does_not_answer_is_told_without_the_url(tmp_path: Path) -> None:
    with pytest.raises(cache.CacheError) as caught:
        cache.restore(str(tmp_path / "caches"), str(tmp_path / "a"), "http://127.0.0.1:9/b?X-Amz-Signature=1", 1, "0")
    assert str(caught.value) == "Connection refused"
    assert not list(tmp_path.iterdir())
