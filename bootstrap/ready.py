"""Ask a machine from outside, as its clients do: over TLS verified against the fleet's authority and nothing else."""

import asyncio
import math
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from dynamic_providers.errors import BootError, BootstrapError
from dynamic_providers.web import httpx

RETRY_SECONDS = 0.5
REQUEST_TIMEOUT = timedelta(seconds=30)
"""A first request may still compile kernels; a try that takes longer is made again."""
MISSES = 3
"""So many questions in a row may be lost before a machine is taken for one that cannot be asked."""
NOT_YET = frozenset({500, 502, 503, 504})


async def first_token(
    endpoint: str,
    ca_certificate: str,
    token: str,
    served_name: str,
    *,
    deadline: timedelta,
    embeds: bool = False,
) -> float:
    """Have one token generated through the front door, or one vector; return the seconds it took, tries included.

    Args:
        endpoint: `https://IP:PORT`.
        ca_certificate: The fleet's, PEM.
        token: A client's.
        served_name: The model to ask for.
        deadline: Until then a machine that is not up yet is asked again.
        embeds: The model answers with vectors: `Engine.embeds`.

    Raises:
        BootError: Not within the deadline, or somebody else answers there.
        BootstrapError: The machine answers, and what it says will not get better.
    """
    began = time.monotonic()
    question = _vector_question(served_name) if embeds else _token_question(served_name)
    async with _client(ca_certificate, REQUEST_TIMEOUT) as client:
        while True:
            seen = await _ask(client, endpoint, token, question)
            seconds = time.monotonic() - began
            if seen is None:
                return seconds
            if seconds + RETRY_SECONDS > deadline.total_seconds():
                raise BootError("first token", f"none from {endpoint} within {seconds:.0f} s: {seen}")
            await asyncio.sleep(RETRY_SECONDS)


@dataclass(frozen=True)
class Control:
    """A machine's control endpoints, for who holds the fleet's `observe` key.

    Args:
        endpoint: `https://IP:PORT`.
        ca_certificate: The fleet's, PEM.
        token: The machine's control token.
    """

    endpoint: str
    ca_certificate: str
    token: str = field(repr=False)

    async def read(self, *, timeout: timedelta) -> dict[str, Any] | None:
        """Return what the machine says of itself, as the agent's `/control/state`; None if it cannot be asked."""
        return await self._ask("GET", "state", timeout)

    async def drain(self, *, deadline: timedelta, timeout: timedelta, report: Callable[[int | None], None]) -> None:
        """Shut the door and return when nobody is being answered any more, or can be asked; at the latest in time.

        Args:
            deadline: What running requests are granted.
            timeout: For each question. A machine that does not answer a few of them is not waited for.
            report: Told how many requests are left; None where the machine itself cannot say.
        """
        until, misses, is_shut = time.monotonic() + deadline.total_seconds(), 0, False
        seconds = math.ceil((deadline + timeout).total_seconds())
        while misses < MISSES and time.monotonic() < until:
            shut = ("PUT", "drain", timeout, {"seconds": seconds})
            state = await (self.read(timeout=timeout) if is_shut else self._ask(*shut))
            if state is None:
                misses += 1
            else:
                misses, is_shut, left = 0, True, state.get("in_flight")
                if left == 0:
                    return
                report(left)
            await asyncio.sleep(RETRY_SECONDS)

    async def _ask(
        self, method: str, what: str, timeout: timedelta, body: dict[str, Any] | None = None
    ) -> dict[str, Any] | None:
        try:
            async with _client(self.ca_certificate, timeout) as client:
                headers = {"Authorization": f"Bearer {self.token}"}
                answer = await client.request(method, f"{self.endpoint}/control/{what}", headers=headers, json=body)
                state = answer.json() if answer.status_code == 200 else None
        except (httpx.HTTPError, ValueError):
            return None
        return state if isinstance(state, dict) else None


def _client(ca_certificate: str, timeout: timedelta) -> httpx.AsyncClient:
    # The operator's proxies and certificates have no say in this: the machine is known by the fleet's key.
    context = ssl.create_default_context(cadata=ca_certificate)
    return httpx.AsyncClient(verify=context, timeout=timeout.total_seconds(), trust_env=False)


@dataclass(frozen=True)
class _Question:
    """What is asked, and how its answer is known.

    Attributes:
        hint: What to change where the engine has no such path.
    """

    path: str
    body: dict[str, Any]
    wanted: str
    is_answer: Callable[[dict[str, Any]], bool]
    hint: str


def _token_question(served_name: str) -> _Question:
    return _Question(
        "/v1/completions",
        {"model": served_name, "prompt": "Hello", "max_tokens": 1},
        "completion",
        lambda body: bool(body.get("choices")),
        "this model does not write text; if it embeds, write vllm_args: [--runner, pooling] under `model`",
    )


def _vector_question(served_name: str) -> _Question:
    return _Question(
        "/v1/embeddings",
        {"model": served_name, "input": "Hello"},
        "vector",
        _has_vector,
        "this model does not embed; take `--runner` and `--convert` out of model.vllm_args, or serve another model",
    )


def _has_vector(body: dict[str, Any]) -> bool:
    try:
        vector = body["data"][0]["embedding"]
        # Weights that overflow their type make a vector of NaN, with HTTP 200.
        return bool(vector) and all(math.isfinite(value) for value in vector)
    except (LookupError, TypeError):
        return False


async def _ask(client: httpx.AsyncClient, endpoint: str, token: str, question: _Question) -> str | None:
    """Return why there is no answer yet; None if there is one."""
    try:
        answer = await client.post(
            f"{endpoint}{question.path}", json=question.body, headers={"Authorization": f"Bearer {token}"}
        )
    except httpx.TransportError as error:
        if isinstance(_root(error), ssl.SSLCertVerificationError):
            raise BootError("first token", f"another machine answers at {endpoint}: {error}") from error
        return str(error) or type(error).__name__
    if answer.status_code in NOT_YET:
        return f"HTTP {answer.status_code}"
    body = _json_object(answer)
    if answer.status_code != 200:
        # vLLM's framework says this of a path that the served model has not; of another model's name it says more.
        hint = f"; {question.hint}" if body == {"detail": "Not Found"} else ""
        message = f"HTTP {answer.status_code} from the front door{hint}"
        raise BootstrapError("first token", message, output=answer.text[:2000])
    if not question.is_answer(body):
        raise BootstrapError("first token", f"the answer is no {question.wanted}", output=answer.text[:2000])
    return None


def _json_object(answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _root(error: BaseException) -> BaseException:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return error
