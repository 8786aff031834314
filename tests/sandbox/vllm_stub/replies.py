"""The bodies that vLLM 0.32 sends: OpenAI's and Anthropic's shapes, and its own errors."""

import secrets
import time
from collections.abc import Callable
from typing import Any

from tests.sandbox.vllm_stub.engine import Request

Body = dict[str, Any]
FINGERPRINT = "vllm-0.32.0-stub"


class RequestError(Exception):
    """A request that is answered with an error.

    Args:
        message: What is wrong, as the real server words it.
        param: The field at fault.
        status: The HTTP status, which the body repeats.
        kind: The error's type in the body.
    """

    def __init__(
        self, message: str, param: str | None = None, *, status: int = 400, kind: str = "BadRequestError"
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


def usage(request: Request, made: int) -> Body:
    """Return what a request cost in tokens."""
    prompt = request.prompt_tokens
    return {"prompt_tokens": prompt, "total_tokens": prompt + made, "completion_tokens": made}


def models(names: tuple[str, ...], root: str, max_model_len: int, created: int) -> Body:
    """Return the answer of /v1/models: one entry for each name."""

    def entry(name: str) -> Body:
        return {
            "id": name, "object": "model", "created": created, "owned_by": "vllm", "root": root, "parent": None,
            "max_model_len": max_model_len, "permission": [],
        }  # fmt: skip

    return {"object": "list", "data": [entry(name) for name in names]}


class Completion:
    """One answer of /v1/completions, whole or in pieces."""

    prefix, whole, piece = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, request: Request) -> None:
        self.request = request
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(8)}", "created": int(time.time()), "model": model}

    def finished(self, text: str, reason: str, made: int) -> Body:
        """Return the whole answer."""
        choice = {"index": 0, **self._said(text), "logprobs": None, "finish_reason": reason, "stop_reason": None}
        return {
            **self._head, "object": self.whole, "choices": [choice], "system_fingerprint": FINGERPRINT,
            "usage": usage(self.request, made),
        }  # fmt: skip

    def opening(self) -> list[Body]:
        """Return the events that come before the first word."""
        return []

    def chunk(self, text: str, reason: str | None) -> Body:
        """Return one event with a piece of text."""
        return self._event([{"index": 0, **self._added(text), "logprobs": None, "finish_reason": reason}])

    def closing(self, made: int) -> Body:
        """Return the event that tells the usage, sent where the client asked for it."""
        return {**self._event([]), "usage": usage(self.request, made), "system_fingerprint": FINGERPRINT}

    def _event(self, choices: list[Body]) -> Body:
        return {**self._head, "object": self.piece, "choices": choices}

    def _said(self, text: str) -> Body:
        return {"text": text}

    def _added(self, text: str) -> Body:
        return {"text": text}


class ChatCompletion(Completion):
    """One answer of /v1/chat/completions."""

    prefix, whole, piece = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> list[Body]:
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return [self._event([choice])]

    def _said(self, text: str) -> Body:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _added(self, text: str) -> Body:
        return {"delta": {"content": text}}


class Message(Completion):
    """One answer of /v1/messages (Anthropic's shape)."""

    def finished(self, text: str, reason: str, made: int) -> Body:
        return {
            "id": f"chatcmpl-{secrets.token_hex(8)}", "type": "message", "role": "assistant",
            "content": [{"type": "text", "text": text}], "model": self._head["model"],
            "stop_reason": "max_tokens" if reason == "length" else "end_turn",
            "usage": {"input_tokens": self.request.prompt_tokens, "output_tokens": made},
        }  # fmt: skip


class Response(Completion):
    """One answer of /v1/responses."""

    def finished(self, text: str, reason: str, made: int) -> Body:
        content: list[Body] = [{"annotations": [], "text": text, "type": "output_text", "logprobs": None}]
        message = {"id": f"msg_{secrets.token_hex(8)}", "type": "message", "role": "assistant",
                   "status": "completed", "content": content}  # fmt: skip
        cut = reason == "length"
        prompt = self.request.prompt_tokens
        return {
            "id": f"resp_{secrets.token_hex(8)}", "object": "response", "created_at": self._head["created"],
            "model": self._head["model"], "output": [message], "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None, "error": None,
            "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "instructions": None, "metadata": None,
            "temperature": 1.0, "top_p": 1.0,
            "usage": {"input_tokens": prompt, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": made,
                      "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": prompt + made},
        }  # fmt: skip


Shape = Callable[[str, Request], Completion]


def embedding(model: str, texts: list[str], vectors: list[list[float]], tokens: int) -> Body:
    """Return the answer of /v1/embeddings."""
    data = [{"index": i, "object": "embedding", "embedding": vector} for i, vector in enumerate(vectors)]
    return {
        "id": f"embd-{secrets.token_hex(8)}", "object": "list", "created": int(time.time()), "model": model,
        "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }  # fmt: skip
