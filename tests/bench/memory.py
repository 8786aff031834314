"""The memory of a process that is gone by the time one could ask: looked at while it runs."""

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.sandbox.hosts.processes import find_processes

PROVIDER = b"pulumi.dynamic"
LOOK_SECONDS = 0.05
"""The kernel keeps the peak itself (VmHWM): only what grows in the last moment before the end escapes us."""
SEARCH_SECONDS = 0.2
"""Between looks for the process itself, which cost more: all that run are gone through."""


class PeakWatch:
    """Finds the process of the dynamic providers that a command starts, and how much memory it holds at most.

    Args:
        mark: What the command and all that it starts carry in their environment.

    Attributes:
        peak_bytes: The most that it held.
    """

    def __init__(self, mark: str) -> None:
        self.peak_bytes = 0
        self._mark = mark
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        provider = None
        while not self._over.wait(LOOK_SECONDS if provider else SEARCH_SECONDS):
            provider = provider or next(filter(_is_provider, find_processes(self._mark)), None)
            if provider:
                self.peak_bytes = max(self.peak_bytes, read_peak(provider))


def read_peak(pid: int) -> int:
    """Return the most memory that a process has held so far, bytes; 0 if it is gone."""
    for line in _read(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith(b"VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _is_provider(pid: int) -> bool:
    words = _read(Path(f"/proc/{pid}/cmdline")).split(b"\0")
    return PROVIDER in words and b"python" in words[0]  # not the shell that it is started by


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""
