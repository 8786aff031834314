"""Reads what a client sends: checks it as vLLM does, and makes of it what the engine runs."""

import json
from collections.abc import Callable
from typing import Any

from tests.sandbox.vllm_stub.engine import Request
from tests.sandbox.vllm_stub.replies import Body, RequestError

Reader = Callable[[Body, int], Request]  # body, max_model_len


def parse_body(raw: bytes, names: tuple[str, ...]) -> Body:
    """Return the JSON object of a request for one of our models.

    Raises:
        RequestError: No JSON object (400), or a model that is not served here (404).
    """
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise RequestError(f"1 validation error:\n  JSON decode error: {error}", "body", kind="Bad Request") from None
    if not isinstance(body, dict):
        raise RequestError("1 validation error:\n  Input should be a valid dictionary", "body", kind="Bad Request")
    model = body.get("model")
    if model is not None and model not in names:
        message = f"The model `{model}` does not exist. Valid aliases: {', '.join(names)}."
        raise RequestError(message, "model", status=404, kind="NotFoundError")
    return body


def completion(body: Body, max_model_len: int) -> Request:
    """Read a request to /v1/completions."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
        prompt = " ".join(map(str, prompt))
    if isinstance(prompt, list) and len(prompt) > 1:
        raise RequestError("the stub answers one prompt at a time", "prompt")
    if not isinstance(prompt, str) or not prompt:
        raise RequestError("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    return _request(body, prompt, "max_tokens", 16, max_model_len)


def chat(body: Body, max_model_len: int) -> Request:
    """Read a request to /v1/chat/completions."""
    key = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    return _request(body, _conversation(body.get("messages"), "messages"), key, None, max_model_len)


def message(body: Body, max_model_len: int) -> Request:
    """Read a request to /v1/messages."""
    _refuse_stream(body)
    return _request(body, _conversation(body.get("messages"), "messages"), "max_tokens", None, max_model_len)


def response(body: Body, max_model_len: int) -> Request:
    """Read a request to /v1/responses."""
    _refuse_stream(body)
    said = body.get("input")
    turns = [{"role": "user", "content": said}] if isinstance(said, str) else said
    return _request(body, _conversation(turns, "input"), "max_output_tokens", None, max_model_len)


def texts(body: Body) -> list[str]:
    """Read a request to /v1/embeddings."""
    given = body.get("input")
    found = [given] if isinstance(given, str) else given
    if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found):
        raise RequestError("Input should be a string or a list of strings", "input")
    return found


def _refuse_stream(body: Body) -> None:
    if body.get("stream"):
        raise RequestError("the stub streams /v1/completions and /v1/chat/completions only", "stream")


def _conversation(turns: Any, param: str) -> str:
    """Return all that was said as one text, a line a turn."""
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise RequestError("Input should be a non-empty list of messages", param)
    return "\n".join(f"{turn.get('role', 'user')}: {_content(turn.get('content'))}" for turn in turns)


def _content(content: Any) -> str:
    if isinstance(content, list):  # parts
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


def _request(body: Body, prompt: str, key: str, default: int | None, max_model_len: int) -> Request:
    if body.get("n") not in (None, 1):
        raise RequestError("the stub answers one choice", "n")
    room = max_model_len - Request(prompt, 0).prompt_tokens
    if room < 1:
        raise RequestError(
            f"This model's maximum context length is {max_model_len} tokens. However, your request has "
            f"{max_model_len - room} input tokens. Please reduce the length of the input messages.",
            "input_tokens",
        )
    asked = body.get(key)
    if asked is None:
        asked = room if default is None else min(default, room)
    if not isinstance(asked, int) or isinstance(asked, bool) or asked < 1:
        raise RequestError(f"{key} must be at least 1, got {asked}.", key)
    if asked > room:
        raise RequestError(
            f"{key}={asked} cannot be greater than max_model_len={max_model_len} less the prompt. "
            "Please request fewer output tokens.",
            key,
        )
    return Request(prompt, asked, ignore_eos=bool(body.get("ignore_eos")))
