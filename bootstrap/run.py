"""Bring a machine to what is asked: look, do what is missing, look again.

Every step does nothing where its work is done already: run twice, nothing changes and nothing restarts; broken off at
any point, the next run goes on from there. What each file is for stands in `render.py`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from bootstrap.bundle import build_bundle, differing, pack
from bootstrap.cache import CacheError, restore
from bootstrap.remote import RUNNING, ask, growing_pauses, must
from bootstrap.render import ROOT, blob_path, fingerprint, model_folder, render_programs
from bootstrap.steps import (
    Applied,
    Deadlines,
    Engine,
    Gpu,
    Grant,
    Identity,
    Report,
    is_host_fault,
    parse_gpus,
    redact,
    telling_lines,
)
from bootstrap.weights import FreshUrls, bring
from dynamic_providers.errors import BootError, BootstrapError

if TYPE_CHECKING:  # who logs in imports it: asyncssh takes a third of a second
    from bootstrap.ssh import Machine

UPLOAD_TIMEOUT = timedelta(minutes=3)
"""The bundle is about 150 kB; a home uplink may be slow and busy."""
NOTHING_APPLIED = '{"settings": null}'

Item = Mapping[str, Any]


async def inspect_gpus(machine: Machine) -> tuple[Gpu, ...]:
    """Return the GPUs that the machine's own driver shows.

    Raises:
        BootError: It shows none that we can read: the driver is broken or missing.
    """
    done = await machine.run("nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits")
    try:
        if done.exit_status:
            raise ValueError(done.stderr.strip() or done.stdout.strip())
        return parse_gpus(done.stdout)
    except ValueError as error:
        raise BootError("ssh", f"nvidia-smi does not tell what GPU is there: {error}") from error


async def apply(
    machine: Machine,
    engine: Engine,
    identity: Identity,
    caddy: Grant,
    blobs: Mapping[str, Grant],
    *,
    deadlines: Deadlines,
    report: Report,
    fresh_urls: FreshUrls | None = None,
    cache: Grant | None = None,
) -> Applied:
    """Make the machine serve *engine* as *identity*; return what each phase took.

    Args:
        machine: Logged in.
        engine: What is to be served.
        identity: The machine's own secrets.
        caddy: Where the front door's program comes from.
        blobs: For each file of the model, by SHA-256, where it comes from.
        deadlines: Of the phases `weights` and `engine`.
        report: Told now and then how a phase goes on.
        fresh_urls: Asked for new URLs where those of *caddy* and *blobs* end while they are in use.
        cache: Where the engine's start-up cache comes from; what is wrong with it only makes the start a cold one.

    Raises:
        BootError: The host fails or is too slow: another one may do better.
        BootstrapError: What is asked does not run, here or elsewhere.
    """
    began = time.monotonic()
    changed = await _put_bundle(machine, build_bundle(engine, identity, caddy.sha256))
    await must(machine, "start", f"python3 {ROOT}/bundle/host/start.py </dev/null")
    changed |= await bring(machine, engine, caddy, blobs, deadlines.weights, report, fresh_urls)
    links = [{"path": file.path, "blob": blob_path(file.sha256)} for file in engine.files]
    changed |= (await ask(machine, "link", model_folder(engine), links))["changed"]
    cache_refused = await _restore_cache(machine, engine, cache) if cache else ""
    fetched = time.monotonic()
    running, pids = (await ask(machine, "status"))["programs"], {}
    for name, files in render_programs(engine, identity, caddy.sha256).items():
        is_new, pids[name] = await _ensure(machine, name, running[name], fingerprint(files))
        changed |= is_new
    await _wait_until_healthy(machine, pids, identity, deadlines.engine, report)
    await ask(machine, "open_door", {"settings": engine.settings_hash(), "instance": identity.instance_id})
    return Applied({"weights": fetched - began, "engine": time.monotonic() - fetched}, changed, cache_refused)


async def _restore_cache(machine: Machine, engine: Engine, cache: Grant) -> str:
    """Return why the engine starts cold; empty if its cache is there."""
    try:
        await restore(machine, engine, cache)
    except CacheError as error:
        return str(error)
    return ""


async def close_door(machine: Machine) -> None:
    """Let the front door answer 503 until the next `apply`; requests that run are answered to their end.

    From here on the machine says that nothing is applied: who was about to give it back may be killed, and whoever
    comes next must see that it does not serve.
    """
    note = f"echo '{NOTHING_APPLIED}' >control/state.json"
    await must(machine, "door", f"if cd {ROOT}/run 2>/dev/null; then {note}; touch closed; fi")


async def read_settings_hash(machine: Machine) -> str | None:
    """Return the hash of the settings that are applied; None if there are none, or not all of them."""
    done = await machine.run(f"cat {ROOT}/run/control/state.json")
    if done.exit_status:
        return None
    settings: str | None = json.loads(done.stdout)["settings"]
    return settings


async def _put_bundle(machine: Machine, bundle: Mapping[str, bytes]) -> bool:
    """Put the files that differ. What runs goes on with what it has until it is started anew."""
    listing = await must(
        machine,
        "bundle",
        f"umask 077; mkdir -p {ROOT}/bundle {ROOT}/run/control && cd {ROOT}/bundle"
        " && find . -type f ! -path '*/__pycache__/*' -exec sha256sum {} +",
    )
    missing = differing(bundle, listing)
    if not missing:
        return False
    await must(
        machine,
        "bundle",
        # From here on the former settings are no longer what would come back after a restart.
        f"umask 077; cd {ROOT}/bundle && echo '{NOTHING_APPLIED}' >../run/control/state.json"
        " && tar -xzf - --no-same-owner",
        stdin=pack(missing),
        timeout=UPLOAD_TIMEOUT,
    )
    # On a machine that had nothing, nothing can run.
    if listing and any(path.startswith("supervisor") for path in missing):
        await ask(machine, "halt")
    return True


async def _ensure(machine: Machine, name: str, program: Item, wanted: str) -> tuple[bool, int]:
    """Start a program unless it runs from what is wanted; before the engine goes, the door is closed.

    Returns:
        Whether it was started, and its process id.
    """
    if program["state"] in RUNNING and program["started"] == wanted:
        return False, program["pid"]
    if name == "engine":
        await close_door(machine)
    return True, (await ask(machine, "start", name))["pid"]


async def _wait_until_healthy(
    machine: Machine, pids: Mapping[str, int], identity: Identity, deadline: timedelta, report: Report
) -> None:
    """Wait for door and engine; one that ends at its start is noticed at once, not at the deadline."""
    began, pauses = time.monotonic(), growing_pauses()
    while True:
        status = await ask(machine, "status")
        for name, pid in pids.items():
            program = status["programs"][name]
            if program["state"] not in RUNNING or program["pid"] != pid:
                await ask(machine, "stop", name)
                raise _start_error(name, await _tail(machine, name, pid, identity))
        if status["healthy"]:
            return
        seconds = time.monotonic() - began
        if seconds > deadline.total_seconds():
            last = (await _tail(machine, "engine", pids["engine"], identity)).rpartition("\n")[2]
            raise BootError("engine", f"not up after {seconds:.0f} s, its last words: {last}")
        report("engine", f"starting, {seconds:.0f} s")
        await asyncio.sleep(next(pauses))


async def _tail(machine: Machine, name: str, pid: int, identity: Identity) -> str:
    lines = (await ask(machine, "tail", name, pid))["lines"]
    return redact("\n".join(lines), identity.secrets())


def _start_error(name: str, log: str) -> BootError | BootstrapError:
    output = "\n".join(telling_lines(log.splitlines()))
    if name == "door":
        return BootstrapError("door", "the front door does not start", output=output)
    if is_host_fault(log):
        return BootError("engine", f"vLLM finds no GPU that it can use:\n{output}")
    return BootstrapError("engine", "vLLM ended at its start; see its arguments and the model", output=output)
