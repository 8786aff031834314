"""A stack whose commands are killed at a chosen moment, in a sandbox with others beside it."""

import asyncio
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from dynamic_providers.lease.label import Phase
from dynamic_providers.vast.models import Instance
from tests.sandbox.gate import Gate
from tests.sandbox.hosts.processes import MARK, end_processes, find_processes
from tests.sandbox.world import World

COMMAND_SECONDS = 90.0
ORPHAN_SECONDS = 15.0
"""An orphaned provider sees within seconds that its engine is gone, gives back what it rented, and ends."""
SILENCE_SECONDS = 4.0
"""A provider at work looks at its engine every second, and asks the market something once that is gone."""
LOOK_SECONDS = 0.05
PROVIDER = b"pulumi.dynamic"


class Command:
    """One command that runs."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process, self._log = process, log

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="replace")

    def wait(self, seconds: float = COMMAND_SECONDS) -> int:
        """Wait for its end; return its exit status."""
        return self.process.wait(seconds)

    def wait_for(self, words: str) -> bool:
        """Wait until it has printed these words, after the resource and its state or at a line's beginning."""
        told = re.compile(rf"(^ *|\(\d+s\) | running ){re.escape(words)}", re.MULTILINE)
        return self.wait_until(lambda: told.search(self.said) is not None)

    def wait_until(self, has_come: Callable[[], bool]) -> bool:
        """Wait while it runs; say whether it has come."""
        until = time.monotonic() + COMMAND_SECONDS
        while not has_come() and self.process.poll() is None and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
        return has_come()


class Killing:
    """One stack of a sandbox, with a gate between it and the market.

    Args:
        world: The sandbox.
        name: Of the stack; it is `gpu-on` under another name.
    """

    def __init__(self, world: World, name: str) -> None:
        self.name, self._world = name, world
        self._mark = f"{world.plan.folder}/killing/{name}"
        self._file = world.project / "stacks" / f"Pulumi.{name}.yaml"
        self._settings = yaml.safe_load((world.project / "stacks" / "Pulumi.gpu-on.yaml").read_text())["config"]
        self._logs = self._editions = 0
        self.gate = Gate(world.market.url)
        self.env = {**os.environ, **world.environment, "VAST_URL": self.gate.url, MARK: self._mark}

    def __enter__(self) -> "Killing":
        self.gate.__enter__()
        self.change("model", served_name="first")
        self.run("stack", "init", "--no-select", self.name)
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.run(end_processes(self._mark))
        self.gate.__exit__(*exc)

    # What is asked

    def change(self, section: str, **values: Any) -> None:
        """Edit the stack file; what the engine has written there stays."""
        self._settings[f"gpu-on-demand:{section}"].update(values)
        document = yaml.safe_load(self._file.read_text()) if self._file.exists() else {}
        self._file.write_text(yaml.safe_dump({**document, "config": self._settings}))

    def edition(self) -> int:
        """Return another number each time."""
        self._editions += 1
        return self._editions

    # Commands

    def start(self, *words: str) -> Command:
        """Start a command; nobody waits at its terminal."""
        self._logs += 1
        log = self._world.plan.folder / f"{self.name}-{self._logs}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["pulumi", *words],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Command(process, log)

    def deploy(self, kind: str) -> Command:
        """Start `up`, `refresh` or `destroy`."""
        return self.start(kind, "-y", "--skip-preview", "-s", self.name)

    def run(self, *words: str) -> None:
        """Run a command that must succeed."""
        command = self.start(*words)
        assert command.wait() == 0, f"pulumi {' '.join(words)}: {command.said}"

    def settle(self, kind: str) -> None:
        """Run `up`, `refresh` or `destroy`, which must succeed."""
        self.run(kind, "-y", "--skip-preview", "-s", self.name)

    def unlock(self) -> None:
        """Take the lock away if a killed engine has left one."""
        if any(self._world.plan.folder.glob(f"state/.pulumi/locks/**/{self.name}/*.json")):
            self.run("cancel", "-y", "-s", self.name)

    # Violence

    def processes(self) -> set[int]:
        """Return what runs of the stack's commands, providers included."""
        return find_processes(self._mark)

    def providers(self) -> set[int]:
        """Return the processes that our providers run in."""
        return {pid for pid in self.processes() if PROVIDER in _arguments(pid)}

    def kill(self, command: Command, whom: str) -> None:
        """End by SIGKILL the `cli` alone, the `provider` alone, or `both` with all that they started."""
        if whom == "cli":
            victims = {command.process.pid}
        else:
            victims = self.providers() if whom == "provider" else self.processes()
        for pid in victims:
            _kill(pid)
        if whom != "provider":
            command.process.wait()

    def wait_for_orphans(self) -> Sequence[int]:
        """Wait until no provider is at work any more; return those that are all the same.

        The real engine also starts some that it never asks anything: they never load our code, so they cannot see that
        the engine is gone. They are known by their silence.
        """
        until, seen, silent_since = time.monotonic() + ORPHAN_SECONDS, -1, 0.0
        while (alive := self.providers()) and time.monotonic() < until:
            if len(self.gate.moments) != seen:
                seen, silent_since = len(self.gate.moments), time.monotonic()
            if time.monotonic() - silent_since > SILENCE_SECONDS:
                return []
            time.sleep(LOOK_SECONDS)
        return sorted(alive)

    @contextmanager
    def unwritable_state(self) -> Iterator[None]:
        """Let the engine read no state and write none, as on a full disk; root is stopped by this as well."""
        (path,) = self._world.plan.folder.glob(f"state/.pulumi/stacks/**/{self.name}.json")
        folder, aside = path.parent, path.parent.with_name("aside")
        folder.rename(aside)
        folder.touch()
        try:
            yield
        finally:
            folder.unlink()
            aside.rename(folder)

    # What is there

    def instances(self) -> list[Instance]:
        """Return the instances of this stack, as the market itself knows them."""
        rows = [row for row in self._world.market.instances if str(row["label"]).endswith(f"/{self.name}")]
        return [Instance.from_api(row) for row in rows]

    def recorded(self) -> dict[str, Any]:
        """Return the outputs of the machine in the state; empty if there is none."""
        (path,) = self._world.plan.folder.glob(f"state/.pulumi/stacks/**/{self.name}.json")
        resources = json.loads(path.read_text())["checkpoint"]["latest"].get("resources") or []
        machines = [r for r in resources if r["type"].endswith(":Instance") and not r.get("pendingReplacement")]
        return dict(machines[0]["outputs"]) if machines else {}

    def wrongs_after_up(self) -> list[str]:
        """Say what is wrong when one machine should serve what is asked."""
        recorded, there = self.recorded(), self.instances()
        if [str(instance.id) for instance in there] != [recorded.get("instance_id")]:
            return [f"there: {[i.id for i in there]}, recorded: {recorded.get('instance_id')}"]
        run = self._world.plan.folder / f"hosts/{there[0].id}/w/gpu-on-demand/run"
        label = there[0].parsed
        is_wrong = {
            f"its label is {there[0].label}": label is None or label.phase is not Phase.READY,
            "its door is closed": (run / "closed").exists(),
            "it serves something else than is recorded": json.loads((run / "control/state.json").read_text())[
                "settings"
            ]
            != recorded["applied"],
            "what is recorded is not what is asked": recorded["model"]["served_name"]
            != self._settings["gpu-on-demand:model"]["served_name"],
        }
        return [text for text, wrong in is_wrong.items() if wrong]

    def wrongs_after_destroy(self) -> list[str]:
        """Say what is wrong when nothing should be there."""
        there, recorded = self.instances(), self.recorded()
        return [f"there: {[i.id for i in there]}, recorded: {recorded}"] if there or recorded else []


def _arguments(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        """It ended by itself."""
