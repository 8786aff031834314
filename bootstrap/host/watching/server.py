"""The agent's HTTP on its unix socket: the page of metrics, and the door's control.

Who gets here has been let through by the front door. A client that hangs keeps one thread for a while and nothing
else. Runs on the machine: standard library only, Python 3.11.
"""

from __future__ import annotations

import contextlib
import json
import os
import socketserver
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Protocol

from bootstrap.host.watching.drain import parse_drain

SOCKET = "agent.sock"
CLIENT_SECONDS = 10.0
BODY_BYTES = 1024
PAGE_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Control(Protocol):
    """Whom the server asks: the agent, or what stands for it in a test."""

    def describe(self) -> dict[str, Any]:
        """Return the state."""

    def close_door(self, seconds: int) -> None:
        """Drain for so long."""

    def open_door(self) -> None:
        """End the drain."""


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers each client in a thread of its own."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, control: Control, page: Callable[[], bytes]) -> None:
        self.control, self.page = control, page
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET)  # a killed agent's
        super().__init__(SOCKET, Handler)
        Path(SOCKET).chmod(0o600)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that went away; anything else is a fault that belongs in the log."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    timeout = CLIENT_SECONDS
    server_version, sys_version = "agent", ""

    def do_GET(self) -> None:
        """Answer the page or the state."""
        if self.path == "/metrics/host":
            self._send(200, self.server.page(), PAGE_TYPE)
        elif self.path == "/control/state":
            self._tell_state()
        else:
            self._refuse(404, "not_found", "There is nothing here.")

    def do_PUT(self) -> None:
        """Drain."""
        if self.path != "/control/drain":
            self._refuse(404, "not_found", "There is nothing here.")
            return
        try:
            seconds = parse_drain(self._read_body())
        except ValueError as error:
            self._refuse(400, "invalid_drain", str(error))
            return
        self.server.control.close_door(seconds)
        self._tell_state()

    def do_DELETE(self) -> None:
        """Open the door."""
        if self.path != "/control/drain":
            self._refuse(404, "not_found", "There is nothing here.")
            return
        self.server.control.open_door()
        self._tell_state()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the front door keeps the access log."""

    def _read_body(self) -> object:
        length = self.headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdecimal() and int(length) <= BODY_BYTES):
            raise ValueError("the body is too long")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise ValueError("the body is no JSON") from None

    def _tell_state(self) -> None:
        self._send(200, json.dumps(self.server.control.describe()).encode(), "application/json")

    def _refuse(self, status: int, code: str, message: str) -> None:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        self._send(status, json.dumps({"error": error}).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def start_server(control: Control, page: Callable[[], bytes]) -> Server:
    """Listen in the background.

    Raises:
        OSError: The socket cannot be made, as on a full disk.
    """
    server = Server(control, page)
    threading.Thread(target=server.serve_forever, name="server", daemon=True).start()
    return server
