"""`python -m tests.bench push`: how fast `gpu models push` is beside rclone, and what memory it takes.

Both send the same model of SIZE_MB (2048) in four shards to the same server on loopback, over TLS, each into an empty
bucket, in turn; ROUNDS (3) times. Ours also reads every file for its digest first, and checks what each part holds.
rclone runs as it comes, and with parts as big as ours; the faster of the two counts. Then the same model is pushed
again after the push was killed half-way, and what crosses the line is counted.
"""

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.peers import find_peer
from tests.bench.stage import BenchError
from tests.sandbox.line import Line
from tests.sandbox.models import write_big_llama
from tests.sandbox.storage import Storage

AIM = 0.8
"""Of rclone's speed. As `PEAK_MB` it is aimed at: never a reason to fail, machines differ."""
PEAK_MB = 300
STACK = "config:\n  gpu-on-demand:kind: gpu\n  gpu-on-demand:store: {bucket: bench}\n"
RCLONE = ("--s3-provider", "Other", "--s3-no-check-bucket", "--quiet")
AS_OURS = ("--s3-chunk-size", "16M", "--s3-upload-concurrency", "8")


@dataclass(frozen=True)
class Run:
    """One push; the server's own work is not in its CPU seconds."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def measure_push() -> int:
    """Measure and print; return the exit status."""
    rounds, size_mb = int(os.environ.get("ROUNDS", "3")), int(os.environ.get("SIZE_MB", "2048"))
    found = find_peer("rclone")
    rclone = str(found) if found else None
    with tempfile.TemporaryDirectory(prefix="gpu-push-") as name:
        folder = Path(name)
        model = write_big_llama(folder / "model", size_bytes=size_mb * 2**20, shards=4)
        ways = {"gpu": ["gpu"]} | ({"rclone": [rclone], "rclone, 16 MiB parts": [rclone, *AS_OURS]} if rclone else {})
        runs: dict[str, list[Run]] = {way: [] for way in ways}
        load = os.getloadavg()[0]
        for number in range(rounds):
            for place in range(len(ways)):  # whoever else works on this machine hits each in turn
                way = list(ways)[(number + place) % len(ways)]
                runs[way].append(_push_once(folder, model, ways[way]))
            told = ", ".join(
                f"{way} {took[-1].seconds:.1f} s ({took[-1].cpu_seconds:.1f} CPU)" for way, took in runs.items()
            )
            print(f"round {number + 1}: {told}", flush=True)
        size = sum(path.stat().st_size for path in model.iterdir())
        print(f"{os.cpu_count()} processors, load average {load:.1f} before and {os.getloadavg()[0]:.1f} after")
        print("\n".join(render_speeds(runs, size)))
        print(f"killed half-way and pushed again: {_push_again(folder, model, size)}")
    return 0


def render_speeds(runs: Mapping[str, Sequence[Run]], size: int) -> list[str]:
    """Return the medians, and how ours stands to the best of the others."""
    speeds = {way: size / 1e6 / statistics.median(run.seconds for run in took) for way, took in runs.items()}
    work = {way: statistics.median(run.cpu_seconds for run in took) for way, took in runs.items()}
    lines = [f"{way:<22}{speed:7.0f} MB/s{work[way]:7.1f} s of CPU" for way, speed in speeds.items()]
    others = [speed for way, speed in speeds.items() if way != "gpu"]
    if others:
        lines.append(f"ours is {speeds['gpu'] / max(others):.2f} of the best (aim: {AIM} or more)")
    lines.append(f"peak memory {max(run.peak_mb for run in runs['gpu']):.0f} MB (aim: under {PEAK_MB})")
    return lines


@contextmanager
def _store(folder: Path) -> Iterator[tuple[Storage, dict[str, str]]]:
    """Run a server that is empty, and give the environment in which our command finds it and its one bucket."""
    root = folder / "project"
    (root / "stacks").mkdir(parents=True, exist_ok=True)
    (root / "Pulumi.yaml").write_text("name: gpu-on-demand\nruntime: python\nstackConfigDir: stacks\n")
    (root / "stacks" / "Pulumi.gpu-on.yaml").write_text(STACK)
    with Storage(folder / "store") as storage:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "PULUMI_", "RCLONE_"))}
        environment = kept | storage.environment | {"PULUMI_OPTION_CWD": str(root)}
        tiny = write_big_llama(folder / "tiny", size_bytes=2**16, shards=1)
        _run([*_gpu(), str(tiny)], environment)  # bucket and programs are there
        yield storage, environment
    shutil.rmtree(folder / "store")


def _push_once(folder: Path, model: Path, words: Sequence[str]) -> Run:
    with _store(folder) as (storage, environment):
        command = [*_gpu(), str(model)]
        if words != ["gpu"]:
            environment |= {
                "RCLONE_S3_ENDPOINT": storage.endpoint,
                "RCLONE_S3_ACCESS_KEY_ID": storage.access_key,
                "RCLONE_S3_SECRET_ACCESS_KEY": storage.secret_key,
                "RCLONE_CA_CERT": str(storage.ca_path),
                "RCLONE_CONFIG": "/dev/null",
            }
            command = [words[0], "copy", *RCLONE, *words[1:], str(model), ":s3:bench/model"]
        return _run(command, environment)


def _push_again(folder: Path, model: Path, size: int) -> str:
    with _store(folder) as (storage, environment), Line(storage.endpoint) as line:
        environment["AWS_ENDPOINT_URL_S3"] = line.endpoint
        first = subprocess.Popen([*_gpu(), str(model)], env=environment, stdout=subprocess.DEVNULL)
        while line.sent < size / 2 and first.poll() is None:
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
        first.wait()
        before = line.sent
        _run([*_gpu(), str(model)], environment)
        return f"{before / 1e6:.0f} MB sent, then {(line.sent - before) / 1e6:.0f} MB of {size / 1e6:.0f} MB"


def _gpu() -> list[str]:
    return [str(Path(sys.executable).with_name("gpu")), "models", "push", "--as", "bench"]


def _run(command: Sequence[str], environment: Mapping[str, str]) -> Run:
    """Run a command to its end."""
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    said = process.stderr.read().decode(errors="replace") if process.stderr else ""
    if process.returncode:
        raise BenchError(f"{' '.join(command)}: status {process.returncode}\n{said}")
    return Run(time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000)
