"""The bench's own arithmetic. How fast we are is not a test's business: machines differ."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.__main__ import COMMANDS, Pairs, render_crowd, render_peaks, render_times
from tests.bench.memory import PeakWatch, read_peak
from tests.bench.stage import Engine, Run
from tests.sandbox.hosts.processes import MARK

ENGINE = Engine("played", Path())
RUNS = [(1.0, 1.5), (2.0, 5.0), (4.0, 5.2)]


def pairs() -> Pairs:
    rounds = [(Run(sample, 50_000_000), Run(ours, 90_000_000)) for sample, ours in RUNS]
    return {(ENGINE.name, command): list(rounds) for command in COMMANDS}


def test_own_time_is_the_median_of_the_differences() -> None:
    preview = render_times(pairs())[1].split()
    assert preview == ["played:", "preview", "2.00", "5.00", "1.20", "<", "1", "missed"]


def test_a_target_that_is_met_is_not_called_missed() -> None:
    assert "missed" not in render_times(pairs())[2]


def test_the_peak_is_the_most_of_all_commands() -> None:
    runs = pairs()
    runs[ENGINE.name, "destroy"] = [(Run(1, 60_000_000), Run(1, 130_000_000))] * len(RUNS)
    assert render_peaks(runs)[1].split() == ["played", "60", "130", "<", "120", "missed"]


def test_a_crowd_is_measured_by_its_last() -> None:
    assert render_crowd(ENGINE, [Run(6, 0), Run(9, 0)], 5.0, 0.98)[1].split() == [
        "played:",
        "up",
        "5.00",
        "9.00",
        "4.00",
        "<",
        "5",
    ]


def test_the_watch_finds_the_provider_by_its_mark(tmp_path: Path) -> None:
    # Named as the SDK's host is; holds 64 MB until its stdin ends.
    program = "import sys; held = b'x' * 64_000_000; print(flush=True); sys.stdin.read()"
    mark = f"{tmp_path}/bench"
    with subprocess.Popen(
        [sys.executable, "-c", program, "pulumi.dynamic"],
        env={**os.environ, MARK: mark},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        with PeakWatch(mark) as watch:
            while not watch.peak_bytes:
                time.sleep(0.01)
        process.stdin.close()
    assert 64_000_000 < watch.peak_bytes < 200_000_000
    assert read_peak(process.pid) == 0  # gone
