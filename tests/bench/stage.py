"""What `make bench` times: one command by one engine on one program, in a sandbox whose waits are all zero."""

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from tests.bench.memory import PeakWatch
from tests.sandbox.hosts.processes import MARK, end_processes
from tests.sandbox.world import ROOT, Plan, Tell, World, real_pulumi

SAMPLE = ROOT / "tests" / "sandbox" / "data" / "engine" / "sample"
STAND_IN = ROOT / "tests" / "sandbox" / "engine"
MODEL_STACK = "gpu-on"
STACKS = tuple(f"bench-{number}" for number in range(1, 9))


class BenchError(Exception):
    """A command failed, so there is nothing to measure; the message says what it said."""


@dataclass(frozen=True)
class Engine:
    """A `pulumi`.

    Attributes:
        name: What the table calls it.
        folder: Where it is, for the front of PATH.
    """

    name: str
    folder: Path


@dataclass(frozen=True)
class Run:
    """A finished command.

    Attributes:
        seconds: Wall time.
        peak_bytes: The most memory that the process of the dynamic providers ever held; 0 where it was not watched.
    """

    seconds: float
    peak_bytes: int


class Stage:
    """A sandbox with a sample project beside the real one.

    Args:
        programs: Name of a program → environment that a command on it needs.
        mark: What begins the mark of every process that a command here starts.

    Attributes:
        engines: The stand-in, and the real one where it is found.
    """

    def __init__(self, programs: Mapping[str, Mapping[str, str]], mark: str) -> None:
        real = real_pulumi()
        self.engines = (Engine("stand-in", STAND_IN), *([Engine("real CLI", real.parent)] if real else []))
        self._programs, self._mark, self._numbers = programs, mark, count()

    def run(self, engine: Engine, program: str, stack: str, *words: str, is_watched: bool = True) -> Run:
        """Run `pulumi` with *words* on a stack of the program; watched, to see its memory, which costs some time.

        Raises:
            BenchError: It failed.
        """
        command = ["pulumi", *words, *(() if words[0] == "stack" else ("--stack",)), stack]
        environment = dict(self._programs[program]) | {MARK: f"{self._mark}{next(self._numbers)}"}
        environment["PATH"] = os.pathsep.join([str(engine.folder), environment["PATH"]])
        began = time.monotonic()
        # Looked up by us: Popen would go by our own PATH.
        with (
            PeakWatch(environment[MARK]) if is_watched else nullcontext() as watch,
            subprocess.Popen(
                command,
                executable=engine.folder / "pulumi",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ) as process,
        ):
            said, _ = process.communicate()
            seconds = time.monotonic() - began
        if process.returncode:
            raise BenchError(f"`{' '.join(command)}` failed with {engine.name}:\n{said}")
        return Run(seconds, watch.peak_bytes if watch else 0)


@contextmanager
def open_stage(folder: Path, tell: Tell) -> Iterator[Stage]:
    """Stand a sandbox in *folder*, with a stack for each engine in both projects and further ones of the gpu project.

    Raises:
        SandboxError: It does not stand.
    """
    os.environ["STUB_START_SECONDS"] = "0"  # the hosts take it from here
    mark = f"{folder}/bench/"
    with World(Plan(folder / "world", stand_in=True, boot_seconds=0.0), tell) as world:
        # As in an operator's shell: some containers forbid it, and then each run compiles our modules anew.
        gpu = {k: v for k, v in (os.environ | world.environment).items() if k != "PYTHONDONTWRITEBYTECODE"}
        stage = Stage({"gpu": gpu, "sample": gpu | _lay_out_sample(folder / "sample")}, mark)
        stacks = world.project / "stacks"
        try:
            for stack in STACKS:
                shutil.copy(stacks / f"Pulumi.{MODEL_STACK}.yaml", stacks / f"Pulumi.{stack}.yaml")
            wanted = [*(("gpu", stack) for stack in STACKS), *(("sample", stack) for stack in STACKS[:2])]
            with ThreadPoolExecutor(len(STACKS)) as pool:
                init = ("stack", "init", "--no-select")
                list(pool.map(lambda one: stage.run(stage.engines[-1], *one, *init), wanted))
            yield stage
        finally:
            # Where we are interrupted: a provider lives in a process group of its own and would outlive us.
            asyncio.run(end_processes(mark))


def _lay_out_sample(folder: Path) -> dict[str, str]:
    shutil.copytree(SAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "stacks").mkdir()
    (folder / "files").mkdir()
    return {"PULUMI_OPTION_CWD": str(folder), "PYTHONPATH": str(folder), "SAMPLE_DIR": str(folder / "files")}
