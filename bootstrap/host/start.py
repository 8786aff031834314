"""Start the supervisor, unless it runs already; after a restart of the container, with all that ran before.

Runs on the machine: standard library only. Whoever calls it, an SSH session or `onstart`, the programs
see the same environment: the container's own, which SSH sessions lack, without anything that looks like a secret.
"""

import contextlib
import os
import re
import signal
import socket
import sys
from pathlib import Path

KEPT = ("agent", "door", "engine", "push")
"""What comes back with the container, as `render.KEPT` says."""

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
"""The container's own account key first of all; and `VLLM_API_KEY`, which would lock the engine against its door."""

OF_THE_SESSION = re.compile(r"SSH_|TMUX|TERM$|PWD$|OLDPWD$|SHLVL$|_$|XDG_")


def choose_environment(session: dict[str, str], container: dict[str, str]) -> dict[str, str]:
    """Return what the programs see; where both know a variable, the container is right."""
    both = {**session, **container}
    return {k: v for k, v in both.items() if not SECRET.search(k) and not OF_THE_SESSION.match(k)}


def read_environment(path: Path) -> dict[str, str]:
    """Return what `env -0` wrote; empty if there is no such file."""
    if not path.exists():
        return {}
    pairs = (entry.partition("=") for entry in path.read_text(errors="surrogateescape").split("\0") if entry)
    return {name: value for name, _, value in pairs}


def is_running() -> bool:
    """Tell whether a supervisor listens in the working directory."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect("supervisor.sock")
        except OSError:
            return False
        return True


def end_leftovers() -> None:
    """End what a supervisor that was killed has left running here.

    It would run beside what the new one starts: two doors on one port, one of them with tokens that were taken back.
    """
    here = Path.cwd()
    for note in Path().glob("*.group"):
        with contextlib.suppress(OSError, ValueError):
            group = int(note.read_text())
            if any(is_at(process, group, here) for process in Path("/proc").glob("[0-9]*")):
                os.killpg(group, signal.SIGKILL)
        note.unlink()  # else of another life of the container: the number may be another's now


def is_at(process: Path, group: int, folder: Path) -> bool:
    """Tell whether a process is of this group and works in this folder."""
    try:
        return os.getpgid(int(process.name)) == group and (process / "cwd").resolve() == folder
    except OSError:  # it ended just now, or is another user's
        return False


def main(root: Path) -> None:
    """Become the supervisor."""
    os.umask(0o077)
    for folder in ("run/started", "run/control", "log"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    # Everything works in run/ and names its sockets from there: a socket's path may not exceed 107 bytes.
    os.chdir(root / "run")
    if is_running():
        return
    end_leftovers()
    environment = choose_environment(dict(os.environ), read_environment(root / "container.env"))
    for name in KEPT:
        environment[f"AUTOSTART_{name.upper()}"] = str((root / "run/started" / name).exists()).lower()
    os.environ.clear()
    os.environ.update(environment)
    sys.path.insert(0, str(root / "bundle"))
    from supervisor.supervisord import main as supervise  # type: ignore[import-untyped]

    supervise(["-c", str(root / "bundle/supervisord.conf")])


if __name__ == "__main__":
    main(Path(__file__).resolve().parents[2])
