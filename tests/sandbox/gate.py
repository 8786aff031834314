"""A gate on the way to the market: counts the requests of one stack, and holds one of them before or after it."""

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit

HOLD_SECONDS = 60.0


def moment_of(method: str, target: str) -> str:
    """Return what a request to the market is called, whichever instance it is about: `GET instances/N`."""
    parts = target.partition("?")[0].strip("/").split("/")[2:]  # after api/v0
    return f"{method} {'/'.join('N' if part.isdigit() else part for part in parts)}"


class Gate:
    """Stands before a market, with a URL of its own.

    Args:
        market: The market's URL.

    Attributes:
        url: What to give out as VAST_URL.
        moments: What has passed since the last `arm`: `before GET instances/N`, `after GET instances/N`, and so on.
    """

    def __init__(self, market: str) -> None:
        self._market = urlsplit(market).netloc
        self._lock = threading.Lock()
        gate = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                gate._serve(self)

            do_GET = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 - the library's names

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.arm()

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release(lets_through=False)
        self._server.shutdown()
        self._server.server_close()

    def arm(self, moment: str = "", turn: int = 1) -> None:
        """Begin anew, and hold what comes at the *turn*-th moment of this name; an empty name holds nothing."""
        self.moments: list[str] = []
        self._wanted, self._lets_through = (moment, turn), True
        self._reached, self._released = threading.Event(), threading.Event()

    def is_holding(self) -> bool:
        """Say whether the moment has come."""
        return self._reached.is_set()

    def release(self, *, lets_through: bool) -> None:
        """Hold it no longer. A request that is not let through never reaches the market: who made it is dead."""
        self._lets_through = lets_through
        self._released.set()

    def _pass(self, name: str) -> bool:
        with self._lock:
            self.moments.append(name)
            is_wanted = (name, self.moments.count(name)) == self._wanted
        if not is_wanted:
            return True
        self._reached.set()
        self._released.wait(HOLD_SECONDS)
        return self._lets_through

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        line = moment_of(request.command, request.path)
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if not self._pass(f"before {line}"):
            return
        connection = http.client.HTTPConnection(self._market, timeout=HOLD_SECONDS)
        try:
            headers = {name: value for name, value in request.headers.items() if name.lower() != "connection"}
            connection.request(request.command, request.path, body, headers)
            reply = connection.getresponse()
            content = reply.read()
        finally:
            connection.close()
        if not self._pass(f"after {line}"):
            return
        try:
            request.send_response_only(reply.status)
            for name in ("Content-Type", "Date", "Retry-After"):
                if value := reply.headers.get(name):
                    request.send_header(name, value)
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            request.wfile.write(content)
        except OSError:
            """Who asked is gone."""
