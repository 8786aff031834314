"""Start-up caches over SSH: what the engine compiled, put back before it starts and packed once it serves.

None of it is ever a reason not to serve: what goes wrong is a `CacheError` with a line to say, and the engine starts
cold. What a machine reports is a stranger's word: size and digests are checked for their form, and bind him alone.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from bootstrap.render import ROOT, cache_folder
from bootstrap.steps import Engine, Grant, redact
from dynamic_providers.errors import BootError

if TYPE_CHECKING:
    from bootstrap.ssh import Machine

MOST_BYTES = 2 * 2**30
TIMEOUT = timedelta(minutes=2)
"""For packing, sending and fetching alike: what takes longer than compiling anew saves nothing."""
_ARCHIVE = "../caches.tar.gz"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MD5 = re.compile(r"[0-9A-Za-z+/]{22}==")


class CacheError(Exception):
    """No cache this time; the message says why."""


@dataclass(frozen=True)
class Packed:
    """An archive that waits on the machine. The MD5 is in base64, as HTTP has it."""

    size: int
    sha256: str
    md5: str


async def restore(machine: Machine, engine: Engine, grant: Grant) -> None:
    """Put back what this machine sent before; what is there already stays.

    Raises:
        CacheError: The engine starts cold.
    """
    await _ask(machine, "restore", _folder(engine), _ARCHIVE, grant.url, grant.size, grant.sha256)


async def pack(machine: Machine, engine: Engine) -> Packed:
    """Pack what the engine compiled.

    Raises:
        CacheError: There is nothing, or too much.
    """
    said = await _ask(machine, "pack", _folder(engine), _ARCHIVE, MOST_BYTES)
    size, sha256, md5 = said.get("size"), said.get("sha256"), said.get("md5")
    if type(size) is not int or not 0 < size <= MOST_BYTES:
        raise CacheError(f"the machine reports an archive of {size!r} bytes")
    if not (isinstance(sha256, str) and _SHA256.fullmatch(sha256) and isinstance(md5, str) and _MD5.fullmatch(md5)):
        raise CacheError("the machine reports no digest of its archive")
    return Packed(size, sha256, md5)


async def send(machine: Machine, packed: Packed, url: str) -> None:
    """Have the machine put its archive where *url* allows.

    Raises:
        CacheError: It did not get there.
    """
    await _ask(machine, "send", _ARCHIVE, url, packed.md5)


def _folder(engine: Engine) -> str:
    return f"../{cache_folder(engine)}"


async def _ask(machine: Machine, command: str, *arguments: object) -> Mapping[str, Any]:
    """Run a command of `host/cache.py`; arguments, URLs among them, and answer are JSON."""
    program = f"python3 {ROOT}/bundle/host/cache.py {command}"
    try:
        async with asyncio.timeout(TIMEOUT.total_seconds()):  # of all tries together
            done = await machine.run(program, stdin=json.dumps(arguments).encode(), timeout=2 * TIMEOUT)
        answer = json.loads(done.stdout) if not done.exit_status else {"why": (done.stderr.splitlines() or [""])[-1]}
    except TimeoutError:
        raise CacheError(f"it took longer than {TIMEOUT.total_seconds():.0f} s") from None
    except (BootError, ValueError) as error:
        raise CacheError(redact(str(error), ())) from None
    if not isinstance(answer, dict) or "why" in answer:
        why = answer["why"] if isinstance(answer, dict) else "an answer that cannot be read"
        raise CacheError(redact(str(why), ())[:300] or "it ended without a word")
    return answer
