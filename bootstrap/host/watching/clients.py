"""How often each client was answered with what, counted from the front door's access log.

The log is followed across its rotations; where the count stands is kept beside it, so that an agent that is started
anew goes on. Runs on the machine: standard library only.
"""

import contextlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

CHUNK_BYTES = 2**20
MAX_LINE_BYTES = 2**20
"""A line without an end that is longer is no line of ours."""

Counts = Mapping[tuple[str, str], int]


class ClientCounts:
    """The counts, and the place in the log up to which they count."""

    def __init__(self, log: Path, note: Path) -> None:
        """Go on where *note* says.

        Args:
            log: The door's access log. A file that it is rotated into lies beside it.
            note: Where the place is kept; one that cannot be read, or is not there, means to begin anew.
        """
        self._log, self._note = log, note
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._position, self._rest = 0, b""
        self._counts: Counter[tuple[str, str]] = Counter()
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            self._resume(json.loads(note.read_bytes()))

    def read(self) -> Counts:
        """Return answered requests by client and status code, of all that were logged until now."""
        with self._lock:
            before = self._position, self._inode()
            # A log that cannot be read now is read the next time.
            with contextlib.suppress(OSError):
                self._follow()
            if (self._position, self._inode()) != before:
                with contextlib.suppress(OSError):  # a full disk: the count goes on in memory
                    self._write_note()
            return dict(self._counts)

    def close(self) -> None:
        """Let the log go."""
        with self._lock:
            if self._file:
                self._file.close()
                self._file = None

    def _resume(self, said: Any) -> None:
        counts = Counter({(client, code): int(count) for client, code, count in said["counts"]})
        inode, position = int(said["inode"]), int(said["position"])
        for path in (self._log, *sorted(self._log.parent.glob(f"{self._log.stem}-*"))):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == inode:
                    self._file, self._position = path.open("rb"), position
                    break
        self._counts = counts

    def _inode(self) -> int | None:
        return os.fstat(self._file.fileno()).st_ino if self._file else None

    def _follow(self) -> None:
        """Count to the end of the file at hand, and then all of the one that took its place, if one did."""
        if self._file:
            self._count(self._file)
        current = self._log.stat().st_ino
        if current != self._inode():
            file = self._log.open("rb")
            if self._file:
                self._count(self._file)  # what came while we looked
                self._file.close()
            self._file, self._position, self._rest = file, 0, b""
            self._count(file)

    def _count(self, file: IO[bytes]) -> None:
        if os.fstat(file.fileno()).st_size < self._position:  # somebody emptied it
            self._position, self._rest = 0, b""
        file.seek(self._position)
        while chunk := file.read(CHUNK_BYTES):
            *lines, rest = chunk.split(b"\n")
            if lines:
                lines[0] = self._rest + lines[0]
                self._rest = b""
            self._rest = (self._rest + rest)[-MAX_LINE_BYTES:]
            self._position += len(chunk)
            self._counts.update(answered(lines))

    def _write_note(self) -> None:
        counts = [[client, code, count] for (client, code), count in self._counts.items()]
        place = {"inode": self._inode(), "position": self._position - len(self._rest), "counts": counts}
        new = self._note.with_name(self._note.name + ".new")
        new.write_text(json.dumps(place))
        new.replace(self._note)


def answered(lines: list[bytes]) -> Iterator[tuple[str, str]]:
    """Yield client and status code of each line that names a client; only a right token has a name."""
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(entry.get("client"), str) and entry["client"]:
                yield entry["client"], str(entry.get("status", ""))
