"""`fetch.py` against a bucket that fails on demand, with segments small enough for a test."""

import hashlib
import json
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bootstrap.host import fetch
from tests.sandbox import blob_server
from tests.sandbox.blob_server import BlobServer

SEGMENT = 1000
CONTENT = random.Random(1).randbytes(5 * SEGMENT + 300)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[BlobServer]:
    monkeypatch.setattr(fetch, "SEGMENT_BYTES", SEGMENT)
    monkeypatch.setattr(fetch, "CHUNK_BYTES", 256)
    monkeypatch.setattr(fetch, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(fetch, "TICK_SECONDS", 0.01)
    with BlobServer() as server:
        server.blobs["blob"] = CONTENT
        yield server


@pytest.fixture
def play(store: BlobServer, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run a job of one file; return the last progress."""
    (tmp_path / "run").mkdir()

    def play(**change: Any) -> dict[str, Any]:
        item = {"name": "model.bin", "path": "blobs/blob", "sha256": DIGEST, "size": len(CONTENT)}
        job = {"id": "job-1", "files": [{**item, "url": store.url("blob"), **change}]}
        (tmp_path / "run/fetch.json").write_text(json.dumps(job))
        status = fetch.main(tmp_path)
        progress: dict[str, Any] = json.loads((tmp_path / "run/fetch.progress.json").read_text())
        assert status == (progress["state"] != "done")
        assert progress["job"] == "job-1"
        return progress

    return play


Play = Callable[..., dict[str, Any]]


def test_a_file_comes_in_segments_and_stands_under_its_name_once_checked(
    play: Play, store: BlobServer, tmp_path: Path
) -> None:
    assert play(mode=0o700)["state"] == "done"
    assert (tmp_path / "blobs/blob").read_bytes() == CONTENT
    assert stat.S_IMODE((tmp_path / "blobs/blob").stat().st_mode) == 0o700
    assert [path.name for path in (tmp_path / "blobs").iterdir()] == ["blob"]
    assert store.requests["blob"] == 6
    assert not (tmp_path / "run/fetch.json").exists()  # the URLs go as soon as they are of no more use


def test_a_file_that_is_there_is_not_asked_for(play: Play, store: BlobServer) -> None:
    play()
    store.requests.clear()
    assert play()["state"] == "done"
    assert not store.requests


def test_an_empty_file_needs_no_request(play: Play, store: BlobServer, tmp_path: Path) -> None:
    assert play(sha256=hashlib.sha256(b"").hexdigest(), size=0)["state"] == "done"
    assert (tmp_path / "blobs/blob").read_bytes() == b""
    assert not store.requests


def test_a_connection_that_breaks_goes_on_where_it_broke(
    play: Play, store: BlobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "CONNECTIONS", 1)
    store.faults["blob"] = [blob_server.cut, blob_server.busy, blob_server.cut]
    assert play()["state"] == "done"
    # Half of the first segment came before the first cut, a quarter before the second: nobody asked for them again.
    assert store.bytes_sent["blob"] == len(CONTENT) - SEGMENT * 3 // 4


def test_a_second_run_asks_only_for_what_the_first_did_not_get(
    play: Play, store: BlobServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "CONNECTIONS", 1)
    store.faults["blob"] = [blob_server.send, blob_server.send, blob_server.expired]
    assert play()["kind"] == "expired"
    assert not (tmp_path / "blobs/blob").exists()
    store.requests.clear()
    assert play()["state"] == "done"
    assert store.requests["blob"] == 4
    assert (tmp_path / "blobs/blob").read_bytes() == CONTENT


def test_a_leftover_of_other_content_is_not_trusted(play: Play, store: BlobServer, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/blob.part").write_bytes(bytes(len(CONTENT)))
    (tmp_path / "blobs/blob.part.done").write_text(f"{DIGEST} {SEGMENT}\n0\n3\n")  # it says that two are right
    assert play()["state"] == "done"
    assert (tmp_path / "blobs/blob").read_bytes() == CONTENT


def test_a_spoilt_file_is_fetched_once_more(play: Play, store: BlobServer, tmp_path: Path) -> None:
    store.faults["blob"] = [blob_server.spoil]
    assert play()["state"] == "done"
    assert store.requests["blob"] == 12
    assert (tmp_path / "blobs/blob").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("faults", "change", "kind"),
    [
        pytest.param([], {"sha256": "0" * 64}, "corrupt", id="other-bytes-than-promised"),
        pytest.param([], {"size": len(CONTENT) - 1}, "corrupt", id="longer-than-promised"),
        pytest.param([], {"size": len(CONTENT) + SEGMENT}, "corrupt", id="shorter-than-promised"),
        pytest.param([blob_server.expired], {}, "expired", id="url-past-its-time"),
        pytest.param([blob_server.busy] * 1000, {}, "network", id="store-down"),
        pytest.param([], {"url": "http://127.0.0.1:9/bucket/blob?x=1"}, "network", id="nobody-there"),
    ],
)
def test_what_cannot_be_had_fails_by_kind_and_name(
    play: Play,
    store: BlobServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    faults: list[blob_server.Fault],
    change: dict[str, Any],
    kind: str,
) -> None:
    store.faults["blob"] = list(faults)
    failed = play(**change)
    assert (failed["state"], failed["kind"], failed["file"]) == ("failed", kind, "model.bin")
    assert not (tmp_path / "blobs/blob").exists()
    said = capsys.readouterr().out
    assert "model.bin" in said
    assert blob_server.SIGNATURE not in said + json.dumps(failed)


def test_a_blob_that_is_not_in_the_bucket_is_missing(play: Play, store: BlobServer) -> None:
    store.blobs.clear()
    assert play()["kind"] == "missing"


@pytest.mark.parametrize("call", ["os.pwrite", "os.pread", "os.ftruncate", "bootstrap.host.fetch.Part.note"])
def test_a_disk_that_fails_is_the_hosts_fault_and_ends_the_job(
    play: Play, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(call, fail)
    failed = play()
    assert (failed["state"], failed["kind"], failed["message"]) == ("failed", "disk", "No space left on device")
