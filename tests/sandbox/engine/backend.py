"""The file backend: where stacks lie, one lock a stack, the layout of the real CLI.

Source: Pulumi 3.260, pkg/backend/diy.
"""

import contextlib
import getpass
import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.sandbox.engine.crypto import Vault
from tests.sandbox.engine.errors import EngineError
from tests.sandbox.engine.project import Project, pulumi_home
from tests.sandbox.engine.state import Checkpoint

ORGANIZATION = "organization"
_VERSIONS = (3, 4)  # 4 is 3 with a list of features, of which we accept none
_NO_STACK = 6  # the real CLI's exit code for a stack that is not there


def backend_url(project: Project | None) -> str:
    """Return where state is kept: the environment, else the project, else the last login."""
    if url := os.environ.get("PULUMI_BACKEND_URL"):
        return url
    if project and project.backend_url:
        return project.backend_url
    try:
        current = json.loads((pulumi_home() / "credentials.json").read_text()).get("current", "")
    except FileNotFoundError:
        current = ""
    if not current:
        raise EngineError("PULUMI_BACKEND_URL is not set and nobody is logged in: run `pulumi login file://<folder>`")
    return str(current)


def save_login(url: str) -> None:
    """Remember *url* as the backend; empty forgets it."""
    path = pulumi_home() / "credentials.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    _put(path, json.dumps({"current": url, "accessTokens": {url: ""} if url else {}}, indent=4))


class FileBackend:
    """The stacks of one project in one folder."""

    def __init__(self, url: str, project: Project) -> None:
        parts = urlsplit(url)
        if parts.scheme != "file":
            raise EngineError(f"the stand-in keeps state in files only (file://…), not in {url}")
        folder = Path(unquote(parts.netloc + parts.path)).expanduser()
        if not folder.is_absolute():
            folder = Path.cwd() / folder
        if not folder.is_dir():
            raise EngineError(f"unable to check if backend is a directory: {folder} is not one")
        self.url = url
        self.project = project
        self._book = folder / ".pulumi"

    def stacks(self) -> list[str]:
        """Name the project's stacks."""
        return sorted(path.stem for path in (self._book / "stacks" / self.project.name).glob("*.json"))

    def path(self, stack: str, project: str = "") -> Path:
        """Return the checkpoint file of a stack."""
        return self._book / "stacks" / (project or self.project.name) / f"{stack}.json"

    def require(self, stack: str) -> None:
        """Raise as the real CLI does when the stack is not there."""
        if not self.path(stack).exists():
            raise EngineError(f"no stack named '{stack}' found", _NO_STACK)

    def raw(self, stack: str, project: str = "") -> dict[str, Any]:
        """Return the deployment object of a stack, secrets still sealed."""
        document = json.loads(self.path(stack, project).read_text())
        if document.get("version") not in _VERSIONS or document.get("features"):
            raise EngineError(f"the stand-in does not know checkpoint version {document.get('version')}")
        return document["checkpoint"].get("latest") or {}

    def read(self, stack: str, vault: Vault | None) -> Checkpoint:
        """Return the state of a stack; without a vault, secrets come out hollow."""
        return Checkpoint.read(self.raw(stack), vault)

    def write(self, stack: str, deployment: dict[str, Any]) -> None:
        """Write the state; a killed engine leaves the last good one."""
        path = self.path(stack)
        path.parent.mkdir(parents=True, exist_ok=True)
        meta = self._book / "meta.yaml"
        if not meta.exists():
            meta.write_text("version: 1\n")
        document = {"version": 3, "checkpoint": {"stack": self.full_name(stack), "latest": deployment}}
        if path.exists():
            shutil.copyfile(path, path.with_suffix(".json.bak"))
        _put(path, json.dumps(document, separators=(",", ":")))
        for stale in (path, path.with_suffix(".json.bak")):
            Path(f"{stale}.attrs").unlink(missing_ok=True)  # the real CLI's checksums of what was there before

    def remove(self, stack: str) -> None:
        """Forget a stack; its last state stays as a backup."""
        path = self.path(stack)
        path.replace(path.with_suffix(".json.bak"))
        Path(f"{path}.attrs").unlink(missing_ok=True)

    def full_name(self, stack: str) -> str:
        """Return the name that other projects use."""
        return f"{ORGANIZATION}/{self.project.name}/{stack}"

    # Locks are plain files, as with the real CLI: who is killed leaves one behind, and `pulumi cancel` takes it away.

    def _lock_folder(self, stack: str) -> Path:
        return self._book / "locks" / ORGANIZATION / self.project.name / stack

    @contextlib.contextmanager
    def lock(self, stack: str) -> Iterator[Path]:
        """Hold the stack's lock, or raise and say who does; yields the lock file."""
        mine = self._lock_folder(stack) / f"{uuid.uuid4()}.json"
        self._refuse_locked(stack, mine)
        mine.parent.mkdir(parents=True, exist_ok=True)
        holder = {
            "pid": os.getpid(),
            "username": getpass.getuser(),
            "hostname": socket.gethostname(),
            "timestamp": datetime.now().astimezone().isoformat(),
        }
        _put(mine, json.dumps(holder))
        try:
            self._refuse_locked(stack, mine)  # two may have looked at the same moment
            yield mine
        finally:
            mine.unlink(missing_ok=True)

    def _refuse_locked(self, stack: str, mine: Path) -> None:
        others = sorted(path for path in self._lock_folder(stack).glob("*.json") if path != mine)
        if not others:
            return
        lines = [
            f"the stack is currently locked by {len(others)} lock(s). Either wait for the other process(es) to end or "
            "delete the lock file with `pulumi cancel`."
        ]
        for path in others:
            held = json.loads(path.read_text())
            when = datetime.fromisoformat(held["timestamp"]).isoformat(timespec="seconds")
            lines.append(
                f"  file://{path}: created by {held['username']}@{held['hostname']} (pid {held['pid']}) at {when}"
            )
        raise EngineError("\n".join(lines))

    def cancel(self, stack: str) -> None:
        """Take every lock of the stack away."""
        for path in self._lock_folder(stack).glob("*.json*"):
            path.unlink(missing_ok=True)

    # Which stack is selected is the person's, not the state's.

    def _workspace(self) -> Path:
        digest = hashlib.sha1(str(self.project.root / "Pulumi.yaml").encode(), usedforsecurity=False).hexdigest()
        return pulumi_home() / "workspaces" / f"{self.project.name}-{digest}-workspace.json"

    def selected(self) -> str:
        """Return the selected stack's name, or nothing."""
        try:
            document = json.loads(self._workspace().read_text())
        except FileNotFoundError:
            return ""
        return str((document.get("stacks") or {}).get(self.url) or document.get("stack") or "").rsplit("/", 1)[-1]

    def select(self, stack: str) -> None:
        """Remember the stack for commands without `-s`; empty forgets it."""
        path = self._workspace()
        path.parent.mkdir(parents=True, exist_ok=True)
        document = json.loads(path.read_text()) if path.exists() else {}
        stacks = {**document.get("stacks", {}), self.url: self.full_name(stack) if stack else ""}
        _put(path, json.dumps({**document, "stacks": {url: name for url, name in stacks.items() if name}}, indent=4))


def _put(path: Path, text: str) -> None:
    """Write a file whole: whoever reads it meanwhile, or kills us, finds the former one or this one."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.write_text(text)
    new.replace(path)
