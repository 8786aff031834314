"""What the agent leaves for others to read, on a disk that may be full and into a log that nobody may take.

Runs on the machine: standard library only, Python 3.11.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

BLOCK_BYTES = 4096
"""What is never longer than this can be written over in place when the disk has no room for another file."""


def put(path: Path, text: str) -> bool:
    """Put a file there by rename, so that nobody reads half of it; on a full disk over the former one, in one write.

    Returns:
        Whether it is there. Nothing that the agent does may end because it is not.
    """
    new = path.with_name(path.name + ".new")
    try:
        new.write_text(text)
        new.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        return _overwrite(path, text.encode())
    return True


def _overwrite(path: Path, data: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if len(data) > BLOCK_BYTES or os.pwrite(descriptor, data, 0) != len(data):
            return False
        os.ftruncate(descriptor, len(data))
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None if there is none that can be read."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def beat(path: Path) -> None:
    """Say by a file's time that a look is over. Needs no room on the disk once the file is there."""
    with contextlib.suppress(OSError):
        path.touch(mode=0o600)


def say(text: str) -> None:
    """Write a line to the log. Where nobody takes it, as with a supervisor that is gone or hangs, it is lost."""
    with contextlib.suppress(OSError):
        os.write(1, f"{text}\n".encode(errors="replace"))
