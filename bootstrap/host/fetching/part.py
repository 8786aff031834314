"""A file on its way: it grows as `<name>.part`, and stands under its own name only once it is checked."""

import hashlib
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

SEGMENT_BYTES = 16 * 2**20
"""Large enough that a request's round trip hardly counts, small enough to lose little when all is killed."""


class Part:
    """One file of a job. `done` holds the indexes of the segments that are on the disk.

    `<name>.part.done` lists them too, so that the next run goes on from there; only the hash is believed.
    """

    def __init__(self, root: Path, item: dict[str, Any]) -> None:
        self.name: str = item["name"]
        self.url: str = item["url"]
        self.sha256: str = item["sha256"]
        self.size: int = item["size"]
        self.mode: int = item.get("mode", 0o600)
        self.path = root / item["path"]
        self.partial = self.path.with_name(self.path.name + ".part")
        self.record = self.path.with_name(self.path.name + ".part.done")
        self.segments = range(-(-self.size // SEGMENT_BYTES))
        self.done: set[int] = set()
        self.moved = threading.Condition()
        self.is_whole = False
        """The store sends this file in one piece only."""
        self.is_spoilt = False
        """It has come once with another hash."""
        self._head = f"{self.sha256} {SEGMENT_BYTES}"
        self._fd = -1

    def open(self) -> None:
        """Take up what an earlier run left."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.record.exists() and self.partial.exists():
            lines = self.record.read_bytes().decode("ascii", "replace").split("\n")[:-1]  # the last may be cut short
            if lines[:1] == [self._head]:
                self.done = {int(line) for line in lines[1:] if line.isdecimal() and int(line) in self.segments}
        if not self.done:
            self.forget()
        self._fd = os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._fd, self.size)

    def note(self, segments: range) -> None:
        """Write down that segments are there."""
        with self.record.open("a") as record:
            record.writelines(f"{segment}\n" for segment in segments)
        with self.moved:
            self.done.update(segments)
            self.moved.notify_all()

    def bytes_done(self) -> int:
        """Return how many bytes are there in whole segments."""
        return sum(self.length(segment) for segment in self.done)

    def length(self, segment: int) -> int:
        """Return the bytes of a segment; the last one is shorter."""
        return min(SEGMENT_BYTES, self.size - segment * SEGMENT_BYTES)

    def allocated(self) -> int:
        """Return what its partial file takes on the disk; there are holes in it."""
        return self.partial.stat().st_blocks * 512 if self.partial.exists() else 0

    def hash(self, is_over: Callable[[], bool]) -> str:
        """Return the SHA-256, waiting for each segment in turn; empty if the job is over before.

        A segment is read while it is still in the page cache, but where an earlier run has left it.
        """
        digest = hashlib.sha256()
        for segment in self.segments:
            with self.moved:
                self.moved.wait_for(lambda: segment in self.done or is_over())  # noqa: B023 - waited for right here
            if is_over():
                return ""
            with mmap.mmap(
                self._fd,
                self.length(segment),
                flags=mmap.MAP_SHARED | mmap.MAP_POPULATE,
                prot=mmap.PROT_READ,
                offset=segment * SEGMENT_BYTES,
            ) as there:
                digest.update(there)
        return digest.hexdigest()

    def forget(self) -> None:
        """Count nothing of it as there."""
        with self.moved:
            self.done.clear()
        self.record.write_text(self._head + "\n")

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def keep(self) -> None:
        """Give the checked file its name."""
        self.close()
        os.chmod(self.partial, self.mode)
        os.replace(self.partial, self.path)
        self.record.unlink()

    def discard(self) -> None:
        """Remove what is there of it."""
        self.close()
        self.partial.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)
