"""`python -m tests.bench door`: what the front door adds to an answer, and what it takes while nothing happens.

STREAMS (64) clients, each on its own warm connection, stream one answer after the other from the vLLM stub, which makes
40 tokens a second for each; through the front door over TLS, through a Caddy that does nothing but TLS, and straight
from the stub's unix socket, in turn, ROUNDS (5) times. What counts is the difference in the time to the first byte and
the ratio of all the tokens made.
Then a whole machine, agent, door and vmagent of it watched, is left alone for REST_SECONDS (20).
"""

import asyncio
import json
import os
import ssl
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bootstrap.remote import ask
from bootstrap.ssh import connect
from bootstrap.steps import DOOR_PORT
from dynamic_providers.lease.monitoring import WriteTarget
from dynamic_providers.store.binaries import VMAGENT
from tests.sandbox.blob_server import BlobServer
from tests.sandbox.bootstrap_world import REMAINING, SOON, a_world, put_program
from tests.sandbox.door_engines import stub_engine
from tests.sandbox.door_world import CA, TOKENS, open_door
from tests.sandbox.models import write_tiny_llama

TOKENS_PER_SECOND = 40
ADDED_MS, RATIO = 2.0, 0.97
REST_MB, REST_CPU = 150, 0.03
"""What is aimed at, the latter two for all programs of a machine together: never a reason to fail, machines differ."""
ALONE, PLAIN, OURS = "stub alone", "plain Caddy", "front door"
ANSWER_TOKENS = 80
ANSWERS = 3

Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Round:
    """What all clients saw in one round: seconds to each first byte, and tokens a second of all together."""

    first_bytes: tuple[float, ...]
    tokens_per_second: float

    @property
    def p95_ms(self) -> float:
        """Until then 95 of 100 had their first byte."""
        return statistics.quantiles(self.first_bytes, n=20)[-1] * 1000


def measure_door() -> int:
    """Measure and print; return the exit status."""
    streams, rounds = int(os.environ.get("STREAMS", "64")), int(os.environ.get("ROUNDS", "5"))
    with tempfile.TemporaryDirectory(prefix="gpu-door-") as name:
        model = write_tiny_llama(Path(name) / "model", positions=4096)
        folders = [Path(name) / each for each in ("machine", "plain")]
        for folder in folders:
            folder.mkdir()
        socket = folders[0] / "run/engine.sock"
        with open_door(folders[0]) as door:
            with stub_engine(door, model, TOKENS_PER_SECOND), open_door(folders[1], lambda c: _bare(c, socket)) as bare:
                load = os.getloadavg()[0]
                doors = {ALONE: None, PLAIN: bare.address, OURS: door.address}
                seen = {way: list[Round]() for way in doors}
                for number in range(rounds):
                    for way in list(seen)[:: 1 if number % 2 else -1]:
                        seen[way].append(asyncio.run(run_round(doors[way] or socket, streams)))
                    print(_told(number, seen), flush=True)
            print("\n".join(render_ways(seen)))
            print(f"{os.cpu_count()} processors, load average {load:.1f} before and {os.getloadavg()[0]:.1f} after")
        print("\n".join(render_rest(asyncio.run(measure_rest(Path(name) / "rest", model)))))
    return 0


async def measure_rest(folder: Path, model: Path) -> dict[str, tuple[float, float]]:
    """Bring a machine up whose metrics nobody takes, and watch what it does for nothing; see `watch_rest`."""
    folder.mkdir()
    with BlobServer() as store:
        async with a_world(folder, store, model) as world:
            world.vmagent = put_program(store, VMAGENT)
            world.engine = replace(world.engine, monitoring=WriteTarget("https://127.0.0.1:9/api/v1/write"))
            await world.apply()
            async with await connect(world.target(), deadline=SOON) as machine:
                await ask(machine, "lease", REMAINING.to_json(is_ready=True))
            pids = await world.pids()
            return await asyncio.to_thread(watch_rest, {name: pids[name] for name in ("agent", "door", "push")})


def _bare(config: str, engine: Path) -> str:
    """Return the configuration of a Caddy that passes everything on, on the same terms with its clients."""
    loaded = json.loads(config)
    proxy = {"handler": "reverse_proxy", "upstreams": [{"dial": f"unix/{engine}"}]}
    server = loaded["apps"]["http"]["servers"]["door"]
    server["routes"] = [{"handle": [proxy]}]
    del server["logs"], loaded["apps"]["http"]["metrics"]
    return json.dumps(loaded)


async def run_round(where: str | Path, streams: int) -> Round:
    """Have all clients stream their answers on warm connections; they begin one after the other, as clients do."""
    lines = [await _connect(where) for _ in range(streams)]
    try:
        for line in lines:
            await _ask(*line, 1)  # warm on both of its sides
        began = time.monotonic()
        asking = (_ask_all(line, number / streams) for number, line in enumerate(lines))
        answers = [answer for client in await asyncio.gather(*asking) for answer in client]
        seconds = time.monotonic() - began
    finally:
        for _, writer in lines:
            writer.close()
            await writer.wait_closed()
    return Round(tuple(first for first, _ in answers), sum(count for _, count in answers) / seconds)


async def _ask_all(line: Line, pause: float) -> list[tuple[float, int]]:
    await asyncio.sleep(pause)
    return [await _ask(*line, ANSWER_TOKENS) for _ in range(ANSWERS)]


async def _connect(where: str | Path) -> Line:
    if isinstance(where, Path):
        return await asyncio.open_unix_connection(where)
    trust = ssl.create_default_context(cadata=CA)
    return await asyncio.open_connection(where, DOOR_PORT, ssl=trust, server_hostname=where)


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tokens: int) -> tuple[float, int]:
    """Stream one answer; return the seconds to the first byte of its body, and the tokens that came."""
    body = json.dumps({"prompt": "go on", "max_tokens": tokens, "ignore_eos": True, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKENS['default']}\r\n"
    began = time.monotonic()
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200"), answer
    first, count = 0.0, 0
    while size := int(await reader.readline(), 16):
        first = first or time.monotonic() - began
        count += (await reader.readexactly(size + 2)).count(b"data: {")
    await reader.readexactly(2)
    return first, count


def render_ways(seen: Mapping[str, Sequence[Round]]) -> list[str]:
    """Return the medians over the rounds, and how far the front door is from no door at all."""
    p95 = {way: statistics.median(round_.p95_ms for round_ in rounds) for way, rounds in seen.items()}
    speed = {way: statistics.median(round_.tokens_per_second for round_ in rounds) for way, rounds in seen.items()}
    added, ratio = p95[OURS] - p95[ALONE], speed[OURS] / speed[ALONE]
    return [
        *(f"{way:<12}first byte p95 {p95[way]:7.2f} ms{speed[way]:9.0f} tokens/s" for way in seen),
        f"the front door adds {added:.2f} ms (aim: < {ADDED_MS:g}), leaves {ratio:.3f} of the tokens (aim: >= {RATIO})",
    ]


def watch_rest(pids: Mapping[str, int]) -> dict[str, tuple[float, float]]:
    """Return of each program the megabytes that it holds, and the share of a core that it takes for nothing."""
    time.sleep(5)  # what the load left to do
    seconds = float(os.environ.get("REST_SECONDS", "20"))
    before = {name: _cpu_seconds(pid) for name, pid in pids.items()}
    time.sleep(seconds)
    return {name: (_resident_mb(pid), (_cpu_seconds(pid) - before[name]) / seconds) for name, pid in pids.items()}


def render_rest(rest: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return what each program takes at rest, and all of them."""
    memory, cpu = (sum(figures) for figures in zip(*rest.values(), strict=True))
    return [
        *(f"{name:<12}{mb:7.0f} MB resident{share:8.2%} of a core at rest" for name, (mb, share) in rest.items()),
        f"{'together':<12}{memory:7.0f} MB (aim: < {REST_MB} with all programs){cpu:8.2%} (aim: < {REST_CPU:.0%})",
    ]


def _told(number: int, seen: Mapping[str, Sequence[Round]]) -> str:
    told = (f"{way} {runs[-1].p95_ms:.2f} ms, {runs[-1].tokens_per_second:.0f} tokens/s" for way, runs in seen.items())
    return f"round {number + 1}: {'; '.join(told)}"


def _resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmRSS:"))


def _cpu_seconds(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
