"""A bucket as `fetch.py` sees it: presigned GETs of blobs, with Range, and with faults on demand."""

import contextlib
import os
import socket
import struct
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

Fault = Callable[["_Handler", bytes], None]
"""Answers a request in place of the server; given what it would have sent."""

SIGNATURE = "X-Amz-Signature=0123456789abcdef"


class BlobServer:
    """Serves `blobs` by name. `faults` holds, for each name, what befalls its next requests, first one first."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.requests: Counter[str] = Counter()
        self.queries: defaultdict[str, list[str]] = defaultdict(list)
        self.bytes_sent: Counter[str] = Counter()
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"store": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def url(self, name: str) -> str:
        """Return the presigned URL of a blob."""
        return f"http://127.0.0.1:{self._server.server_port}/bucket/{name}?{SIGNATURE}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that hung up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: BlobServer

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        name = path.rpartition("/")[2]
        with self.store.lock:
            self.store.requests[name] += 1
            fault = self.store.faults[name].pop(0) if self.store.faults.get(name) else None
            self.store.queries[name].append(query)
        if not query.startswith(SIGNATURE):
            self.refuse(403, "AccessDenied")
        elif name not in self.store.blobs:
            self.refuse(404, "NoSuchKey")
        else:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            part = self.store.blobs[name][int(first) : int(last) + 1]
            self.whole = f"bytes {first}-{last}/{len(self.store.blobs[name])}"
            (fault or send)(self, part)

    def refuse(self, status: int, code: str, message: str = "") -> None:
        """Answer as S3 does; its errors may quote the request."""
        said = f"<Code>{code}</Code><Message>{message}</Message><Resource>{self.path}</Resource>"
        body = f"<Error>{said}</Error>".encode() if code else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


def send(handler: _Handler, part: bytes) -> None:
    """Answer as asked."""
    _answer(handler, part, len(part))


def _answer(handler: _Handler, part: bytes, promised: int, status: int = 206) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(promised))
    if status == 206:
        handler.send_header("Content-Range", handler.whole)
    handler.end_headers()
    handler.wfile.write(part)
    with handler.store.lock:
        handler.store.bytes_sent[handler.path.partition("?")[0].rpartition("/")[2]] += len(part)


def cut(handler: _Handler, part: bytes) -> None:
    """Break off in the middle."""
    _answer(handler, part[: len(part) // 2], len(part))
    handler.close_connection = True


def reset(handler: _Handler, part: bytes) -> None:
    """Break off in the middle, as a host does that has lost the connection."""
    _answer(handler, part[: len(part) // 2], len(part))
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(handler.connection.detach())
    handler.close_connection = True


def promise_less(handler: _Handler, part: bytes) -> None:
    """Say that half of it comes, and send it all."""
    _answer(handler, part, len(part) // 2)


def promise_more(handler: _Handler, part: bytes) -> None:
    """Say that twice as much comes."""
    _answer(handler, part, len(part) * 2)
    handler.close_connection = True


def ignore_range(handler: _Handler, part: bytes) -> None:
    """Send everything, as a server does that knows no ranges."""
    name = handler.path.partition("?")[0].rpartition("/")[2]
    blob = handler.store.blobs[name]
    _answer(handler, blob, len(blob), status=200)


def shift(handler: _Handler, part: bytes) -> None:
    """Send another range than was asked for."""
    handler.whole = f"bytes 0-{len(part) - 1}/{handler.whole.rpartition('/')[2]}"
    _answer(handler, part, len(part))


def trickle(handler: _Handler, part: bytes) -> None:
    """Send 1 kB a second."""
    handler.send_response(206)
    handler.send_header("Content-Length", str(len(part)))
    handler.send_header("Content-Range", handler.whole)
    handler.end_headers()
    with contextlib.suppress(OSError):
        for at in range(0, len(part), 100):
            handler.wfile.write(part[at : at + 100])
            time.sleep(0.1)
    handler.close_connection = True


def spoil(handler: _Handler, part: bytes) -> None:
    """Send other bytes than asked for."""
    send(handler, bytes(len(part)))


def refusal(status: int, code: str = "", message: str = "") -> Fault:
    """Return what answers with an error of S3; without a code its body is empty."""
    return lambda handler, part: handler.refuse(status, code, message)


busy = refusal(503, "SlowDown")
expired = refusal(403, "AccessDenied", "Request has expired")
