"""A project folder with the stand-in engine to run it, for the tests of the engine."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DATA = HERE / "data" / "engine"
STAND_IN = [sys.executable, str(HERE / "engine")]
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Result:
    """What a command came to."""

    code: int
    out: str
    err: str


@dataclass
class World:
    """A copy of a project, a backend of its own, an environment in which both engines work."""

    folder: Path
    command: list[str] = field(default_factory=lambda: list(STAND_IN))
    env: dict[str, str] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, project: str) -> "World":
        """Copy the project of that name below `data/engine` into *folder*."""
        shutil.copytree(DATA / project, folder / "project", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("state", "home", "files"):
            (folder / name).mkdir()
        return cls(folder, env=_environment(folder))

    def copy(self, folder: Path) -> "World":
        """Return another such world with the same stacks; none is selected."""
        for name in ("project", "state", "home", "files"):
            shutil.copytree(self.folder / name, folder / name)
        return World(folder, env=_environment(folder))

    def run(self, *words: str, text: str = "", **env: str) -> Result:
        """Run one command to its end."""
        done = subprocess.run(
            [*self.command, *words],
            env={**self.env, **env},
            input=text,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def ok(self, *words: str, text: str = "", **env: str) -> str:
        """Run one command that must succeed; return what it prints."""
        result = self.run(*words, text=text, **env)
        assert result.code == 0, result
        return result.out

    def start(self, *words: str, **env: str) -> "subprocess.Popen[str]":
        """Start a command in a process group of its own, for signals."""
        return subprocess.Popen(
            [*self.command, *words],
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def left_over(self) -> list[int]:
        """Return the processes that still run in this world's program folder."""
        program = self.folder / "project" / "infra"
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # gone meanwhile, or not ours to look at
                if (path / "cwd").resolve() == program:
                    found.append(int(path.name))
        return found

    def outputs(self, stack: str) -> Any:
        """Return a stack's outputs, secrets in the clear."""
        return json.loads(self.ok("stack", "output", "--json", "--show-secrets", "-s", stack))

    def state(self, stack: str) -> dict[str, Any]:
        """Return a stack's deployment, secrets in the clear."""
        text = self.ok("stack", "export", "--show-secrets", "-s", stack)
        deployment: dict[str, Any] = json.loads(text)["deployment"]
        return deployment

    def calls(self) -> list[dict[str, Any]]:
        """Return every call to a provider since this was last asked."""
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def toys(self) -> list[str]:
        """Return what the toys' provider did since this was last asked."""
        path = self.folder / "toys.log"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def declare(self, *toys: dict[str, Any], stack: str = "one") -> None:
        """Write the stack's toys into its file."""
        self.ok("config", "set", "toys", json.dumps(toys), "-s", stack)

    def up(self, *words: str, **env: str) -> Result:
        """Run `up` without a preview."""
        return self.run("up", "-y", "--skip-preview", "-s", "one", *words, **env)


def _environment(folder: Path) -> dict[str, str]:
    """Return an environment in which either engine finds the project, its backend and a Python with the SDK."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PULUMI_", "PYTHON"))}
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder / "project"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PULUMI_BACKEND_URL": f"file://{folder / 'state'}",
        "PULUMI_CONFIG_PASSPHRASE": "x",
        "PULUMI_HOME": str(folder / "home"),
        "PULUMI_OPTION_CWD": str(folder / "project"),
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PULUMI_DEBUG_GRPC": str(folder / "calls.jsonl"),
        "SAMPLE_DIR": str(folder / "files"),
        "TOY_LOG": str(folder / "toys.log"),
    }


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Wait for something that happens in another process."""
    deadline = time.monotonic() + _PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


def kill_group(process: "subprocess.Popen[str]") -> None:
    """SIGKILL to the command and whatever shares its group."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def toy(name: str, text: str = "", **props: Any) -> dict[str, Any]:
    """Return the declaration of one toy; `opts` among the props are resource options."""
    opts = props.pop("opts", {})
    return {"name": name, "props": {"text": text or name, **props}, "opts": opts}
