"""A bucket as `fetch.py` sees it: presigned GETs of blobs, with Range, and with faults on demand."""

import threading
from collections import Counter
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
        self.bytes_sent: Counter[str] = Counter()
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"store": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
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


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: BlobServer

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        name = path.rpartition("/")[2]
        with self.store.lock:
            self.store.requests[name] += 1
            fault = self.store.faults[name].pop(0) if self.store.faults.get(name) else None
        if query != SIGNATURE:
            self.refuse(403, "AccessDenied")
        elif name not in self.store.blobs:
            self.refuse(404, "NoSuchKey")
        else:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            part = self.store.blobs[name][int(first) : int(last) + 1]
            self.whole = f"bytes {first}-{last}/{len(self.store.blobs[name])}"
            (fault or send)(self, part)

    def refuse(self, status: int, code: str) -> None:
        """Answer as S3 does; its errors may quote the request."""
        body = f"<Error><Code>{code}</Code><Resource>{self.path}</Resource></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


def send(handler: _Handler, part: bytes) -> None:
    """Answer as asked."""
    name = handler.path.partition("?")[0].rpartition("/")[2]
    handler.send_response(206)
    handler.send_header("Content-Length", str(len(part)))
    handler.send_header("Content-Range", handler.whole)
    handler.end_headers()
    handler.wfile.write(part)
    with handler.store.lock:
        handler.store.bytes_sent[name] += len(part)


def cut(handler: _Handler, part: bytes) -> None:
    """Break off in the middle."""
    handler.send_response(206)
    handler.send_header("Content-Length", str(len(part)))
    handler.send_header("Content-Range", handler.whole)
    handler.end_headers()
    handler.wfile.write(part[: len(part) // 2])
    handler.close_connection = True


def spoil(handler: _Handler, part: bytes) -> None:
    """Send other bytes than asked for."""
    send(handler, bytes(len(part)))


def busy(handler: _Handler, part: bytes) -> None:
    """Answer 503, as an overloaded store does."""
    handler.refuse(503, "SlowDown")


def expired(handler: _Handler, part: bytes) -> None:
    """Answer 403, as to a URL past its time."""
    handler.refuse(403, "AccessDenied")
