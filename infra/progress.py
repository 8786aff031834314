"""How far a transfer is: bars on a terminal, a line now and then anywhere else."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dynamic_providers.store.transfer import Report

WORDS = {"hash": "reading", "upload": "uploading", "download": "downloading", "verify": "verifying"}
LINE_EVERY_SECONDS = 5.0

ReportOn = Callable[[str], Report]
"""Given the name of what moves, returns where its progress is to be told."""


@contextmanager
def progress_shown() -> Iterator[ReportOn]:
    """Show what is reported inside the block."""
    if not sys.stdout.isatty():
        yield _lines
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn()) as bars:

        def bars_for(name: str) -> Report:
            tasks = {}

            def report(phase: str, done: int, total: int) -> None:
                if not total:
                    return
                if phase not in tasks:
                    tasks[phase] = bars.add_task(f"{name}: {WORDS[phase]}", total=total)
                bars.update(tasks[phase], completed=done, total=total)

            return report

        yield bars_for


def _lines(name: str) -> Report:
    """Say when a phase has begun, and every few seconds how far it is."""
    told: dict[str, float] = {}

    def report(phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if not done or now - told.get(phase, float("-inf")) < LINE_EVERY_SECONDS:
            return
        told[phase] = now
        print(f"{name}: {WORDS[phase]} {render_bytes(done)} of {render_bytes(total)}", flush=True)

    return report


def render_bytes(count: int) -> str:
    """Return a number of bytes for people, in decimal units as disks and networks are sold."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
