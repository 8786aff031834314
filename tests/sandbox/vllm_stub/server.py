"""The stub's HTTP side: vLLM's routes on a unix socket, and its way of starting and of going down."""

import asyncio
import hashlib
import json
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress

from aiohttp import web

from tests.sandbox.vllm_stub import intake, replies
from tests.sandbox.vllm_stub.arguments import Arguments
from tests.sandbox.vllm_stub.engine import Engine, EngineClosedError, Request, count_tokens
from tests.sandbox.vllm_stub.metrics import Metrics
from tests.sandbox.vllm_stub.model import Model

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# What the real server's own instrumentation leaves out.
UNCOUNTED = {"/metrics", "/health", "/load", "/ping", "/version"}


class Server:
    """One served model: its routes and what they share."""

    def __init__(self, arguments: Arguments, model: Model) -> None:
        self.names = arguments.served_names
        self.model = model
        self.started = int(time.time())
        self.metrics = Metrics(self.names[0], _cache_info(arguments), log_stats=arguments.log_stats)
        self.engine = Engine(
            self.metrics,
            slots=arguments.max_num_seqs,
            tokens_per_second=float(os.environ.get("STUB_TOKENS_PER_SECOND", "100")),
        )
        self.app = web.Application(middlewares=[self._measure], client_max_size=16 * 2**20)
        self.app.add_routes([*self._always(), *(self._pooling() if arguments.pooling else self._generating())])

    def _always(self) -> list[web.RouteDef]:
        return [
            web.get("/health", _empty),
            web.get("/ping", _empty),
            web.post("/ping", _empty),
            web.get("/version", _json({"version": "0.32.0"})),
            web.get("/load", _json({"server_load": 0})),  # always 0 unless load tracking is on
            web.get("/metrics", self._show_metrics),
            web.get("/v1/models", self._list_models),
            # All below is open on the real server too, key or not: the front door must not let it through.
            web.get("/docs", _page),
            web.get("/redoc", _page),
            web.get("/openapi.json", _json({"openapi": "3.1.0", "info": {"title": "FastAPI", "version": "0.1.0"}})),
            web.post("/tokenize", self._tokenize),
            web.post("/is_scaling_elastic_ep", _json({"is_scaling_elastic_ep": False})),
        ]

    def _generating(self) -> list[web.RouteDef]:
        complete = self._answer(replies.Completion, intake.completion)
        chat = self._answer(replies.ChatCompletion, intake.chat)

        async def invoke(request: web.Request) -> web.StreamResponse:
            body = json.loads(await request.read() or b"{}")
            return await (chat if isinstance(body, dict) and "messages" in body else complete)(request)

        return [
            web.post("/v1/completions", complete),
            web.post("/v1/chat/completions", chat),
            web.post("/v1/messages", self._answer(replies.Message, intake.message)),
            web.post("/v1/messages/count_tokens", self._count_tokens),
            web.post("/v1/responses", self._answer(replies.Response, intake.response)),
            web.post("/invocations", invoke),
        ]

    def _pooling(self) -> list[web.RouteDef]:
        """A pooling model embeds and does not generate; the real server then has no completions either."""
        return [web.post("/v1/embeddings", self._embed)]

    def _answer(self, shape: replies.Shape, read: intake.Reader) -> Handler:
        """Return the handler of one generating route."""

        async def handle(request: web.Request) -> web.StreamResponse:
            body = intake.parse_body(await request.read(), self.names)
            asked = read(body, self.model.max_model_len)
            answer = shape(body.get("model") or self.names[0], asked)
            if body.get("stream"):
                return await self._stream(request, answer, usage=_wants_usage(body))
            words, reason = await self._collect(asked)
            return _reply(answer.finished("".join(words), reason, len(words)))

        return handle

    async def _collect(self, asked: Request) -> tuple[list[str], str]:
        words: list[str] = []
        async with aclosing(self.engine.generate(asked)) as made:
            async for word in made:
                if word is None:
                    return words, "stop"
                words.append(word)
        return words, "length"

    async def _stream(self, request: web.Request, answer: replies.Completion, *, usage: bool) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})

        async def send(event: replies.Body) -> None:
            await response.write(f"data: {json.dumps(event)}\n\n".encode())

        made = 0
        async with aclosing(self.engine.generate(answer.request)) as words:
            async for word in words:
                if not response.prepared:  # the first word: only now is it known that the engine took it
                    await response.prepare(request)
                    for event in answer.opening():
                        await send(event)
                made += word is not None
                reason = "stop" if word is None else "length" if made == answer.request.max_tokens else None
                await send(answer.chunk(word or "", reason))
        if usage:
            await send(answer.closing(made))
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _embed(self, request: web.Request) -> web.Response:
        body = intake.parse_body(await request.read(), self.names)
        texts = intake.texts(body)
        tokens = sum(map(count_tokens, texts))
        self.metrics.add("vllm:prompt_tokens_total", tokens)
        self.metrics.add("vllm:request_success_total", len(texts), "stop")
        model = body.get("model") or self.names[0]
        return _reply(replies.embedding(model, texts, [_vector(text) for text in texts], tokens))

    async def _list_models(self, request: web.Request) -> web.Response:
        return _reply(replies.models(self.names, str(self.model.folder), self.model.max_model_len, self.started))

    async def _show_metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=self.metrics.render(), content_type="text/plain", charset="utf-8")

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = intake.parse_body(await request.read(), self.names)
        count = count_tokens(str(body.get("prompt", "")))
        tokens = list(range(count))
        return _reply({"count": count, "max_model_len": self.model.max_model_len, "tokens": tokens})

    async def _count_tokens(self, request: web.Request) -> web.Response:
        body = intake.parse_body(await request.read(), self.names)
        return _reply({"input_tokens": intake.message(body, self.model.max_model_len).prompt_tokens})

    @web.middleware
    async def _measure(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Turn errors into vLLM's bodies, and count the request as its instrumentation does."""
        started = time.monotonic()
        try:
            response = await handler(request)
        except replies.RequestError as error:
            response = _reply(error.body, error.status)
        except EngineClosedError as error:
            failed = replies.RequestError(str(error), status=500, kind="InternalServerError")
            response = _reply(failed.body, failed.status)
        except web.HTTPException as error:
            response = _reply({"detail": error.reason}, error.status)
        route = request.match_info.route.resource
        handled = route.canonical if route else "none"
        if handled not in UNCOUNTED:
            self._count(request, response, handled, time.monotonic() - started)
        return response

    def _count(self, request: web.Request, response: web.StreamResponse, handler: str, seconds: float) -> None:
        status = f"{response.status // 100}xx"
        self.metrics.add("http_requests_total", handler=handler, method=request.method, status=status)
        self.metrics.observe("http_request_size_bytes", request.content_length or 0, handler=handler)
        self.metrics.observe("http_response_size_bytes", response.content_length or 0, handler=handler)
        self.metrics.observe("http_request_duration_highr_seconds", seconds)
        self.metrics.observe("http_request_duration_seconds", seconds, handler=handler, method=request.method)


async def serve(arguments: Arguments, model: Model, bound: socket.socket, *, ready_at: float) -> None:
    """Answer on the socket from *ready_at* (monotonic) until SIGTERM, then drain as `--shutdown-timeout` says."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = Server(arguments, model)
    # A client that hangs up frees its place in the engine at once, as it does with the real one.
    runner = web.AppRunner(server.app, handler_cancellation=True, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), max(0.0, ready_at - time.monotonic()))
        if not stop.is_set():
            await web.SockSite(runner, bound).start()
            _log("Application startup complete.")
            await stop.wait()
            await _drain(server.engine, arguments.shutdown_timeout)
    finally:
        await runner.cleanup()
        _log("Application shutdown complete.")


async def _drain(engine: Engine, seconds: float) -> None:
    """Refuse new work and let what runs come to its end; with no time given, what runs is cut."""
    engine.close()
    deadline = time.monotonic() + seconds
    while engine.in_flight and time.monotonic() < deadline:
        await asyncio.sleep(0.05)


def _log(line: str) -> None:
    print(f"INFO:     {line}", flush=True)


def _vector(text: str) -> list[float]:
    return [byte / 127.5 - 1 for byte in hashlib.sha256(text.encode()).digest()]


def _wants_usage(body: replies.Body) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))


def _reply(body: replies.Body, status: int = 200) -> web.Response:
    # The real server's Content-Type has no charset.
    return web.Response(body=json.dumps(body).encode(), status=status, content_type="application/json")


def _json(body: replies.Body) -> Handler:
    async def handle(request: web.Request) -> web.Response:
        return _reply(body)

    return handle


async def _empty(request: web.Request) -> web.Response:
    return web.Response()


async def _page(request: web.Request) -> web.Response:
    return web.Response(text="<!DOCTYPE html><title>FastAPI - Swagger UI</title>", content_type="text/html")


def _cache_info(arguments: Arguments) -> dict[str, str]:
    return {
        "block_size": "16",
        "cache_dtype": "auto",
        "enable_prefix_caching": str(arguments.prefix_caching),
        "gpu_memory_utilization": str(arguments.gpu_memory_utilization),
        "num_gpu_blocks": str(2_097_152 // 16),
        "kv_cache_size_tokens": "2097152",
    }
