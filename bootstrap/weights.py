"""Have a machine fetch what it lacks, and see to it until all of it is there: room, progress, fresh URLs, refusals."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from bootstrap.closing import empty_machine
from bootstrap.contents import config_files, refused_files
from bootstrap.remote import RUNNING, ask, growing_pauses
from bootstrap.render import blob_path, program_path
from bootstrap.steps import Engine, Grant, Report, Supplies, redact, render_progress
from dynamic_providers.errors import BootError, BootstrapError

if TYPE_CHECKING:
    from bootstrap.ssh import Machine

Item = Mapping[str, Any]

OF_THE_HOST = frozenset({"network", "disk", "host", "untrusted"})
"""What another machine may do better."""


@dataclass(frozen=True)
class Watch:
    """How a download is seen to.

    Args:
        until: When it must be there, on a monotonic clock.
        report: Told how it goes on.
        sign: Signs the URLs of all its files anew; None where nobody can.
    """

    until: float
    report: Report
    sign: Callable[[], Mapping[str, str]] | None


async def bring(machine: Machine, engine: Engine, supplies: Supplies, deadline: timedelta, report: Report) -> bool:
    """Put the model and the programs on the machine's disk; say whether anything had to be fetched.

    Raises:
        BootError: The host fails or is too slow.
        BootstrapError: A file cannot be had, or must not be served.
    """
    if problems := refused_files([file.path for file in engine.files], engine.allow):
        raise BootstrapError("weights", "\n  - ".join([f"{engine.release} is not served:", *problems]))
    files, fresh_urls = _files(supplies, engine), supplies.fresh_urls
    sign = (lambda: fresh_urls([item["sha256"] for item in files])) if fresh_urls else None
    is_new = await _fetch(machine, files, Watch(time.monotonic() + deadline.total_seconds(), report, sign))
    await _refuse_code(machine, engine)
    return is_new


def _files(supplies: Supplies, engine: Engine) -> list[Item]:
    """Return what must lie on the disk, the programs first; each blob once, however many files it is."""
    wanted: dict[str, Item] = {
        grant.sha256: {**_item(name, grant, program_path(name, grant.sha256)), "mode": 0o700}
        for name, grant in supplies.programs.items()
    }
    for file in engine.files:
        wanted[file.sha256] = _item(file.path, supplies.blobs[file.sha256], blob_path(file.sha256))
    return list(wanted.values())


def _item(name: str, grant: Grant, path: str) -> Item:
    return {"name": name, "path": path, "sha256": grant.sha256, "size": grant.size, "url": grant.url}


async def _refuse_code(machine: Machine, engine: Engine) -> None:
    """Refuse configurations that have code loaded, now that they are there and checked."""
    if "code" in engine.allow:
        return
    configs = {blob_path(file.sha256): file.path for file in config_files(engine.files)}
    if naming := [configs[path] for path in await ask(machine, "naming_code", list(configs))]:
        raise BootstrapError(
            "weights",
            f"{engine.release} is not served: {', '.join(naming)} would have code of the model's own loaded (auto_map);"
            " take a model without, or, if you have read it and trust it, push it with --allow-code",
        )


async def _fetch(machine: Machine, files: Sequence[Item], watch: Watch) -> bool:
    """Have the machine fetch what it lacks. A download that an earlier run left going is picked up."""
    known = [{key: value for key, value in item.items() if key != "url"} for item in files]
    look = await ask(machine, "missing", known)
    if not look["files"]:
        return False
    if look["short_bytes"]:
        # What serves now goes first: its files may not be given back before it lets go of them.
        await empty_machine(machine)
        await ask(machine, "stop", "engine")
        await ask(machine, "prune", known)
        look = await ask(machine, "missing", known)
    if look["short_bytes"]:
        need, free = look["need_bytes"] / 1e9, look["free_bytes"] / 1e9
        raise BootError("weights", f"the disk has {free:.1f} GB free, {need:.1f} GB and a reserve are to go there")
    job = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    status = await ask(machine, "status")
    picked_up = (status["fetch"] or {}).get("job") == job and status["programs"]["fetch"]["state"] in RUNNING
    if picked_up and not await _follow(machine, watch):
        return True
    await ask(machine, "fetch", {"id": job, "files": files})
    if failure := await _follow(machine, watch):
        raise failure
    return True


async def _follow(machine: Machine, watch: Watch) -> BootError | BootstrapError | None:
    """Watch the download to its end; return what went wrong, or None."""
    text, renewals, pauses = "not begun", Renewals(watch), growing_pauses()
    while True:
        status = await ask(machine, "status")
        progress = status["fetch"] or {}
        match progress.get("state"):
            case "done":
                return None
            case "failed":
                return _error(progress)
            case "running" | "waiting":
                text = render_progress(progress["bytes"], progress["total"], progress["rate"])
                watch.report("weights", text)
        if progress.get("state") == "waiting" and (failure := await renewals.renew(machine, progress)):
            await ask(machine, "stop", "fetch")
            return failure
        if status["programs"]["fetch"]["state"] not in RUNNING:
            # It may have ended between the two looks that make a status.
            progress = (await ask(machine, "status"))["fetch"] or {}
            if progress.get("state") not in {"done", "failed"}:
                return BootError("weights", f"the download ended half-way: {text}")
            continue
        if time.monotonic() > watch.until:
            await ask(machine, "stop", "fetch")
            return BootError("weights", f"missed its deadline: {text}")
        await asyncio.sleep(next(pauses))


class Renewals:
    """Hands fresh URLs to a download that waits for them, as long as they get it any further."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._taken: int | None = None
        self._bytes = -1

    async def renew(self, machine: Machine, progress: Mapping[str, Any]) -> BootstrapError | None:
        """Sign anew and hand over, once each time it waits; return why there is no sense in it."""
        if progress["renewals"] == self._taken:
            return None  # those are still on their way
        if self._watch.sign is None:
            return BootstrapError("weights", said_of(progress))
        if progress["bytes"] == self._bytes:
            return BootstrapError(
                "weights",
                f"{said_of(progress)}\n  A URL that was signed just now is no better: this machine's clock and the"
                " store's disagree; set this one (timedatectl) and run `pulumi up` again",
            )
        self._taken, self._bytes = progress["renewals"], progress["bytes"]
        self._watch.report("weights", f"{said_of(progress)}: signing anew")
        await ask(machine, "renew", dict(await asyncio.to_thread(self._watch.sign)))
        return None


def said_of(progress: Mapping[str, Any]) -> str:
    """Return what the download says of a file, without what no one may read."""
    return redact(f"{progress['file']}: {progress['message']}", ())


def _error(progress: Mapping[str, Any]) -> BootError | BootstrapError:
    kind = BootError if progress["kind"] in OF_THE_HOST else BootstrapError
    return kind("weights", said_of(progress))
