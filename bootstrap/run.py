"""Bring a machine to what is asked: look, do what is missing, look again.

Every step does nothing where its work is done already: run twice, nothing changes and nothing restarts; broken off at
any point, the next run goes on from there. What each file is for stands in `render.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from bootstrap.bundle import build_bundle, differing, pack
from bootstrap.render import ROOT, blob_path, caddy_path, fingerprint, model_folder, render_programs
from bootstrap.steps import (
    COMMAND_TIMEOUT,
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
    render_progress,
    telling_lines,
)
from dynamic_providers.errors import BootError, BootstrapError

if TYPE_CHECKING:  # who logs in imports it: asyncssh takes a third of a second
    from bootstrap.ssh import Completed, Machine

LOOK_SECONDS = 0.5
FIRST_LOOK_SECONDS = 0.05
"""Small models are there at once; the pauses between looks grow from this to `LOOK_SECONDS`."""
PAUSE_GROWTH = 1.3
UPLOAD_TIMEOUT = timedelta(minutes=3)
"""The bundle is about 150 kB; a home uplink may be slow and busy."""
STOP_TIMEOUT = timedelta(minutes=2)
"""Longer than the drain of door and engine together."""
RUNNING = {"STARTING", "RUNNING"}
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

    Raises:
        BootError: The host fails or is too slow: another one may do better.
        BootstrapError: What is asked does not run, here or elsewhere.
    """
    began = time.monotonic()
    changed = await _put_bundle(machine, build_bundle(engine, identity, caddy.sha256))
    await _must(machine, "start", f"python3 {ROOT}/bundle/host/start.py </dev/null")
    changed |= await _fetch(machine, _files(caddy, blobs, engine), deadlines.weights, report)
    links = [{"path": file.path, "blob": blob_path(file.sha256)} for file in engine.files]
    changed |= (await _ask(machine, "link", model_folder(engine), links))["changed"]
    fetched = time.monotonic()
    running, pids = (await _ask(machine, "status"))["programs"], {}
    for name, files in render_programs(engine, identity, caddy.sha256).items():
        is_new, pids[name] = await _ensure(machine, name, running[name], fingerprint(files))
        changed |= is_new
    await _wait_until_healthy(machine, pids, identity, deadlines.engine, report)
    await _ask(machine, "open_door", {"settings": engine.settings_hash(), "instance": identity.instance_id})
    return Applied({"weights": fetched - began, "engine": time.monotonic() - fetched}, changed)


async def close_door(machine: Machine) -> None:
    """Let the front door answer 503 until the next `apply`; requests that run are answered to their end.

    From here on the machine says that nothing is applied: who was about to give it back may be killed, and whoever
    comes next must see that it does not serve.
    """
    note = f"echo '{NOTHING_APPLIED}' >control/state.json"
    await _must(machine, "door", f"if cd {ROOT}/run 2>/dev/null; then {note}; touch closed; fi")


async def read_settings_hash(machine: Machine) -> str | None:
    """Return the hash of the settings that are applied; None if there are none, or not all of them."""
    done = await machine.run(f"cat {ROOT}/run/control/state.json")
    if done.exit_status:
        return None
    settings: str | None = json.loads(done.stdout)["settings"]
    return settings


async def _must(
    machine: Machine, step: str, command: str, *, stdin: bytes | None = None, timeout: timedelta = COMMAND_TIMEOUT
) -> str:
    return _output(step, await machine.run(command, stdin=stdin, timeout=timeout))


def _output(step: str, done: Completed) -> str:
    if done.exit_status:
        last = "\n".join((done.stderr or done.stdout).splitlines()[-10:])
        raise BootError(step, f"a command failed on the machine (exit {done.exit_status}): {redact(last, ())}")
    return done.stdout


async def _ask(machine: Machine, command: str, *arguments: object) -> Any:
    """Run a command of `host/machine.py`; arguments and answer are JSON."""
    question = json.dumps([command, *arguments])
    done = await machine.ask(f"python3 {ROOT}/bundle/host/machine.py", question, timeout=STOP_TIMEOUT)
    return json.loads(_output(command, done))


async def _put_bundle(machine: Machine, bundle: Mapping[str, bytes]) -> bool:
    """Put the files that differ. What runs goes on with what it has until it is started anew."""
    listing = await _must(
        machine,
        "bundle",
        f"umask 077; mkdir -p {ROOT}/bundle {ROOT}/run/control && cd {ROOT}/bundle"
        " && find . -type f ! -path '*/__pycache__/*' -exec sha256sum {} +",
    )
    missing = differing(bundle, listing)
    if not missing:
        return False
    await _must(
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
        await _ask(machine, "halt")
    return True


def _files(caddy: Grant, blobs: Mapping[str, Grant], engine: Engine) -> list[Item]:
    """Return what must lie on the disk, the front door first; each blob once, however many files it is."""
    wanted: dict[str, Item] = {
        caddy.sha256: {**_item("caddy", caddy, caddy_path(caddy.sha256)), "mode": 0o700},
    }
    for file in engine.files:
        wanted[file.sha256] = _item(file.path, blobs[file.sha256], blob_path(file.sha256))
    return list(wanted.values())


def _item(name: str, grant: Grant, path: str) -> Item:
    return {"name": name, "path": path, "sha256": grant.sha256, "size": grant.size, "url": grant.url}


async def _fetch(machine: Machine, files: Sequence[Item], deadline: timedelta, report: Report) -> bool:
    """Have the machine fetch what it lacks. A download that an earlier run left going is picked up."""
    known = [{key: value for key, value in item.items() if key != "url"} for item in files]
    look = await _ask(machine, "missing", known)
    if not look["files"]:
        return False
    if look["short_bytes"]:
        # What serves now goes first: its files may not be given back before it lets go of them.
        await _ask(machine, "stop", "engine")
        await _ask(machine, "prune", known)
        look = await _ask(machine, "missing", known)
    if look["short_bytes"]:
        need, free = look["need_bytes"] / 1e9, look["free_bytes"] / 1e9
        raise BootError("weights", f"the disk has {free:.1f} GB free, {need:.1f} GB and a reserve are to go there")
    job = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    until = time.monotonic() + deadline.total_seconds()
    status = await _ask(machine, "status")
    picked_up = (status["fetch"] or {}).get("job") == job and status["programs"]["fetch"]["state"] in RUNNING
    if picked_up and not await _follow_fetch(machine, until, report):
        return True
    await _ask(machine, "fetch", {"id": job, "files": files})
    if failure := await _follow_fetch(machine, until, report):
        raise failure
    return True


async def _follow_fetch(machine: Machine, until: float, report: Report) -> BootError | BootstrapError | None:
    """Watch the download to its end; return what went wrong, or None."""
    text, pauses = "not begun", _growing_pauses()
    while True:
        status = await _ask(machine, "status")
        progress = status["fetch"] or {}
        match progress.get("state"):
            case "done":
                return None
            case "failed":
                return _fetch_error(progress)
            case "running":
                text = render_progress(progress["bytes"], progress["total"], progress["rate"])
                report("weights", text)
        if status["programs"]["fetch"]["state"] not in RUNNING:
            # It may have ended between the two looks that make a status.
            progress = (await _ask(machine, "status"))["fetch"] or {}
            if progress.get("state") not in {"done", "failed"}:
                return BootError("weights", f"the download ended half-way: {text}")
            continue
        if time.monotonic() > until:
            await _ask(machine, "stop", "fetch")
            return BootError("weights", f"missed its deadline: {text}")
        await asyncio.sleep(next(pauses))


def _growing_pauses() -> Iterator[float]:
    pause = FIRST_LOOK_SECONDS
    while True:
        yield min(pause, LOOK_SECONDS)
        pause = min(pause * PAUSE_GROWTH, LOOK_SECONDS)


def _fetch_error(progress: Mapping[str, Any]) -> BootError | BootstrapError:
    said = f"{progress['file']}: {progress['message']}"
    if progress["kind"] in {"network", "disk"}:
        return BootError("weights", said)
    return BootstrapError("weights", said)


async def _ensure(machine: Machine, name: str, program: Item, wanted: str) -> tuple[bool, int]:
    """Start a program unless it runs from what is wanted; before the engine goes, the door is closed.

    Returns:
        Whether it was started, and its process id.
    """
    if program["state"] in RUNNING and program["started"] == wanted:
        return False, program["pid"]
    if name == "engine":
        await close_door(machine)
    return True, (await _ask(machine, "start", name))["pid"]


async def _wait_until_healthy(
    machine: Machine, pids: Mapping[str, int], identity: Identity, deadline: timedelta, report: Report
) -> None:
    """Wait for door and engine; one that ends at its start is noticed at once, not at the deadline."""
    began, pauses = time.monotonic(), _growing_pauses()
    while True:
        status = await _ask(machine, "status")
        for name, pid in pids.items():
            program = status["programs"][name]
            if program["state"] not in RUNNING or program["pid"] != pid:
                await _ask(machine, "stop", name)
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
    lines = (await _ask(machine, "tail", name, pid))["lines"]
    return redact("\n".join(lines), identity.secrets())


def _start_error(name: str, log: str) -> BootError | BootstrapError:
    output = "\n".join(telling_lines(log.splitlines()))
    if name == "door":
        return BootstrapError("door", "the front door does not start", output=output)
    if is_host_fault(log):
        return BootError("engine", f"vLLM finds no GPU that it can use:\n{output}")
    return BootstrapError("engine", "vLLM ended at its start; see its arguments and the model", output=output)
