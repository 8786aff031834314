"""`make demo`: the whole job, from nothing to first token and back, by commands that anybody can type.

Every command is shown before it runs, and what it prints goes through untouched. In the end the demo checks what it
showed: the receipt against the market's ledger, and that nothing is left. KEEP=1 stops before the machine goes back.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from tests.e2e import vllm_cpu
from tests.e2e.building import BuildError
from tests.sandbox.hosts.processes import MARK, end_processes
from tests.sandbox.world import ROOT, Plan, is_set

STACK = "gpu-on"
TOLERANCE_USD = 0.0001
STOP_LIMIT_SECONDS = 10
RECEIPT = re.compile(r"instance (\d+) is destroyed, billing stopped: ([0-9.]+) USD")

HAS_COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ
BOLD, DIM, GREEN, RED = ("1", "2", "32", "31")


class DemoError(Exception):
    """Something did not go as it must; the message says what."""


def main() -> int:
    """Run the demo; 0 only if everything went as it must."""
    parser = argparse.ArgumentParser(prog="python -m tests.sandbox.demo", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Plan.folder, help="where the sandbox lies (emptied first)")
    folder: Path = parser.parse_args().folder.resolve()
    signal.signal(signal.SIGTERM, _stop)
    started = time.monotonic()
    try:
        if is_set("VLLM"):
            vllm_cpu.build()  # here, where its progress reaches the terminal
        with sandbox(folder, keep=is_set("KEEP")) as pid:
            play(Shell(folder), keep_pid=pid if is_set("KEEP") else None)
    except (DemoError, BuildError) as error:
        print(paint(f"demo: {error}", RED), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; the sandbox is gone and everything in it", file=sys.stderr)
        return 130
    print(paint(f"\nThe whole job took {time.monotonic() - started:.0f} s.", BOLD))
    return 0


def play(shell: "Shell", *, keep_pid: int | None) -> None:
    """Do the job.

    Raises:
        DemoError: A command failed, or the books do not agree.
    """
    shell.type(f"pulumi preview -s {STACK}")
    up = shell.type(f"pulumi up -y --skip-preview -s {STACK}")
    show_completion(shell.type(find_curl(up)))
    if keep_pid is not None:
        print(
            "\nIt stays up. In any shell, here:\n\n"
            f"    . {shell.shown_env}\n"
            f"    pulumi destroy -y -s {STACK}      gives the machine back\n"
            f"    kill {keep_pid:<22}      stops the sandbox, machine and all"
        )
        return
    destroyed = shell.type(f"pulumi destroy -y --skip-preview -s {STACK}")
    ledger = json.loads(shell.type("curl -sS $VAST_URL/sandbox/ledger"))
    listed = shell.type('curl -sS -H "Authorization: Bearer $VAST_API_KEY" $VAST_URL/api/v1/instances/')
    check_books(up + destroyed, ledger, json.loads(listed))


def find_curl(said: str) -> str:
    """Return the `curl` line that `pulumi up` printed for its reader."""
    lines = [line.strip() for line in said.splitlines() if line.strip().startswith("curl ")]
    if not lines:
        raise DemoError("`pulumi up` printed no curl line to ask the model with")
    return lines[-1]


def show_completion(answer: str) -> None:
    """Print what the model said, and its speed in tokens."""
    try:
        body = json.loads(answer)
        text, tokens = body["choices"][0]["text"], body["usage"]["completion_tokens"]
    except (ValueError, LookupError, TypeError) as error:
        raise DemoError(f"the endpoint did not answer with a completion: {answer.strip()[:200]}") from error
    if not text.strip():
        raise DemoError("the completion is empty")
    print(f"\n{paint('The model goes on:', BOLD)} …{text}   {paint(f'({tokens} tokens)', DIM)}")


def check_books(said: str, ledger: Mapping[str, Any], listed: Mapping[str, Any]) -> None:
    """Hold what the commands said against what the market knows.

    Raises:
        DemoError: They differ, or something is left.
    """
    receipts = {instance: float(usd) for instance, usd in RECEIPT.findall(said)}
    if not receipts:
        raise DemoError("no receipt with the words `billing stopped` was printed")
    billed = {str(row["id"]): sum(row["usd"].values()) for row in ledger["instances"]}
    if receipts.keys() != billed.keys():
        raise DemoError(f"receipts for {sorted(receipts)}, but the ledger has {sorted(billed)}")
    for instance, usd in receipts.items():
        if abs(usd - billed[instance]) > TOLERANCE_USD:
            raise DemoError(f"instance {instance}: the receipt says {usd} USD, the ledger {billed[instance]:.6f}")
    running = [row["id"] for row in ledger["instances"] if row["to"] is None]
    if left := [row["id"] for row in listed["instances"]] + running:
        raise DemoError(f"still there: {left}")
    print()
    for line in (
        f"the receipt, {sum(receipts.values()):.4f} USD, is what the market's ledger says",
        "no instance is left",
        "billing stopped",
    ):
        print(f"{paint('✓', GREEN)} {line}")


class Shell:
    """Types commands as somebody in a second shell would, after `. .sandbox/env`.

    Args:
        folder: The sandbox.
    """

    def __init__(self, folder: Path) -> None:
        env = folder / "env"
        self.shown_env = env.relative_to(ROOT) if env.is_relative_to(ROOT) else env
        print(paint(f"\n$ . {self.shown_env}", BOLD))
        exported = subprocess.run(["bash", "-c", '. "$1" && env -0', "bash", str(env)], capture_output=True, check=True)
        pairs = (item.partition("=") for item in exported.stdout.decode().split("\0") if item)
        self._environment = {name: value for name, _, value in pairs} | {MARK: _mark(folder)}

    def type(self, line: str) -> str:
        """Show and run one line; return what it printed, which has gone to the terminal as it came.

        Raises:
            DemoError: It failed.
        """
        print(paint(f"\n$ {line}", BOLD), flush=True)
        chunks: list[bytes] = []
        with subprocess.Popen(
            ["bash", "-c", line],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            assert process.stdout is not None
            while chunk := os.read(process.stdout.fileno(), 65536):
                chunks.append(chunk)
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
        said = b"".join(chunks).decode(errors="replace")
        if not said.endswith("\n"):
            print()
        if process.returncode:
            raise DemoError(f"`{line.split(' -')[0]} …` failed (exit {process.returncode})")
        return said


@contextmanager
def sandbox(folder: Path, *, keep: bool) -> Iterator[int]:
    """Have `make sandbox` in another process, as in another shell; yields its pid.

    Raises:
        DemoError: It does not come up.
    """
    print(paint("$ make sandbox", BOLD), flush=True)
    command = [sys.executable, "-m", "tests.sandbox", "--folder", str(folder), *(["--keep"] if keep else [])]
    # A session of its own: Ctrl-C is ours to handle, and what we keep must outlive this terminal.
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        _relay_until_ready(process)
        yield process.pid
    except BaseException:
        # Providers too, which live in process groups of their own and would wait for their machine for minutes.
        asyncio.run(end_processes(_mark(folder)))
        _end(process)
        raise
    if not keep:
        _end(process)


def _relay_until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        print(paint(line.rstrip("\n"), DIM), flush=True)
        if line.startswith("To stop:"):
            threading.Thread(target=process.stdout.read, daemon=True).start()  # so that it never blocks on us
            return
    raise DemoError("the sandbox did not come up; why stands above")


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _mark(folder: Path) -> str:
    """Return what the demo's own commands carry in their environment."""
    return f"{folder}/demo"


def paint(text: str, style: str) -> str:
    """Return the text as a terminal shows it, plain where there is none."""
    return f"\033[{style}m{text}\033[0m" if HAS_COLOUR else text


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    with suppress(ValueError):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
