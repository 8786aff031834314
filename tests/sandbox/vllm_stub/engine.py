"""What stands in for the GPU: makes up words at a set speed, and counts as the real engine does."""

import asyncio
import hashlib
import random
import re
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from tests.sandbox.vllm_stub.metrics import Metrics
from tests.sandbox.words import WORDS

KV_CACHE_TOKENS = 2_097_152  # what the usage gauge counts against


@dataclass(frozen=True)
class Request:
    """One admitted request.

    Args:
        prompt: The text to go on from; the same prompt always brings the same words.
        max_tokens: Most words to make.
        ignore_eos: Go on to `max_tokens` even where the text would end by itself.
    """

    prompt: str
    max_tokens: int
    ignore_eos: bool = False

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has: words and signs."""
        return count_tokens(self.prompt)


def count_tokens(text: str) -> int:
    """Return how many tokens a text has; at least one, for its start."""
    return 1 + len(re.findall(r"\w+|[^\w\s]", text))


class EngineClosedError(Exception):
    """The engine takes no new work: it is shutting down."""


class Engine:
    """Runs requests, at most *slots* at once; the others wait."""

    def __init__(self, metrics: Metrics, *, slots: int, tokens_per_second: float) -> None:
        self._metrics = metrics
        self._slots = asyncio.Semaphore(slots)
        self._pause = 1 / tokens_per_second
        self._closed = False
        self._tokens_held = 0
        self.in_flight = 0

    def close(self) -> None:
        """Take no new work from here on; what runs goes on."""
        self._closed = True

    async def generate(self, request: Request) -> AsyncGenerator[str | None, None]:
        """Yield word after word, each with its leading space; a last None where the text ended by itself.

        A caller that goes away ends it early. As in the real engine its tokens stay counted, and it is counted
        neither as finished nor as aborted.

        Raises:
            EngineClosedError: It came after `close`.
        """
        if self._closed:
            raise EngineClosedError("cannot schedule new futures after shutdown")
        arrived = time.monotonic()
        self.in_flight += 1
        self._waiting(+1)
        waiting = True
        try:
            async with self._slots:
                self._waiting(-1)
                waiting = False
                async for word in self._run(request, arrived, time.monotonic()):
                    yield word
        finally:
            if waiting:
                self._waiting(-1)
            self.in_flight -= 1

    async def _run(self, request: Request, arrived: float, scheduled: float) -> AsyncGenerator[str | None, None]:
        metrics = self._metrics
        words = _words(request)
        metrics.add("vllm:num_requests_running", 1)
        self._hold(request.prompt_tokens)
        held, first, last, made = request.prompt_tokens, scheduled, scheduled, 0
        try:
            for name in ("prompt_tokens_total", "prefix_cache_queries_total"):
                metrics.add(f"vllm:{name}", request.prompt_tokens)
            metrics.add("vllm:prompt_tokens_by_source_total", request.prompt_tokens, "local_compute")
            for word in words[: request.max_tokens]:
                await asyncio.sleep(self._pause)
                now = time.monotonic()
                if made == 0:
                    first = now
                    metrics.observe("vllm:time_to_first_token_seconds", now - arrived)
                else:
                    metrics.observe("vllm:inter_token_latency_seconds", now - last)
                metrics.observe("vllm:iteration_tokens_total", 1 if made else request.prompt_tokens + 1)
                metrics.add("vllm:generation_tokens_total")
                self._hold(1)
                held, last, made = held + 1, now, made + 1
                yield word
            if made < request.max_tokens:
                yield None
            self._finish(request, made, (arrived, scheduled, first, last))
        finally:
            self._hold(-held)
            metrics.add("vllm:num_requests_running", -1)

    def _finish(self, request: Request, made: int, times: tuple[float, float, float, float]) -> None:
        """Count a request that came to its end."""
        arrived, scheduled, first, last = times
        self._metrics.add("vllm:request_success_total", 1, "length" if made == request.max_tokens else "stop")
        for name, amount in {
            "request_prompt_tokens": request.prompt_tokens,
            "request_prefill_kv_computed_tokens": request.prompt_tokens,
            "request_generation_tokens": made,
            "request_max_num_generation_tokens": made,
            "request_params_n": 1,
            "request_params_max_tokens": request.max_tokens,
            "request_num_preemptions": 0,
            "request_queue_time_seconds": scheduled - arrived,
            "request_prefill_time_seconds": first - scheduled,
            "request_decode_time_seconds": last - first,
            "request_inference_time_seconds": last - scheduled,
            "request_time_per_output_token_seconds": (last - first) / max(made - 1, 1),
            "e2e_request_latency_seconds": last - arrived,
        }.items():
            self._metrics.observe(f"vllm:{name}", amount)

    def _waiting(self, change: int) -> None:
        self._metrics.add("vllm:num_requests_waiting", change)
        self._metrics.add("vllm:num_requests_waiting_by_reason", change, "capacity")

    def _hold(self, tokens: int) -> None:
        self._tokens_held += tokens
        self._metrics.set("vllm:kv_cache_usage_perc", self._tokens_held / KV_CACHE_TOKENS)


def _words(request: Request) -> list[str]:
    """Return the answer to a prompt: 16 to 64 words, or all that were asked for where it must not end by itself."""
    dice = random.Random(hashlib.sha256(request.prompt.encode()).digest())
    length = dice.randint(16, 64)
    if request.ignore_eos:
        length = request.max_tokens
    return [f" {dice.choice(WORDS)}" for _ in range(length)]
