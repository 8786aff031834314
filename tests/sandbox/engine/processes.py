"""The two kinds of child: the program, and the host of its dynamic providers. Each in a process group of its own.

Source: Pulumi 3.260: pulumi-language-python/main.go (Run), pulumi-resource-pulumi-python, plugin.go (newPlugin, Kill).
"""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from tests.sandbox.engine.errors import EngineError
from tests.sandbox.engine.project import Config, Project

_PROGRAM_HOST = Path(__file__).with_name("run_program.py")
_DRAIN_S = 2.0  # last lines come at once; a grandchild that keeps the pipe open must not hold us up
_SHUTDOWN_S = 5.0  # as the real CLI: an interrupt, then this long, then SIGKILL


class Child:
    """A child process whose output is handed on line by line."""

    def __init__(self, command: list[str], cwd: Path, env: dict[str, str], on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._gone = False
        # Its own group: a Ctrl-C in the terminal reaches the engine alone, and a killed engine leaves it running.
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            process_group=0,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self._readers = [self._read(self.process.stderr)]

    def hand_on_stdout(self) -> None:
        """Start to read what the child prints."""
        self._readers.append(self._read(self.process.stdout))

    def wait(self) -> int:
        """Wait until the child has ended and what it said is handed on."""
        code = self.process.wait()
        self._drain()
        return code

    def kill(self) -> None:
        """End the whole group at once, unless it has ended: its number may be someone else's by then."""
        if self.process.poll() is None:
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> bool:
        """Signal the group; say whether there is one. Once it is gone, its number may be someone else's."""
        if not self._gone:
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                self._gone = True
        return not self._gone

    def _drain(self) -> None:
        for reader in self._readers:
            reader.join(_DRAIN_S)

    def _read(self, stream: Any) -> threading.Thread:
        def run() -> None:
            for line in stream:
                self._on_line(line.rstrip("\n"))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread


def stop_all(children: Collection[Child]) -> None:
    """Interrupt the groups, and kill what does not listen: a shell may end before what it started."""
    deadline = time.monotonic() + _SHUTDOWN_S
    alive = [child for child in children if child._signal(signal.SIGINT)]
    while alive and time.monotonic() < deadline:
        time.sleep(0.01)
        for child in alive:
            child.process.poll()
        alive = [child for child in alive if child._signal(0)]
    for child in alive:
        child._signal(signal.SIGKILL)
    for child in children:
        child.wait()


def start_program(
    project: Project,
    stack: str,
    config: Config,
    address: str,
    *,
    dry_run: bool,
    parallel: int,
    on_line: Callable[[str], None],
) -> Child:
    """Run the project's program as the language host does."""
    virtualenv = _virtualenv(project, project.root)
    env = dict(os.environ)
    if virtualenv:
        env["PATH"] = f"{virtualenv / 'bin'}{os.pathsep}{env.get('PATH', '')}"
        env["VIRTUAL_ENV"] = str(virtualenv)
        env.pop("PYTHONHOME", None)
    env["PULUMI_CONFIG"] = json.dumps(config.values)
    env["PULUMI_CONFIG_SECRET_KEYS"] = json.dumps(sorted(config.secret_keys))
    arguments = {
        "monitor": address,
        "engine": address,
        "project": project.name,
        "root_directory": str(project.root),
        "stack": stack,
        "pwd": str(project.main),
        "dry_run": str(dry_run).lower(),
        "parallel": str(parallel),
        "organization": "organization",
    }
    flags = [part for name, value in arguments.items() for part in (f"--{name}", value)]
    command = [_python(virtualenv), "-u", str(_PROGRAM_HOST), *flags, "."]
    child = Child(command, project.main, env, on_line)
    child.hand_on_stdout()
    return child


def start_provider(project: Project, address: str, on_line: Callable[[str], None]) -> Child:
    """Run the SDK's host of dynamic providers, through a shell as the real engine; once ready, it says its port."""
    env = dict(os.environ)
    for option, value in project.runtime_options.items():
        env[f"PULUMI_RUNTIME_{option.upper()}"] = str(value)
    env["PULUMI_PROJECT"] = project.name
    # The real script looks for the virtualenv in the program's folder, not in the project's: so must we.
    virtualenv = _virtualenv(project, project.main)
    if virtualenv:
        env["PATH"] = f"{virtualenv / 'bin'}{os.pathsep}{env.get('PATH', '')}"
        env.pop("PYTHONHOME", None)
    host = [_python(virtualenv), "-u", "-m", "pulumi.dynamic", address]
    return Child(["/bin/sh", "-c", '"$@"; exit $?', "provider", *host], project.main, env, on_line)


def read_port(child: Child) -> int:
    """Return the port of a provider's process once it is ready."""
    assert child.process.stdout is not None
    port = child.process.stdout.readline().strip()
    if not port.isdigit():
        stop_all([child])
        raise EngineError(f"the provider's process ended before it was ready (exit code {child.wait()}): {port}")
    child.hand_on_stdout()
    return int(port)


def _virtualenv(project: Project, base: Path) -> Path | None:
    option = project.runtime_options.get("virtualenv")
    if not option:
        return None
    folder = base / str(option)
    if not (folder / "bin" / "python").exists():
        raise EngineError(
            f'The \'virtualenv\' option in Pulumi.yaml is set to "{option}", but "{folder}" is no virtualenv'
        )
    return folder


def _python(virtualenv: Path | None) -> str:
    if virtualenv:
        return str(virtualenv / "bin" / "python")
    name = os.environ.get("PULUMI_PYTHON_CMD") or "python3"
    found = shutil.which(name)
    if not found:
        raise EngineError(f"no {name} on PATH to run the program with")
    return found
