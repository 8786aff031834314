"""Ask a machine from outside, as its clients do: over TLS verified against the fleet's authority and nothing else."""

import ssl
import time
from datetime import timedelta
from typing import Any

import httpx

from dynamic_providers.errors import BootError, BootstrapError

RETRY_SECONDS = 0.5
REQUEST_TIMEOUT = timedelta(seconds=30)
"""A first request may still compile kernels; a try that takes longer is made again."""
NOT_YET = frozenset({500, 502, 503, 504})


def first_token(
    endpoint: str,
    ca_certificate: str,
    token: str,
    served_name: str,
    *,
    deadline: timedelta,
) -> float:
    """Have one token generated through the front door; return the seconds that it took, tries included.

    Args:
        endpoint: `https://IP:PORT`.
        ca_certificate: The fleet's, PEM.
        token: A client's.
        served_name: The model to ask for.
        deadline: Until then a machine that is not up yet is asked again.

    Raises:
        BootError: Not within the deadline, or somebody else answers there.
        BootstrapError: The machine answers, and what it says will not get better.
    """
    began = time.monotonic()
    question = {"model": served_name, "prompt": "Hello", "max_tokens": 1}
    with _client(ca_certificate, REQUEST_TIMEOUT) as client:
        while True:
            seen = _ask(client, endpoint, token, question)
            seconds = time.monotonic() - began
            if seen is None:
                return seconds
            if seconds + RETRY_SECONDS > deadline.total_seconds():
                raise BootError("first token", f"none from {endpoint} within {seconds:.0f} s: {seen}")
            time.sleep(RETRY_SECONDS)


def read_state(endpoint: str, ca_certificate: str, control_token: str, *, timeout: timedelta) -> dict[str, Any] | None:
    """Return what the machine says of itself, `{"settings": hash, "instance": id}`; None if it cannot be asked."""
    try:
        with _client(ca_certificate, timeout) as client:
            answer = client.get(f"{endpoint}/control/state", headers={"Authorization": f"Bearer {control_token}"})
            state = answer.json() if answer.status_code == 200 else None
    except (httpx.HTTPError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def _client(ca_certificate: str, timeout: timedelta) -> httpx.Client:
    # The operator's proxies and certificates have no say in this: the machine is known by the fleet's key.
    context = ssl.create_default_context(cadata=ca_certificate)
    return httpx.Client(verify=context, timeout=timeout.total_seconds(), trust_env=False)


def _ask(client: httpx.Client, endpoint: str, token: str, question: dict[str, Any]) -> str | None:
    """Return why there is no token yet; None if there is one."""
    try:
        answer = client.post(f"{endpoint}/v1/completions", json=question, headers={"Authorization": f"Bearer {token}"})
    except httpx.TransportError as error:
        if isinstance(_root(error), ssl.SSLCertVerificationError):
            raise BootError("first token", f"another machine answers at {endpoint}: {error}") from error
        return str(error) or type(error).__name__
    if answer.status_code in NOT_YET:
        return f"HTTP {answer.status_code}"
    if answer.status_code != 200:
        raise BootstrapError("first token", f"HTTP {answer.status_code} from the front door", output=answer.text[:2000])
    if not _is_completion(answer):
        raise BootstrapError("first token", "the answer is no completion", output=answer.text[:2000])
    return None


def _is_completion(answer: httpx.Response) -> bool:
    try:
        body = answer.json()
    except ValueError:
        return False
    return isinstance(body, dict) and bool(body.get("choices"))


def _root(error: BaseException) -> BaseException:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return error
