"""Bring a machine to what is asked: look, do what is missing, look again.

Every step does nothing where its work is done already: run twice, nothing changes and nothing restarts; broken off at
any point, the next run goes on from there. What each file is for stands in `render.py`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from bootstrap.bundle import Programs, build_bundle, differing, pack, programs_of
from bootstrap.cache import CacheError, restore
from bootstrap.closing import NOTHING_APPLIED, close_door, empty_machine
from bootstrap.host.watching.reasons import HOST_FAULTS, explain
from bootstrap.remote import RUNNING, ask, growing_pauses, must
from bootstrap.render import ROOT, blob_path, fingerprint, model_folder
from bootstrap.steps import (
    Applied,
    Engine,
    Gpu,
    Grant,
    Identity,
    Remaining,
    Report,
    Supplies,
    parse_gpus,
    redact,
    telling_lines,
)
from bootstrap.weights import bring
from dynamic_providers.errors import BootError, BootstrapError

if TYPE_CHECKING:  # who logs in imports it: asyncssh takes a third of a second
    from bootstrap.ssh import Machine

CALL_OFF = timedelta(seconds=15)
"""An agent looks every five seconds, and longer at what hangs."""
UPLOAD_TIMEOUT = timedelta(minutes=3)
"""The bundle is about 280 kB; a home uplink may be slow and busy."""

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
    supplies: Supplies,
    remaining: Remaining,
    *,
    left: Callable[[str], timedelta],
    report: Report,
) -> Applied:
    """Make the machine serve *engine* as *identity*; return what each phase took.

    Args:
        machine: Logged in.
        engine: What is to be served.
        identity: The machine's own secrets.
        supplies: Where everything comes from that is fetched.
        remaining: Of its lease; should we vanish, the machine ends itself.
        left: Tells how long a phase, `weights` or `engine`, may take if it begins now.
        report: Told now and then how a phase goes on.

    Raises:
        BootError: The host fails or is too slow: another one may do better.
        BootstrapError: What is asked does not run, here or elsewhere.
    """
    began = time.monotonic()
    programs = programs_of(engine, identity, supplies)
    changed = await _put_bundle(machine, build_bundle(programs))
    await ask(machine, "lease", remaining.to_json(is_ready=False))
    await must(machine, "start", f"python3 {ROOT}/bundle/host/start.py </dev/null")
    starter = Starter(machine, programs)
    starter.look((await ask(machine, "status"))["programs"])
    changed |= await starter.ensure("agent")
    await _refuse_ending(machine)
    changed |= await bring(machine, engine, supplies, left("weights"), report)
    links = [{"path": file.path, "blob": blob_path(file.sha256)} for file in engine.files]
    changed |= (await ask(machine, "link", model_folder(engine), links))["changed"]
    cache_refused = await _restore_cache(machine, engine, supplies.cache) if supplies.cache else ""
    fetched = time.monotonic()
    starter.look((await ask(machine, "status"))["programs"])  # weights take long enough for much to happen
    is_sick = ((await ask(machine, "state")).get("engine") or {}).get("state") == "unhealthy"
    for name in ("door", "engine", "push"):
        changed |= await starter.ensure(name, anew=is_sick and name == "engine")
    pids = {name: starter.pids[name] for name in ("door", "engine")}  # the others come back by themselves
    await _wait_until_healthy(machine, pids, identity, left("engine"), report)
    await ask(machine, "open_door", {"settings": engine.settings_hash(), "instance": identity.instance_id})
    return Applied({"weights": fetched - began, "engine": time.monotonic() - fetched}, changed, cache_refused)


async def hand_over(
    machine: Machine, remaining: Remaining, provisioning: Mapping[str, Any] | None, *, patience: timedelta
) -> Mapping[str, Any]:
    """Tell the machine that it is ready; from here on it looks after itself. Return what it says of itself.

    Args:
        machine: Logged in, and serving.
        remaining: Of its lease.
        provisioning: How it came up, for its metrics; None leaves there what it was told when it did.
        patience: How long it may take to be armed; one that is not serves all the same.

    Raises:
        BootstrapError: Its agent does not run: nobody there would ever end the rental.
    """
    until, pauses = time.monotonic() + patience.total_seconds(), growing_pauses()
    await ask(machine, "ready", remaining.to_json(is_ready=True), provisioning)
    while True:
        state: Mapping[str, Any] = await ask(machine, "state")
        if state.get("armed") and state.get("phase") == "r":  # from here on it counts who uses it
            return state
        if time.monotonic() > until:
            break
        await asyncio.sleep(next(pauses))
    if state:
        return state
    agent = (await ask(machine, "status"))["programs"]["agent"]
    last = "\n".join((await ask(machine, "tail", "agent", agent["pid"]))["lines"][-10:])
    raise BootstrapError("agent", "the machine's agent does not answer", output=redact(last, ()))


async def _restore_cache(machine: Machine, engine: Engine, cache: Grant) -> str:
    """Return why the engine starts cold; empty if its cache is there."""
    try:
        await restore(machine, engine, cache)
    except CacheError as error:
        return str(error)
    return ""


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
        await empty_machine(machine)
        await ask(machine, "halt")
    return True


class Starter:
    """Has the supervisor run what is wanted, and touches nothing that runs from it already.

    Attributes:
        pids: Of what was ensured.
    """

    def __init__(self, machine: Machine, programs: Programs) -> None:
        self.pids: dict[str, int] = {}
        self._machine, self._programs = machine, programs
        self._status: Mapping[str, Item] = {}

    def look(self, status: Mapping[str, Item]) -> None:
        """Take what the supervisor says that runs."""
        self._status = status

    async def ensure(self, name: str, *, anew: bool = False) -> bool:
        """Start, reload or stop a program; say whether that had to be. Before the engine goes, the door is shut.

        Args:
            name: Of the program.
            anew: Whether it is of no use as it runs, though it runs from what is wanted.
        """
        program, files = self._status[name], self._programs.get(name)
        runs = program["state"] in RUNNING
        if files is None:
            if runs:
                await ask(self._machine, "stop", name)
            return runs
        self.pids[name] = program["pid"]
        if runs and program["started"] == fingerprint(files) and not anew:
            return False
        if name == "door" and runs and (await ask(self._machine, "reload_door"))["reloaded"]:
            return True
        if name in ("door", "engine") and runs:
            await empty_machine(self._machine)
        elif name == "engine":
            await close_door(self._machine)
        self.pids[name] = (await ask(self._machine, "start", name))["pid"]
        return True


async def _refuse_ending(machine: Machine) -> None:
    """Raise if the machine ends its own rental and does not call that off for the lease that it was just told."""
    until, pauses = time.monotonic() + CALL_OFF.total_seconds(), growing_pauses()
    while ending := (await ask(machine, "state")).get("ending"):
        if time.monotonic() > until:
            raise BootError("agent", f"the machine is ending its own rental ({ending}): run `pulumi up` again")
        await asyncio.sleep(next(pauses))


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
    lines = log.splitlines()
    output = "\n".join(telling_lines(lines))
    if name == "door":
        return BootstrapError("door", "the front door does not start", output=output)
    reason = explain(lines)
    if reason.name in HOST_FAULTS:
        return BootError("engine", f"vLLM ended at its start: {reason.message}\n{output}")
    return BootstrapError("engine", f"vLLM ended at its start: {reason.message}", output=output)
