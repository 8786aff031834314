"""`fetch.py` against a bucket that fails on demand, with segments small enough for a test."""

import errno
import hashlib
import json
import mmap
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bootstrap import bundle
from bootstrap.host import fetch
from bootstrap.host.fetching import job, line, pace, part
from tests.sandbox import blob_server
from tests.sandbox.blob_server import BlobServer, Fault, refusal

SEGMENT = mmap.ALLOCATIONGRANULARITY
CONTENT = random.Random(1).randbytes(5 * SEGMENT + 300)
DIGEST = hashlib.sha256(CONTENT).hexdigest()

Play = Callable[..., dict[str, Any]]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[BlobServer]:
    monkeypatch.setattr(part, "SEGMENT_BYTES", SEGMENT)
    monkeypatch.setattr(line, "PIECE_BYTES", 1000)
    monkeypatch.setattr(job, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(job, "TICK_SECONDS", 0.01)
    with BlobServer() as server:
        server.blobs["blob"] = CONTENT
        yield server


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """One request at a time, so that it is known which of them a fault hits."""
    monkeypatch.setattr(pace, "FIRST", 1)
    monkeypatch.setattr(pace, "MOST", 1)


def an_item(store: BlobServer, **change: Any) -> dict[str, Any]:
    item = {"name": "model.safetensors", "path": "blobs/blob", "sha256": DIGEST, "size": len(CONTENT)}
    return {**item, "url": store.url("blob"), **change}


def order(root: Path, *items: dict[str, Any]) -> None:
    (root / "run").mkdir(exist_ok=True)
    (root / "run/fetch.json").write_text(json.dumps({"id": "job-1", "files": items}))


def progress_of(root: Path) -> dict[str, Any]:
    """Return what is told; whenever it is read, it is whole."""
    progress: dict[str, Any] = json.loads((root / "run/fetch.progress.json").read_text())
    return progress


@pytest.fixture
def play(store: BlobServer, tmp_path: Path) -> Play:
    """Run a job of one file; return the last progress."""

    def play(**change: Any) -> dict[str, Any]:
        order(tmp_path, an_item(store, **change))
        status = fetch.main(tmp_path)
        progress = progress_of(tmp_path)
        assert status == (progress["state"] != "done")
        assert progress["job"] == "job-1"
        return progress

    return play


def test_a_file_comes_in_segments_and_stands_under_its_name_once_checked(
    play: Play, store: BlobServer, tmp_path: Path
) -> None:
    assert play(mode=0o700)["state"] == "done"
    assert (tmp_path / "blobs/blob").read_bytes() == CONTENT
    assert stat.S_IMODE((tmp_path / "blobs/blob").stat().st_mode) == 0o700
    assert [path.name for path in (tmp_path / "blobs").iterdir()] == ["blob"]
    assert store.requests["blob"] == 6
    assert not (tmp_path / "run/fetch.json").exists()  # the URLs go as soon as they are of no more use


def test_many_files_come_side_by_side(store: BlobServer, tmp_path: Path) -> None:
    contents = {f"blob-{n}": random.Random(n).randbytes(n * 700) for n in range(12)}
    store.blobs |= contents
    order(
        tmp_path,
        *(
            {
                "name": name,
                "path": f"blobs/{name}",
                "sha256": hashlib.sha256(content).hexdigest(),
                "size": len(content),
                "url": store.url(name),
            }
            for name, content in contents.items()
        ),
    )
    assert fetch.main(tmp_path) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "blobs").iterdir()} == contents


def test_a_file_that_is_there_is_not_asked_for(play: Play, store: BlobServer) -> None:
    play()
    store.requests.clear()
    assert play()["state"] == "done"
    assert not store.requests


def test_an_empty_file_needs_no_request(play: Play, store: BlobServer, tmp_path: Path) -> None:
    assert play(sha256=hashlib.sha256(b"").hexdigest(), size=0)["state"] == "done"
    assert (tmp_path / "blobs/blob").read_bytes() == b""
    assert not store.requests


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("breaks", [blob_server.cut, blob_server.reset], ids=["cut", "reset"])
def test_a_connection_that_breaks_goes_on_where_it_broke(play: Play, store: BlobServer, breaks: Fault) -> None:
    store.faults["blob"] = [breaks, blob_server.busy, breaks]
    assert play()["state"] == "done"
    # A reset may lose what was under way; nothing else is sent twice.
    assert len(CONTENT) <= store.bytes_sent["blob"] <= len(CONTENT) + (breaks is blob_server.reset) * SEGMENT


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(refusal(429), id="too-many-requests-with-an-empty-body"),
        pytest.param(blob_server.busy, id="overloaded"),
        pytest.param(blob_server.promise_less, id="content-length-too-small"),
        pytest.param(blob_server.promise_more, id="content-length-too-large"),
        pytest.param(blob_server.shift, id="another-range"),
        pytest.param(blob_server.spoil, id="spoilt-on-the-way"),
    ],
)
def test_a_fault_that_passes_leaves_the_file_right(play: Play, store: BlobServer, tmp_path: Path, fault: Fault) -> None:
    store.faults["blob"] = [fault] * 3
    assert play()["state"] == "done"
    assert (tmp_path / "blobs/blob").read_bytes() == CONTENT


def test_a_store_that_knows_no_ranges_gives_the_file_in_one_piece(
    play: Play, store: BlobServer, tmp_path: Path
) -> None:
    store.faults["blob"] = [blob_server.ignore_range] * 100
    assert play()["state"] == "done"
    assert (tmp_path / "blobs/blob").read_bytes() == CONTENT


@pytest.mark.usefixtures("one_by_one")
def test_a_file_that_comes_in_one_piece_begins_anew_where_it_breaks_off(play: Play, store: BlobServer) -> None:
    def cut_whole(handler: Any, asked: bytes) -> None:
        blob_server.ignore_range(handler, asked)

    store.faults["blob"] = [cut_whole, blob_server.busy, *[cut_whole] * 10]
    assert play()["state"] == "done"


def test_a_stuck_request_is_dropped_for_a_fresh_connection(
    play: Play, store: BlobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "SLOW_SECONDS", 0.2)
    monkeypatch.setattr(pace, "SLOW_SECONDS", 0.2)
    content = random.Random(2).randbytes(40 * SEGMENT)  # a trickle of a segment would take half a minute
    store.blobs["blob"] = content
    store.faults["blob"] = [*[blob_server.send] * 3, blob_server.trickle]
    monkeypatch.setattr(part, "SEGMENT_BYTES", 8 * SEGMENT)
    began = time.monotonic()
    assert play(sha256=hashlib.sha256(content).hexdigest(), size=len(content))["state"] == "done"
    assert time.monotonic() - began < 5


def test_many_requests_that_are_dropped_spoil_nothing(
    play: Play, store: BlobServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "SLOW_SECONDS": 0.005,
        "DROPS": 20,
        "choose_slow": lambda rates, left, done: list(rates),
    }.items():
        monkeypatch.setattr(job, name, value)
    content = random.Random(4).randbytes(300 * SEGMENT)
    store.blobs["blob"] = content
    assert play(sha256=hashlib.sha256(content).hexdigest(), size=len(content))["state"] == "done"
    assert (tmp_path / "blobs/blob").read_bytes() == content
    assert store.requests["blob"] > 300  # some were


@pytest.mark.usefixtures("one_by_one")
def test_a_second_run_asks_only_for_what_the_first_did_not_get(play: Play, store: BlobServer, tmp_path: Path) -> None:
    store.faults["blob"] = [blob_server.send, blob_server.send, refusal(404, "NoSuchKey")]
    assert play()["kind"] == "missing"
    assert not (tmp_path / "blobs/blob").exists()
    store.requests.clear()
    assert play()["state"] == "done"
    assert store.requests["blob"] == 4
    assert (tmp_path / "blobs/blob").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(f"{DIGEST} {SEGMENT}\n0\n3\n", id="it-says-that-two-are-right"),
        pytest.param(f"{DIGEST} 999\n0\n3\n", id="of-other-segments"),
        pytest.param(f"{DIGEST} {SEGMENT}\n1\n99\nx\n-1\n2", id="of-nonsense"),
        pytest.param("", id="empty"),
    ],
)
def test_a_leftover_is_never_trusted_over_the_hash(play: Play, store: BlobServer, tmp_path: Path, record: str) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/blob.part").write_bytes(bytes(len(CONTENT) + 7))
    (tmp_path / "blobs/blob.part.done").write_text(record)
    assert play()["state"] == "done"
    assert (tmp_path / "blobs/blob").read_bytes() == CONTENT


def test_a_spoilt_file_is_fetched_once_more(play: Play, store: BlobServer, tmp_path: Path) -> None:
    store.faults["blob"] = [blob_server.spoil]
    assert play()["state"] == "done"
    assert store.requests["blob"] == 12
    assert (tmp_path / "blobs/blob").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("faults", "change", "kind", "said"),
    [
        pytest.param([], {"sha256": "0" * 64}, "corrupt", "push the model again", id="other-bytes-than-promised"),
        pytest.param(
            [],
            {"size": len(CONTENT) - 1},
            "corrupt",
            f"holds {len(CONTENT)} bytes of it, its manifest says {len(CONTENT) - 1}",
            id="longer",
        ),
        pytest.param([], {"size": len(CONTENT) + SEGMENT}, "corrupt", f"holds {len(CONTENT)} bytes", id="shorter"),
        pytest.param(
            [refusal(403, "SignatureDoesNotMatch")],
            {},
            "refused",
            "check them and run `pulumi up` again",
            id="wrong-url",
        ),
        pytest.param([refusal(403)], {}, "refused", "HTTP 403, without a reason", id="wrong-url-without-a-word"),
        pytest.param([refusal(404, "NoSuchKey")], {}, "missing", "NoSuchKey): push the model again", id="missing"),
        pytest.param([refusal(429)] * 1000, {}, "busy", "answers 429 (without a reason)", id="too-many-requests"),
        pytest.param([blob_server.busy] * 1000, {}, "busy", "503 (SlowDown): overloaded", id="store-down"),
        pytest.param([blob_server.promise_less] * 1000, {}, "", "", id="content-length-too-small"),
        pytest.param([blob_server.shift] * 1000, {}, "network", "another part of the file", id="another-range"),
        pytest.param(
            [], {"url": "http://127.0.0.1:9/bucket/blob?x=1"}, "network", "Connection refused", id="nobody-there"
        ),
    ],
)
def test_what_cannot_be_had_fails_by_kind_and_name(
    play: Play,
    store: BlobServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    faults: list[Fault],
    change: dict[str, Any],
    kind: str,
    said: str,
) -> None:
    store.faults["blob"] = list(faults)
    failed = play(**change)
    printed = capsys.readouterr().out
    assert blob_server.SIGNATURE not in printed + json.dumps(failed)
    if not kind:  # it only takes longer
        assert failed["state"] == "done"
        return
    assert (failed["state"], failed["kind"], failed["file"]) == ("failed", kind, "model.safetensors")
    assert said in failed["message"]
    assert not (tmp_path / "blobs/blob").exists()
    assert "model.safetensors" in printed


def test_of_what_is_spoilt_nothing_stays(play: Play, store: BlobServer, tmp_path: Path) -> None:
    assert play(sha256="0" * 64)["kind"] == "corrupt"
    assert not list((tmp_path / "blobs").iterdir())


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        pytest.param("AccessDenied", "Request has expired", "expired", id="expired"),
        pytest.param("RequestTimeTooSkewed", "", "skewed", id="skewed"),
    ],
)
@pytest.mark.usefixtures("one_by_one")
def test_fresh_urls_let_a_running_download_go_on_where_it_was(
    store: BlobServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], code: str, message: str, kind: str
) -> None:
    order(tmp_path, an_item(store))
    store.faults["blob"] = [blob_server.send, blob_server.send, refusal(403, code, message)]
    running = threading.Thread(target=fetch.main, args=[tmp_path])
    running.start()
    waiting = wait_for_state(tmp_path, "waiting")
    assert (waiting["kind"], waiting["file"], waiting["bytes"]) == (kind, "model.safetensors", 2 * SEGMENT)
    asked = store.requests["blob"]
    time.sleep(0.1)
    assert store.requests["blob"] == asked  # a URL that is past its time is not tried again and again
    fresh = store.url("blob") + "&fresh"
    (tmp_path / "run/fetch.urls.json.new").write_text(json.dumps({DIGEST: fresh}))
    (tmp_path / "run/fetch.urls.json.new").replace(tmp_path / "run/fetch.urls.json")
    running.join()
    assert progress_of(tmp_path)["state"] == "done"
    assert store.bytes_sent["blob"] == len(CONTENT)
    assert store.queries["blob"][-1].endswith("&fresh")
    assert not (tmp_path / "run/fetch.urls.json").exists()
    assert "fresh" not in capsys.readouterr().out


def wait_for_state(root: Path, state: str) -> dict[str, Any]:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if (root / "run/fetch.progress.json").exists() and (told := progress_of(root))["state"] == state:
            return told
        time.sleep(0.01)
    raise AssertionError(f"never {state}")


def test_fresh_urls_that_never_come_are_not_waited_for_without_end(
    play: Play, store: BlobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "FRESH_WITHIN_SECONDS", 0.05)
    store.faults["blob"] = [blob_server.expired] * 1000
    assert play()["kind"] == "expired"


@pytest.mark.parametrize("call", ["os.pwrite", "mmap.mmap", "os.ftruncate", "os.chmod"])
def test_a_disk_that_fails_is_the_hosts_fault_and_ends_the_job(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(call, fail)
    failed = play()
    assert (failed["state"], failed["kind"], failed["file"]) == ("failed", "disk", "model.safetensors")
    assert failed["message"] == "the machine's disk: No space left on device"
    assert not (tmp_path / "blobs/blob").exists()


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(
    play: Play, store: BlobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=len(CONTENT) - 1))
    failed = play()
    assert (failed["kind"], failed["message"]) == (
        "disk",
        "the machine's disk has 0.0 GB free, 0.0 GB are to go there",
    )
    assert not store.requests


# --- as the machine runs it: the script of the bundle, in a process of its own

LARGE = random.Random(3).randbytes(6 * 2**20)
LARGE_SEGMENT = 2**18


@pytest.fixture
def machine(store: BlobServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine's folder with the bundle in it, and a job of one larger file."""
    for path, content in bundle.carried().items():
        (tmp_path / "bundle" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bundle" / path).write_bytes(content)
    store.blobs["large"] = LARGE
    item = {"name": "large", "path": "blobs/large", "sha256": hashlib.sha256(LARGE).hexdigest(), "size": len(LARGE)}
    order(tmp_path, {**item, "url": store.url("large")})
    return tmp_path


def start(machine: Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start the script, with segments and the share of a process small enough for the large file."""
    for name, was, now in (
        ("part", "SEGMENT_BYTES = 16 * 2**20", f"SEGMENT_BYTES = {LARGE_SEGMENT}"),
        ("worker", "PROCESS_BYTES = 256 * 2**20", "PROCESS_BYTES = 2**20"),
    ):
        module = machine / f"bundle/bootstrap/host/fetching/{name}.py"
        module.write_text(module.read_text().replace(was, now))
        assert now in module.read_text()
    command = [sys.executable, "-I", str(machine / "bundle/host/fetch.py")]
    return subprocess.Popen(command, cwd=machine, stdout=subprocess.DEVNULL, **options)


@pytest.fixture
def half_way(store: BlobServer, machine: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A download of which nine segments are there, and the rest is kept waiting."""
    gate = threading.Event()

    def held(handler: Any, asked: bytes) -> None:
        gate.wait(20)
        blob_server.send(handler, asked)

    store.faults["large"] = [blob_server.send] * 9 + [held] * 20
    with start(machine) as running:
        record = machine / "blobs/large.part.done"
        until = time.monotonic() + 20
        while time.monotonic() < until and (not record.exists() or len(record.read_text().split()) < 2 + 9):
            time.sleep(0.01)
        yield running
        running.kill()
        gate.set()


def test_a_killed_download_goes_on_with_what_was_there(
    store: BlobServer, machine: Path, half_way: subprocess.Popen[bytes]
) -> None:
    half_way.kill()
    half_way.wait()
    assert not (machine / "blobs/large").exists()
    store.faults.clear()
    store.bytes_sent.clear()
    with start(machine) as again:
        pass
    assert again.returncode == 0
    assert (machine / "blobs/large").read_bytes() == LARGE
    assert store.bytes_sent["large"] <= len(LARGE) - 9 * LARGE_SEGMENT


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="with one core there is one process")
def test_its_processes_end_with_it_however_it_ends(half_way: subprocess.Popen[bytes]) -> None:
    helpers = children_of(half_way.pid)
    assert len(helpers) > 1
    half_way.kill()
    half_way.wait()
    until = time.monotonic() + 10
    while any(is_alive(pid) for pid in helpers) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(is_alive(pid) for pid in helpers)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="with one core there is one process")
def test_a_process_of_it_that_is_killed_ends_the_job(machine: Path, half_way: subprocess.Popen[bytes]) -> None:
    os.kill(children_of(half_way.pid)[0], signal.SIGKILL)
    assert half_way.wait(10) == 1
    assert progress_of(machine)["kind"] == "host"


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_limit_on_the_files_size_is_a_full_disk(store: BlobServer, machine: Path) -> None:
    limit = len(LARGE) // 2
    with start(machine, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) as running:
        pass
    assert running.returncode == 1
    assert (progress_of(machine)["kind"], progress_of(machine)["file"]) == ("disk", "large")
    assert not (machine / "blobs/large").exists()
