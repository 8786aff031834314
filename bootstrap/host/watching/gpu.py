"""What the GPUs say, kept at hand by a thread that lets a child process ask them.

Whoever asks here never waits: not for a driver that hangs, not for a child that cannot be killed.
"""

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from bootstrap.host.watching.gpu_reader import NOTHING_TO_READ
from dynamic_providers.lease.metrics import Figure

INTERVAL_SECONDS = 5.0
"""A third of the interval at which the page is scraped."""

PATIENCE_SECONDS = 20.0
"""Silence after which a reader counts as hung, and figures as too old. The first call loads the driver's library."""

KILL_SECONDS = 1.0
PAUSE_SECONDS = 5.0
MAX_PAUSE_SECONDS = 300.0
TICK_SECONDS = 0.5
CHUNK_BYTES = 65536
MAX_LINE_BYTES = 2**20

BUNDLE = Path(__file__).parents[3]
READER = (sys.executable, "-P", "-m", "bootstrap.host.watching.gpu_reader", str(INTERVAL_SECONDS))
FAILED = (Figure("nvidia_smi_last_collect_success", 0),)

Child = subprocess.Popen[bytes]


class GpuWatch:
    """The thread, its child and the last reading."""

    def __init__(
        self,
        command: Sequence[str] = READER,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        pause_seconds: float = PAUSE_SECONDS,
    ) -> None:
        self._command = command
        self._patience = patience_seconds
        self._first_pause = self._pause = pause_seconds
        self._reading: tuple[float, tuple[Figure, ...]] | None = None
        self._is_known = False
        self._left: list[Child] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="gpus", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def latest(self) -> tuple[Figure, ...] | None:
        """Return the last figures; that reading fails, if it does; None where there is nothing to be read, or yet."""
        reading = self._reading
        if reading and time.monotonic() - reading[0] <= self._patience:
            return reading[1]
        return FAILED if self._is_known else None

    def close(self) -> None:
        """End thread and child; one that cannot be killed is left."""
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopping.is_set():
            # Where one child hangs in the driver, the next would too: they must not pile up.
            self._left = [child for child in self._left if child.poll() is None]
            if self._left:
                self._stopping.wait(self._first_pause)
                continue
            if self._run_child() == NOTHING_TO_READ:
                return
            self._is_known, self._reading = True, None
            self._stopping.wait(self._pause)
            self._pause = min(2 * self._pause, MAX_PAUSE_SECONDS)

    def _run_child(self) -> int | None:
        """Read from a child until it ends, says nonsense or says nothing; return its exit status if it has one."""
        environment = {**os.environ, "PYTHONPATH": str(BUNDLE)}
        try:
            child = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0
            )
        except OSError:  # no memory, no processes: later perhaps
            return None
        try:
            if child.stdout:
                self._follow(child.stdout)
        finally:
            for pipe in (child.stdin, child.stdout):
                if pipe:
                    pipe.close()
            self._end(child)
        return child.returncode

    def _follow(self, output: IO[bytes]) -> None:
        heard_at, line = time.monotonic(), b""
        while not self._stopping.is_set() and time.monotonic() - heard_at <= self._patience:
            if not select.select([output], [], [], TICK_SECONDS)[0]:
                continue
            chunk = os.read(output.fileno(), CHUNK_BYTES)
            line += chunk
            if not chunk or len(line) > MAX_LINE_BYTES:
                return
            *lines, line = line.split(b"\n")
            if lines:
                try:
                    figures = parse_line(lines[-1])
                except ValueError:
                    return
                heard_at = time.monotonic()
                self._reading, self._is_known, self._pause = (heard_at, figures), True, self._first_pause

    def _end(self, child: Child) -> None:
        """End a child. Its closed standard input bids it go; it may be past listening."""
        for attempt in (None, child.kill):
            if attempt:
                attempt()
            try:
                child.wait(KILL_SECONDS)
                return
            except subprocess.TimeoutExpired:
                pass
        self._left.append(child)


def parse_line(line: bytes) -> tuple[Figure, ...]:
    """Return the figures in a line of the reader.

    Raises:
        ValueError: It is none.
    """
    try:
        said = json.loads(line)
        figures = [Figure(name, float(value), labels) for name, value, labels in said["figures"]]
        return (Figure("nvidia_smi_last_collect_success", float(said["success"])), *figures)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a reading: {line[:80]!r}") from error
