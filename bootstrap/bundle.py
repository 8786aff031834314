"""The bundle: every file that `apply` puts on a machine, and what of it differs from what is there."""

import hashlib
import io
import tarfile
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path

from bootstrap.render import render_programs, render_supervisor_conf
from bootstrap.steps import Engine, Identity, Supplies

LEFT_BEHIND = frozenset({"tests", "ui", "scripts", "skel", "__pycache__", "aiohttp", "bridge", "django", "twisted"})
"""Folders of the carried packages that a machine has no use for."""
PACKAGES = ("supervisor", "prometheus_client")
RULES = ("label.py", "market.py", "metrics.py", "policy.py")
"""Of `dynamic_providers/lease`: the agent goes by the same rules as the reaper."""

Programs = Mapping[str, Mapping[str, bytes]]


def programs_of(engine: Engine, identity: Identity, supplies: Supplies) -> Programs:
    """Return for each program the files that it is started from, in the order in which they start."""
    digests = {name: grant.sha256 for name, grant in supplies.programs.items()}
    return render_programs(engine, identity, digests, _code_sha256())


def build_bundle(programs: Programs) -> dict[str, bytes]:
    """Return the content of every file, by its path inside `bundle/`."""
    rendered = {f"{program}/{name}": content for program, files in programs.items() for name, content in files.items()}
    return {**carried(), **rendered, "supervisord.conf": render_supervisor_conf().encode()}


def differing(bundle: Mapping[str, bytes], listing: str) -> dict[str, bytes]:
    """Return the files that are not on the machine as they should be.

    Args:
        bundle: What should be there.
        listing: What `sha256sum` says is there.
    """
    there = {path.removeprefix("./"): digest for digest, _, path in map(_fields, listing.splitlines())}
    return {path: content for path, content in bundle.items() if there.get(path) != hashlib.sha256(content).hexdigest()}


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return a gzipped tar of *files*, mode 0600: secrets may be among them."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as tar:
        for path, content in sorted(files.items()):
            info = tarfile.TarInfo(path)
            info.size, info.mode = len(content), 0o600
            tar.addfile(info, io.BytesIO(content))
    return target.getvalue()


def _fields(line: str) -> tuple[str, str, str]:
    return line.partition("  ")


@cache
def carried() -> dict[str, bytes]:
    """Return the files that are the same on every machine."""
    # A program is called by its path. A package is imported, there as here by the same name.
    ours = {
        f"{'bootstrap/' if '/' in path else ''}host/{path}": data
        for path, data in _walk(resources.files("bootstrap.host"))
    }
    lease = resources.files("dynamic_providers.lease")
    rules = {f"dynamic_providers/lease/{name}": (lease / name).read_bytes() for name in RULES}
    packages = {f"{name}/{path}": data for name in PACKAGES for path, data in _walk(_lies_at(name).parent)}
    return {**ours, **rules, **packages, "pynvml.py": _lies_at("pynvml").read_bytes()}


def _lies_at(module: str) -> Path:
    """Return an installed module's file. Not imported: some take long, and nothing of them runs here."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{module} is not installed: make setup")
    return Path(spec.origin)


@cache
def _code_sha256() -> str:
    known = carried()
    return hashlib.sha256(b"".join(path.encode() + known[path] for path in sorted(known))).hexdigest()


def _walk(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        if entry.is_file():
            yield prefix + entry.name, entry.read_bytes()
        elif entry.name not in LEFT_BEHIND:
            yield from _walk(entry, f"{prefix}{entry.name}/")
