"""What the builders of heavy parts share: one at a time, whole or not at all, and what they say going to the user."""

import argparse
import fcntl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STAMP = "built"  # written last, so that a half-built folder is never taken for a built one


class BuildError(Exception):
    """It could not be built; the message says why, ready to print."""


@dataclass(frozen=True)
class Part:
    """Something that is built into a folder of its own.

    Args:
        name: For the user.
        home: The folder.
        key: Says what it is made of: once that changes, what stands there is stale.
        make: Builds it; the folder may hold what a broken build left.
        effort: What that takes, for the user.
    """

    name: str
    home: Path
    key: Callable[[], str]
    make: Callable[[], None]
    effort: str

    def is_built(self) -> bool:
        """Say whether it stands complete and up to date."""
        stamp = self.home / STAMP
        return stamp.is_file() and stamp.read_text() == self.key()

    def build(self) -> Path:
        """Return the folder, building what belongs there first where it is missing.

        Raises:
            BuildError: That did not work.
        """
        self.home.parent.mkdir(exist_ok=True)
        with self._alone():
            if not self.is_built():
                started = time.monotonic()
                say(f"building {self.name}: {self.effort}, once")
                self.make()
                part = self.home / f"{STAMP}.part"
                part.write_text(self.key())
                part.rename(self.home / STAMP)
                say(f"{self.name} is built ({time.monotonic() - started:.0f} s)")
        return self.home

    def main(self, doc: str | None) -> int:
        """Build where needed and print the folder; *doc* is the caller's docstring. Return the exit status."""
        argparse.ArgumentParser(description=doc.splitlines()[0] if doc else None).parse_args()
        try:
            sys.stdout.write(f"{self.build()}\n")
        except BuildError as error:
            say(f"{self.name} could not be built: {error}")
            return 1
        return 0

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one builder in at a time; the second finds the work done."""
        with (self.home.parent / f"{self.home.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def run(*command: str, environment: Mapping[str, str] | None = None, folder: Path | None = None) -> None:
    """Run a tool, what it says going through to the user.

    Raises:
        BuildError: It is missing, or failed.
    """
    name = Path(command[0]).name
    try:
        done = subprocess.run(command, check=False, stdout=sys.stderr, env=environment, cwd=folder)
    except FileNotFoundError:
        raise BuildError(f"{name} is missing: run `make setup` first") from None
    if done.returncode:
        raise BuildError(f"`{name} {command[1]} …` failed (exit {done.returncode}); what it said stands above")


def find_uv() -> str:
    """Return the uv beside this Python, or the name of the one on PATH."""
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.exists() else "uv"


def say(line: str) -> None:
    """Tell the user at once."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
