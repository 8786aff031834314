"""What a test does beside a sandbox: type into a second shell, and look at what runs."""

import os
import subprocess
from pathlib import Path


def in_second_shell(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Run a line as in a shell beside the sandbox that lies in *folder*."""
    return subprocess.run(
        ["bash", "-c", f". {folder}/env && {line}"], capture_output=True, text=True, timeout=60, check=False
    )


def processes_in(folder: Path) -> list[int]:
    """Return the processes that work in the folder."""
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            if Path(f"/proc/{pid}/cwd").resolve().is_relative_to(folder.resolve()):
                found.append(pid)
        except OSError:
            continue
    return found
