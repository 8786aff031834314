"""Everything the stacks touch, in one folder on one machine: market, hosts, store, and a project to run against them.

.sandbox/
  env        what a shell needs; there only while all of it runs
  project/   copies of Pulumi.yaml and stacks/, with infra/ linked: the engine writes salts into stack files
  state/     the engine's backend        bin/    `pulumi`, where the stand-in takes the CLI's place
  store/     the bucket's server         hosts/  a folder for each rented machine
  tools/     the `vllm` of the hosts     lock    held, with the pid of its holder
"""

import asyncio
import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from tests.e2e import vllm_cpu
from tests.sandbox.hosts.backend import SshHosts
from tests.sandbox.hosts.processes import end_processes
from tests.sandbox.models import write_tiny_llama
from tests.sandbox.storage import Storage
from tests.sandbox.vast.server import VastEmulator

ROOT = Path(__file__).resolve().parents[2]
PASSPHRASE = "sandbox"
COMMAND_LIMIT_SECONDS = 120
PUSH_EACH = """\
import sys
from infra.cli import main
folder, *pairs = sys.argv[1:]
for name, _, stack in (pair.partition("=") for pair in pairs):
    if main(["models", "push", folder, "--as", name, "--stack", stack]):
        sys.exit(1)
"""
"""`gpu models push` for each `name=stack`, in one process: to start one for each would take longer than the rest."""

Tell = Callable[[str], None]


class SandboxError(Exception):
    """The sandbox cannot stand; the message says why, ready to print."""


@dataclass(frozen=True)
class Plan:
    """What kind of sandbox is wanted.

    Args:
        folder: Where all of it lies; emptied first.
        real_vllm: Real vLLM on CPU on the hosts instead of the stub.
        stand_in: Our stand-in for the Pulumi CLI even where the real one is at hand.
        boot_seconds: From renting a machine to its running.
    """

    folder: Path = ROOT / ".sandbox"
    real_vllm: bool = False
    stand_in: bool = False
    boot_seconds: float = 6.0


class World:
    """A sandbox that stands as long as the `with` block.

    Args:
        plan: What is wanted.
        tell: Takes a line about what goes on.

    Attributes:
        environment: What a command needs to work in it, PATH included.
        market: The emulator, for tests that look behind the API.
    """

    def __init__(self, plan: Plan, tell: Tell = lambda line: None) -> None:
        self.plan, self._tell = plan, tell
        self.environment: dict[str, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._stand(undo)
            self._stack = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def project(self) -> Path:
        """The folder whose stack files count here."""
        return self.plan.folder / "project"

    def _stand(self, undo: ExitStack) -> None:
        folder = self.plan.folder
        undo.enter_context(_alone(folder))
        pulumi = None if self.plan.stand_in else real_pulumi()
        _lay_out(folder, pulumi)
        tools = self._tools()
        with self._step("object storage (SeaweedFS, TLS)"):
            storage = undo.enter_context(Storage(folder / "store"))
        hosts = SshHosts(folder / "hosts", tools, _host_environment(storage))
        self.market = undo.enter_context(VastEmulator(hosts, boot_seconds=self.plan.boot_seconds))
        self.environment = _environment(folder, storage, self.market, pulumi)
        engine = "the real Pulumi CLI" if pulumi else "the stand-in engine"
        with self._step(f"stacks {', '.join(stack_names(self.project))} ({engine})"):
            # Beside each other and the pushes; the file that says which stack is selected is one for all of them.
            create = ("pulumi", "stack", "init", "--no-select")
            stacks = [self._start(undo, *create, stack) for stack in stack_names(self.project)]
            self._push_models(undo)
            for stack in stacks:
                _finish(stack)
        undo.callback((folder / "env").unlink, missing_ok=True)
        _write_env(folder / "env", self.environment)

    def run(self, *command: str, limit_seconds: float = COMMAND_LIMIT_SECONDS) -> str:
        """Run a command here and return what it printed.

        Raises:
            SandboxError: It failed; with all that it said.
        """
        with ExitStack() as undo:
            return _finish(self._start(undo, *command), limit_seconds)

    def _start(self, undo: ExitStack, *command: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            list(command),
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        undo.callback(_end, process)
        return process

    def _tools(self) -> Path:
        tools = self.plan.folder / "tools"
        if self.plan.real_vllm:
            vllm_cpu.build()
            vllm_cpu.write_wrapper(tools)
        else:
            (tools / "vllm").symlink_to(ROOT / "tests" / "sandbox" / "vllm_stub" / "vllm")
        return tools

    def _push_models(self, undo: ExitStack) -> None:
        """Push one tiny model under each name that a stack file asks for."""
        model = write_tiny_llama(self.plan.folder / "model")
        models = stack_models(self.project)
        with self._step(f"gpu models push .sandbox/model, as {', '.join(models.values())}"):
            pairs = (f"{name}={stack}" for stack, name in models.items())
            _finish(self._start(undo, sys.executable, "-c", PUSH_EACH, str(model), *pairs))

    @contextmanager
    def _step(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._tell(f"{what}: {time.monotonic() - started:.1f} s")


def stack_names(project: Path) -> list[str]:
    """Return the stacks that a project has a file for."""
    return sorted(
        path.name.removeprefix("Pulumi.").removesuffix(".yaml") for path in (project / "stacks").glob("*.yaml")
    )


def stack_models(project: Path) -> dict[str, str]:
    """Return for each stack file of a project the model it asks for, without tag or digest."""
    found = {}
    for path in sorted((project / "stacks").glob("Pulumi.*.yaml")):
        model = yaml.safe_load(path.read_text())["config"].get("gpu-on-demand:model")
        if model:
            found[path.name.removeprefix("Pulumi.").removesuffix(".yaml")] = re.split("[:@]", model["name"])[0]
    return found


def is_set(name: str) -> bool:
    """Say whether a switch such as VLLM=1 is on."""
    return os.environ.get(name, "") not in ("", "0", "no", "false")


def real_pulumi() -> Path | None:
    """Return the official CLI of this machine, from PATH or from where its installer puts it."""
    for folder in [*map(Path, os.environ.get("PATH", "").split(os.pathsep)), Path.home() / ".pulumi" / "bin"]:
        found = folder / "pulumi"
        if os.access(found, os.X_OK) and found.resolve().parts[-4:-1] != ("tests", "sandbox", "engine"):
            return found
    return None


def _finish(process: subprocess.Popen[str], limit_seconds: float = COMMAND_LIMIT_SECONDS) -> str:
    said, _ = process.communicate(timeout=limit_seconds)
    if process.returncode:
        command = shlex.join(process.args) if isinstance(process.args, list) else str(process.args)
        raise SandboxError(f"`{command}` failed (exit {process.returncode}):\n{said}")
    return said


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder: two sandboxes in one would empty each other's."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip()
            raise SandboxError(f"a sandbox runs in {folder} already; to stop it: kill {holder}") from None
        (folder / "env").unlink(missing_ok=True)  # a killed run's: it would say that we are ready
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield
        lock.truncate(0)


def _lay_out(folder: Path, pulumi: Path | None) -> None:
    """Empty the folder, and put copies of what the engine writes to beside a link to what it only reads."""
    asyncio.run(end_processes(f"{folder}/hosts/"))  # a killed run's
    for path in folder.iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name in ("bin", "hosts", "state", "store", "tools", "project/stacks"):
        (folder / name).mkdir(parents=True)
    project = folder / "project"
    shutil.copy(ROOT / "Pulumi.yaml", project)
    for path in (ROOT / "stacks").glob("Pulumi.*.yaml"):
        shutil.copy(path, project / "stacks")
    (project / "infra").symlink_to(ROOT / "infra")
    (project / ".venv").symlink_to(ROOT / ".venv")
    if pulumi is None:
        (folder / "bin" / "pulumi").symlink_to(ROOT / "tests" / "sandbox" / "engine" / "pulumi")


def _host_environment(storage: Storage) -> dict[str, str]:
    """Return what makes a host trust the store's own authority, and sets the stub's speed."""
    stub = {name: value for name, value in os.environ.items() if name.startswith("STUB_")}
    return {**stub, "SSL_CERT_FILE": str(storage.ca_path), "AWS_CA_BUNDLE": str(storage.ca_path)}


def _environment(folder: Path, storage: Storage, market: VastEmulator, pulumi: Path | None) -> dict[str, str]:
    ours = [folder / "bin", Path(sys.executable).parent, *([pulumi.parent] if pulumi else [])]
    return {
        **storage.environment,
        "VAST_URL": market.url,
        "VAST_API_KEY": market.api_key,
        "PULUMI_BACKEND_URL": f"file://{folder / 'state'}",
        "PULUMI_CONFIG_PASSPHRASE": PASSPHRASE,
        "PULUMI_HOME": str(folder / "pulumi"),
        "PULUMI_OPTION_CWD": str(folder / "project"),
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PATH": os.pathsep.join([*map(str, ours), os.environ.get("PATH", os.defpath)]),
    }


def _write_env(path: Path, environment: Mapping[str, str]) -> None:
    """Put the shell's export lines in place all at once: who finds the file finds everything ready.

    Of PATH only our own part: the rest is the reader's.
    """
    ours = environment["PATH"].removesuffix(os.environ.get("PATH", os.defpath))
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items() if name != "PATH"]
    part = path.with_suffix(".part")
    part.touch(mode=0o600)
    part.write_text("\n".join([*lines, f'export PATH={shlex.quote(ours)}"$PATH"', ""]))
    part.rename(path)
