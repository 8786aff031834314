"""`make bench`: what our own work takes, beside the same engine's on a program that does nothing.

Each round runs every command on both programs, one right after the other, by each engine that is found; `own` is the
median of the differences. Then eight gpu stacks come up at once. ROUNDS (3) sets how often. With STACK=<name> it
measures instead how fast that running stack answers: REQUESTS (20), CLIENTS (4), TOKENS (64). Transfers have sections
of their own, `python -m tests.bench fetch` and `push`, and so has the front door: `door`.
"""

import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.bench.door import measure_door
from tests.bench.fetch import measure_fetch
from tests.bench.push import measure_push
from tests.bench.stage import STACKS, BenchError, Engine, Run, Stage, open_stage
from tests.bench.tokens import measure_stack
from tests.sandbox.world import SandboxError

SECTIONS = {"fetch": measure_fetch, "push": measure_push, "door": measure_door}
PROGRAMS = ("sample", "gpu")
UP = ("up", "--yes", "--skip-preview")
DESTROY = ("destroy", "--yes", "--skip-preview")
COMMANDS = {"preview": ("preview",), "up": UP, "up, unchanged": UP, "destroy": DESTROY}
OWN_SECONDS = {"preview": 1.0, "up": 3.0, "up, unchanged": 3.0, "destroy": 2.0}
"""What is aimed at: never a reason to fail, machines differ."""
PEAK_MB = 120
CROWD_EXTRA_SECONDS = 5.0

Pairs = dict[tuple[str, str], list[tuple[Run, Run]]]
"""Engine and command → for each round the run on the sample program and the run on ours."""


def main(section: str = "") -> int:
    """Measure and print; all but transfers, or the one that is named."""
    if section in SECTIONS:
        return _measure_transfer(SECTIONS[section])
    if section:
        print(f"bench: no section {section!r}: {', '.join(SECTIONS)}, or none", file=sys.stderr)
        return 2
    if stack := os.environ.get("STACK"):
        return measure_stack(stack)
    rounds, load = int(os.environ.get("ROUNDS", "3")), os.getloadavg()[0]
    signal.signal(signal.SIGTERM, _stop)  # or hosts and providers would outlive us
    try:
        with tempfile.TemporaryDirectory(prefix="gpu-bench-") as folder, open_stage(Path(folder), _tell) as stage:
            pairs = measure_pairs(stage, rounds)
            engine = stage.engines[-1]
            crowd, busy = measure_crowd(stage, engine)
    except (BenchError, SandboxError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    alone = max(ours.seconds for _, ours in pairs[engine.name, "up"])
    _tell("")
    _tell(f"{os.cpu_count()} processors, load average {load:.1f} before and {os.getloadavg()[0]:.1f} after\n")
    _tell("\n".join([*render_times(pairs), "", *render_peaks(pairs), "", *render_crowd(engine, crowd, alone, busy)]))
    return 0


def _measure_transfer(measure: Callable[[], int]) -> int:
    signal.signal(signal.SIGTERM, _stop)  # or gigabytes would be left behind
    try:
        return measure()
    except (BenchError, RuntimeError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def measure_pairs(stage: Stage, rounds: int) -> Pairs:
    """Run every command on both programs by every engine, so many times; every other round ours goes first."""
    pairs: Pairs = {(engine.name, command): [] for engine in stage.engines for command in COMMANDS}
    for number in range(rounds):
        for engine, stack in zip(stage.engines, STACKS, strict=False):
            for command, words in COMMANDS.items():
                order = PROGRAMS if number % 2 == 0 else PROGRAMS[::-1]
                runs = {program: stage.run(engine, program, stack, *words) for program in order}
                pairs[engine.name, command].append((runs["sample"], runs["gpu"]))
            told = ", ".join(f"{command} {pairs[engine.name, command][-1][1].seconds:.1f} s" for command in COMMANDS)
            _tell(f"round {number + 1} of {rounds}, {engine.name}: {told}")
    return pairs


def measure_crowd(stage: Stage, engine: Engine) -> tuple[list[Run], float]:
    """Bring every gpu stack up at once, and then back down; return the runs up and how busy the processors were."""
    with ThreadPoolExecutor(len(STACKS)) as pool:
        worked, idled = processor_time()
        runs = list(pool.map(lambda stack: stage.run(engine, "gpu", stack, *UP, is_watched=False), STACKS))
        works, idles = processor_time()
        _tell(f"{len(STACKS)} stacks at once, {engine.name}: up after {max(run.seconds for run in runs):.1f} s")
        list(pool.map(lambda stack: stage.run(engine, "gpu", stack, *DESTROY, is_watched=False), STACKS))
    return runs, (works - worked) / (works - worked + idles - idled)


def processor_time() -> tuple[int, int]:
    """Return for how long this machine's processors have worked and idled since its start, in ticks."""
    user, nice, system, idle, waiting, *rest = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
    return user + nice + system + sum(rest), idle + waiting


def render_times(pairs: Pairs) -> list[str]:
    """Return the table of wall times, medians in seconds."""
    lines = [f"{'seconds, medians':<28}{'sample':>8}{'gpu':>8}{'own':>8}{'target':>9}"]
    for (engine, command), runs in pairs.items():
        sample, ours = (statistics.median(run.seconds for run in side) for side in zip(*runs, strict=True))
        own = statistics.median(ours.seconds - sample.seconds for sample, ours in runs)
        target = OWN_SECONDS[command]
        lines.append(f"{engine + ': ' + command:<28}{sample:>8.2f}{ours:>8.2f}{own:>8.2f}{_target(own, target)}")
    return lines


def render_peaks(pairs: Pairs) -> list[str]:
    """Return the table of the provider process's memory, the most of all its commands, medians over the rounds."""
    lines = [f"{'provider, peak MB, medians':<28}{'sample':>8}{'gpu':>8}{'':8}{'target':>9}"]
    for engine in dict.fromkeys(engine for engine, _ in pairs):
        rounds = zip(*(pairs[engine, command] for command in COMMANDS), strict=True)
        peaks = [[max(pair[side].peak_bytes for pair in round_) / 1e6 for side in (0, 1)] for round_ in rounds]
        sample, ours = (statistics.median(side) for side in zip(*peaks, strict=True))
        lines.append(f"{engine:<28}{sample:>8.0f}{ours:>8.0f}{'':8}{_target(ours, PEAK_MB)}")
    return lines


def render_crowd(engine: Engine, runs: Sequence[Run], alone: float, busy: float) -> list[str]:
    """Return the table of many stacks at once, in seconds; the target leaves each no more than a little extra.

    Args:
        engine: That ran them.
        runs: All at once.
        alone: How long one takes by itself, seconds.
        busy: Share of the processors' time that was used meanwhile: near 1, they are what the stacks waited for.
    """
    last = max(run.seconds for run in runs)
    return [
        f"{f'{len(runs)} gpu stacks at once, seconds':<28}{'alone':>8}{'last':>8}{'extra':>8}{'target':>9}",
        f"{engine.name + ': up':<28}{alone:>8.2f}{last:>8.2f}{last - alone:>8.2f}"
        f"{_target(last - alone, CROWD_EXTRA_SECONDS)}",
        f"{os.cpu_count()} processors, the sandbox's hosts among their work, were {busy:.0%} busy meanwhile",
    ]


def _target(figure: float, target: float) -> str:
    return f"{f'< {target:g}':>9}" + ("" if figure < target else "   missed")


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
