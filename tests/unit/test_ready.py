"""What counts as the first answer of a machine; the way there is tried in the sandbox."""

import asyncio
from datetime import timedelta
from typing import Any

import httpx
import pytest

from bootstrap import ready
from dynamic_providers.errors import BootError, BootstrapError
from tests.unit.builders import a_fleet

COMPLETION = {"choices": [{"index": 0, "text": " world"}]}
VECTOR = {"data": [{"index": 0, "embedding": [0.1, -0.2]}]}
NOT_FOUND = {"detail": "Not Found"}  # tried with vLLM 0.32 on a path that the served model has not
UNKNOWN_MODEL = {"error": {"message": "The model `x` does not exist.", "type": "NotFoundError", "code": 404}}


def ask(monkeypatch: pytest.MonkeyPatch, *answers: httpx.Response, embeds: bool) -> list[httpx.Request]:
    """Ask a machine that gives these answers, one after the other; return what it was asked."""
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return answers[len(asked) - 1]

    transport = httpx.MockTransport(answer)
    monkeypatch.setattr(ready, "_client", lambda *_: httpx.AsyncClient(transport=transport))
    monkeypatch.setattr(ready, "RETRY_SECONDS", 0.001)
    asyncio.run(
        ready.first_token("https://203.0.113.7:40443", "", "token", "m", deadline=timedelta(seconds=5), embeds=embeds)
    )
    return asked


def says(body: Any, status: int = 200) -> httpx.Response:
    return httpx.Response(status, json=body)


@pytest.mark.parametrize(
    ("embeds", "path", "answer"),
    [
        pytest.param(False, "/v1/completions", COMPLETION, id="text"),
        pytest.param(True, "/v1/embeddings", VECTOR, id="vector"),
    ],
)
def test_a_machine_is_asked_for_what_its_model_gives(
    monkeypatch: pytest.MonkeyPatch, embeds: bool, path: str, answer: Any
) -> None:
    asked = ask(monkeypatch, says(None, 503), says(answer), embeds=embeds)
    assert [request.url.path for request in asked] == [path, path], "asked again while it was not up"
    assert asked[0].headers["Authorization"] == "Bearer token"


@pytest.mark.parametrize(
    ("embeds", "answer", "told"),
    [
        pytest.param(False, says({"choices": []}), "the answer is no completion", id="nothing-chosen"),
        pytest.param(False, says(VECTOR), "the answer is no completion", id="a-vector-for-text"),
        pytest.param(False, says([COMPLETION]), "the answer is no completion", id="a-list"),
        pytest.param(False, httpx.Response(200, text="hello"), "the answer is no completion", id="no-json"),
        pytest.param(True, says(COMPLETION), "the answer is no vector", id="text-for-a-vector"),
        pytest.param(True, says({"data": []}), "the answer is no vector", id="no-row"),
        pytest.param(True, says({"data": [{"embedding": []}]}), "the answer is no vector", id="an-empty-vector"),
        pytest.param(True, says({"data": [{"embedding": "AACAPw=="}]}), "the answer is no vector", id="base64"),
        pytest.param(
            True,
            httpx.Response(200, text='{"data": [{"embedding": [0.1, NaN]}]}'),
            "the answer is no vector",
            id="not-a-number",
        ),
        pytest.param(False, says(NOT_FOUND, 404), r"\[--runner, pooling\]", id="the-model-writes-no-text"),
        pytest.param(True, says(NOT_FOUND, 404), "take `--runner` and `--convert` out", id="the-model-does-not-embed"),
        pytest.param(True, says(UNKNOWN_MODEL, 404), "HTTP 404 from the front door\n", id="another-name"),
    ],
)
def test_any_other_answer_is_an_error_at_once(
    monkeypatch: pytest.MonkeyPatch, embeds: bool, answer: httpx.Response, told: str
) -> None:
    with pytest.raises(BootstrapError, match=told):
        ask(monkeypatch, answer, embeds=embeds)


def test_a_machine_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unavailable(*_: object) -> str:
        return "HTTP 503"

    monkeypatch.setattr(ready, "_ask", unavailable)
    authority = a_fleet().ca_certificate
    with pytest.raises(BootError, match=r"none from .* within 0 s: HTTP 503"):
        asyncio.run(
            ready.first_token("https://203.0.113.7:40443", authority, "t", "m", deadline=timedelta(0), embeds=True)
        )
