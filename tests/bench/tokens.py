"""`make bench STACK=gpu-on`: how fast a running stack answers, from here, line and front door included.

Streams completions from several clients at once and prints medians and 95th percentiles of the time to the first token,
the time between tokens and the whole request, and the tokens a second of all together. It counts what the server says
it made (`usage`), never pieces of the stream. REQUESTS (20), CLIENTS (4) and TOKENS (64) set it.
"""

import json
import os
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True)
class Answer:
    """One finished request; times in seconds."""

    first_token: float
    whole: float
    tokens: int

    @property
    def between_tokens(self) -> float:
        """The mean pause after the first token."""
        return (self.whole - self.first_token) / max(self.tokens - 1, 1)


def measure_stack(stack: str) -> int:
    """Measure and print; return the exit status."""
    requests, clients, tokens = (
        int(os.environ.get(name, default)) for name, default in (("REQUESTS", "20"), ("CLIENTS", "4"), ("TOKENS", "64"))
    )
    try:
        outputs = read_outputs(stack)
        trust = ssl.create_default_context(cadata=outputs["ca_certificate"])
        headers = {"Authorization": f"Bearer {outputs['client_token']}"}
        with httpx.Client(base_url=outputs["endpoint"], headers=headers, verify=trust, timeout=120) as client:
            ask(client, outputs["model"], 0, 1)  # opens the connection, and shows that it works at all
            started = time.monotonic()
            with ThreadPoolExecutor(clients) as pool:
                jobs = [pool.submit(ask, client, outputs["model"], i + 1, tokens) for i in range(requests)]
                answers = [job.result() for job in jobs]
            show(answers, time.monotonic() - started)
    except (httpx.HTTPError, LookupError, ValueError, RuntimeError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def read_outputs(stack: str) -> dict[str, Any]:
    """Return what the stack exports, token included.

    Raises:
        RuntimeError: Pulumi does not say.
    """
    command = ["pulumi", "stack", "output", "--json", "--show-secrets", "--stack", stack]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        raise RuntimeError("no `pulumi` on PATH (for the sandbox: . .sandbox/env)") from None
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    outputs: dict[str, Any] = json.loads(done.stdout)
    if "endpoint" not in outputs:
        raise RuntimeError(f"stack {stack} has no endpoint: `pulumi up -s {stack}` first")
    return outputs


def ask(client: httpx.Client, model: str, number: int, tokens: int) -> Answer:
    """Stream one completion; every prompt differs, so that no prefix cache answers."""
    body = {
        "model": model,
        "prompt": f"{number} {time.time_ns()}: a short story about a lantern.",
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started, first, made = time.monotonic(), 0.0, 0
    with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if event["choices"] and not first:
                first = time.monotonic() - started
            if event.get("usage"):
                made = event["usage"]["completion_tokens"]
    return Answer(first, time.monotonic() - started, made)


def show(answers: Sequence[Answer], seconds: float) -> None:
    """Print the table."""
    print(f"{len(answers)} requests in {seconds:.1f} s: {sum(a.tokens for a in answers) / seconds:.0f} tokens/s")
    print(f"{'':16}{'median':>10}{'95 %':>10}")
    for name, times in (
        ("first token", [answer.first_token for answer in answers]),
        ("between tokens", [answer.between_tokens for answer in answers]),
        ("whole request", [answer.whole for answer in answers]),
    ):
        high = sorted(times)[max(0, round(0.95 * len(times)) - 1)]
        print(f"{name:16}{statistics.median(times) * 1000:>7.0f} ms{high * 1000:>7.0f} ms")
