"""A line to a server: passes bytes on as they come, and counts them."""

import contextlib
import math
import socket
import threading
from collections.abc import Callable
from typing import Self
from urllib.parse import urlsplit

CHUNK_BYTES = 2**18


class Line:
    """Stands before a server on loopback as long as its block lasts; TLS goes through unread.

    Args:
        endpoint: The server's URL.
        holds_after: Lets no more than about so many bytes through to it; the rest waits for ever.

    Attributes:
        endpoint: The URL to use instead of the server's.
        sent: Bytes towards the server so far.
        received: Bytes from it.
    """

    def __init__(self, endpoint: str, *, holds_after: float = math.inf) -> None:
        parts = urlsplit(endpoint)
        self._server = (str(parts.hostname), int(parts.port or 443))
        self._listener = socket.create_server((self._server[0], 0))
        self.endpoint = f"{parts.scheme}://{self._server[0]}:{self._listener.getsockname()[1]}"
        self.sent = self.received = 0
        self.is_holding = threading.Event()
        self._holds_after, self._over = holds_after, threading.Event()
        self._lock = threading.Lock()
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._ends: list[socket.socket] = []
        self._passing: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for passing in self._passing:
            passing.join()
        for end in self._ends:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._server)
            self._ends += (client, server)
            for way in ((client, server, self._count_sent), (server, client, self._count_received)):
                self._passing.append(threading.Thread(target=self._pass, args=way, daemon=True))
                self._passing[-1].start()

    def _pass(self, source: socket.socket, target: socket.socket, count: Callable[[int], None]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                count(len(data))
                target.sendall(data)
        for end in (source, target):  # either end closes both: who was killed says no more
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _count_sent(self, more: int) -> None:
        if self.sent > self._holds_after:
            self.is_holding.set()
            self._over.wait()
        with self._lock:
            self.sent += more

    def _count_received(self, more: int) -> None:
        with self._lock:
            self.received += more
