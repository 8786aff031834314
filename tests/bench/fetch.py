"""`python -m tests.bench fetch`: how fast a machine fetches a model beside rclone and s5cmd, and what memory it takes.

All fetch the same SIZE_MB (4096) in four files from the same server on loopback, over TLS, into an empty folder, in
turn; ROUNDS (3) times. First as it is; then through a line of 50 ms and 20 MB/s a connection. Ours also hashes every
byte. The others run as they come, and with as many connections as ours may use, the fastest of them counts; one of them
hashes as well, for where processors are few, a core for each GB/s of hashing is what decides.
"""

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bootstrap.bundle import carried
from tests.bench.memory import read_peak
from tests.bench.peers import find_peer
from tests.bench.stage import BenchError
from tests.bench.throttle import Throttle, measure_throttle
from tests.sandbox.hosts.processes import MARK, find_processes
from tests.sandbox.storage import REGION, Storage

AIM = 0.9
"""Of the fastest peer's speed. As `PEAK_MB` it is aimed at: never a reason to fail, machines differ."""
PEAK_MB = 300
FILES = 4
LATENCY_SECONDS = 0.05
BYTES_PER_SECOND = 20e6
BUCKET, PREFIX = "bench", "blobs/sha256/"
OURS, HASHING = "fetch", "the same, then hashed"
LOOK_SECONDS = 0.5
"""Seldom, for it takes time from what is measured; the kernel keeps the peak itself."""

NO_HTTP2 = ("env", "GODEBUG=http2client=0")
"""Go's clients would put all their streams into one connection, as SeaweedFS lets them: a tenth of the speed here."""

Blobs = Mapping[str, int]
"""SHA-256 → size."""


@dataclass(frozen=True)
class Run:
    """One download: seconds of wall and of processor time, and the memory that all its processes held at most."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def measure_fetch() -> int:
    """Measure and print; return the exit status."""
    rounds, size_mb = int(os.environ.get("ROUNDS", "3")), int(os.environ.get("SIZE_MB", "4096"))
    with tempfile.TemporaryDirectory(prefix="gpu-fetch-") as name, Storage(Path(name, "store")) as storage:
        folder = Path(name)
        blobs = put_blobs(storage, folder / "blob", size_mb * 2**20 // FILES)
        print(f"the line alone passes {measure_throttle() / 1e6:.0f} MB/s", flush=True)
        server = urlsplit(storage.endpoint)
        with Throttle((str(server.hostname), int(server.port or 0)), LATENCY_SECONDS, BYTES_PER_SECOND) as line:
            slow = f"https://{server.hostname}:{line.port}"
            for title, endpoint in (("loopback", storage.endpoint), ("50 ms, 20 MB/s a connection", slow)):
                runs = measure_ways(storage, endpoint, folder, blobs, rounds)
                print("\n".join(["", *render(title, runs, sum(blobs.values()))]), flush=True)
    return 0


def measure_ways(storage: Storage, endpoint: str, folder: Path, blobs: Blobs, rounds: int) -> dict[str, list[Run]]:
    """Fetch everything by every way that is to be had, so many times in turn."""
    ways = {OURS: our_command(storage, endpoint, folder, blobs), **peer_commands(storage, endpoint, folder)}
    runs: dict[str, list[Run]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, command in ways.items():
            shutil.rmtree(folder / "there", ignore_errors=True)
            (folder / "there").mkdir()
            if way == OURS:
                write_job(storage, endpoint, folder, blobs)
            runs[way].append(run(command, storage, f"{folder}/{way}"))
            got = sum(path.stat().st_size for path in (folder / "there").rglob("*") if path.name in blobs)
            if got != sum(blobs.values()):
                raise BenchError(f"{way} fetched {got} bytes")
    return runs


def put_blobs(storage: Storage, scratch: Path, size: int) -> dict[str, int]:
    """Put files of random bytes into the bucket, in the parts that a push makes."""
    from boto3.s3.transfer import TransferConfig

    client = s3(storage, storage.endpoint)
    client.create_bucket(Bucket=BUCKET)
    blobs = {}
    for _ in range(FILES):
        digest = hashlib.sha256()
        with scratch.open("wb") as file:
            for _ in range(0, size, 2**20):
                digest.update(piece := os.urandom(min(2**20, size - file.tell())))
                file.write(piece)
        parts = TransferConfig(multipart_threshold=2**26, multipart_chunksize=2**26, max_concurrency=4)
        client.upload_file(str(scratch), BUCKET, PREFIX + digest.hexdigest(), Config=parts)
        blobs[digest.hexdigest()] = size
    scratch.unlink()
    return blobs


def s3(storage: Storage, endpoint: str) -> Any:
    """Return a client of the bucket's server."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=storage.access_key,
        aws_secret_access_key=storage.secret_key,
        verify=str(storage.ca_path),
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )


def our_command(storage: Storage, endpoint: str, folder: Path, blobs: Blobs) -> list[str]:
    """Lay the bundle out as on a machine."""
    for path, content in carried().items():
        target = folder / "host" / "bundle" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return [sys.executable, "-I", str(folder / "host/bundle/host/fetch.py")]


def write_job(storage: Storage, endpoint: str, folder: Path, blobs: Blobs) -> None:
    """Write down what is to be fetched; `there` is where it goes."""
    client, home = s3(storage, endpoint), folder / "host"
    (home / "run").mkdir(exist_ok=True)
    files = [
        {
            "name": f"{number}.safetensors",
            "path": f"../there/{sha256}",
            "sha256": sha256,
            "size": size,
            "url": client.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": PREFIX + sha256}),
        }
        for number, (sha256, size) in enumerate(blobs.items())
    ]
    (home / "run/fetch.json").write_text(json.dumps({"id": "bench", "files": files}))


def peer_commands(storage: Storage, endpoint: str, folder: Path) -> dict[str, list[str]]:
    """Return how the others fetch the same, by what the table calls them."""
    ways: dict[str, list[str]] = {}
    if rclone := find_peer("rclone"):
        remote = f":s3,provider=Other,env_auth=true,endpoint='{endpoint}',region={REGION}:{BUCKET}/{PREFIX}"
        options = ["--ca-cert", str(storage.ca_path)]
        ways["rclone"] = [*NO_HTTP2, str(rclone), "copy", remote, f"{folder}/there", *options]
        ways["rclone, 4 × 16 streams"] = [*ways["rclone"], "--multi-thread-streams", "16"]
    if s5cmd := find_peer("s5cmd"):
        head = [*NO_HTTP2, str(s5cmd), "--endpoint-url", endpoint, "cp"]
        tail = [f"s3://{BUCKET}/{PREFIX}*", f"{folder}/there/"]
        ways["s5cmd"] = [*head, *tail]
        ways["s5cmd, 4 × 16 streams"] = [*head, "--concurrency", "16", "--part-size", "16", *tail]
        digest = "openssl dgst -sha256" if shutil.which("openssl") else "sha256sum"  # the second is slower
        check = f'"$@" && ls {folder}/there/* | xargs -P {os.cpu_count()} -n 1 {digest}'
        ways[HASHING] = ["sh", "-c", check, "-", *ways["s5cmd, 4 × 16 streams"]]
    return ways


def run(command: Sequence[str], storage: Storage, mark: str) -> Run:
    """Run a command to its end.

    Raises:
        BenchError: It failed.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "RCLONE_"))}
    environment = kept | storage.environment | {MARK: mark, "RCLONE_CONFIG": "/dev/null"}
    os.sync()  # what another run has written is not ours to wait for
    peaks: dict[int, int] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_SECONDS):
            for pid in find_processes(mark):
                peaks[pid] = max(peaks.get(pid, 0), read_peak(pid))

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    before, began = os.times(), time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds, after = time.monotonic() - began, os.times()
    over.set()
    watching.join()
    if done.returncode:
        raise BenchError(f"{' '.join(command[:3])} … failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    cpu = sum(after[2:4]) - sum(before[2:4])
    return Run(seconds, cpu, sum(peaks.values()))


def render(title: str, runs: Mapping[str, Sequence[Run]], size: int) -> list[str]:
    """Return the table of one line, medians."""
    lines = [f"{title:<30}{'MB/s':>8}{'CPU s':>8}{'peak MB':>9}"]
    speeds = {}
    for way, mine in runs.items():
        speeds[way] = size / 1e6 / statistics.median(one.seconds for one in mine)
        cpu = statistics.median(one.cpu_seconds for one in mine)
        peak = max(one.peak_bytes for one in mine) / 1e6
        lines.append(f"  {way:<28}{speeds[way]:>8.0f}{cpu:>8.1f}{peak:>9.0f}")
    for title, others in (("of the fastest peer", speeds.keys() - {OURS}), ("of what hashes as well", {HASHING})):
        if known := [speeds[way] for way in others if way in speeds]:
            share = speeds[OURS] / max(known)
            lines.append(f"  {title:<28}{share:>8.2f}   aim {AIM}{'' if share >= AIM else '   missed'}")
    if (peak := max(one.peak_bytes for one in runs[OURS]) / 1e6) >= PEAK_MB:
        lines.append(f"  peak memory {peak:.0f} MB, aim under {PEAK_MB}   missed")
    return lines
