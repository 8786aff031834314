"""A line to a server that is as slow as the world is: every request comes late, and every connection has its limit."""

import contextlib
import os
import socket
import threading
import time
from types import TracebackType
from typing import Self

PIECE_BYTES = 2**18


class Throttle:
    """Stands before a TCP server. Bytes go from socket to socket inside the kernel: it must not be what is measured.

    Args:
        server: Its address and port.
        latency_seconds: Of a round trip.
        bytes_per_second: Of what comes back over one connection.

    Attributes:
        port: Where it listens, on the same address.
    """

    def __init__(self, server: tuple[str, int], latency_seconds: float, bytes_per_second: float) -> None:
        self._server, self._latency, self._rate = server, latency_seconds, bytes_per_second
        self._listener = socket.create_server((server[0], 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._server) as server:
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            time.sleep(self._latency)  # of the handshake
            asking = threading.Thread(target=self._pass_late, args=[client, server], daemon=True)
            asking.start()
            self._pass_slowly(server, client)
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
            asking.join()

    def _pass_late(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while asked := client.recv(PIECE_BYTES):
                time.sleep(self._latency)
                server.sendall(asked)
            server.shutdown(socket.SHUT_RDWR)

    def _pass_slowly(self, server: socket.socket, client: socket.socket) -> None:
        reading, writing = os.pipe()
        try:
            free = time.monotonic()
            while count := os.splice(server.fileno(), writing, PIECE_BYTES):
                while count:
                    count -= (passed := os.splice(reading, client.fileno(), count))
                    free = max(free, time.monotonic() - 0.1) + passed / self._rate
                time.sleep(max(0.0, free - time.monotonic()))
        finally:
            os.close(reading)
            os.close(writing)


def measure_throttle(seconds: float = 1.0, connections: int = 16) -> float:
    """Return the bytes a second that pass through a line without limits: what any result must stay well below."""
    stop = time.monotonic() + seconds
    source = socket.create_server(("127.0.0.1", 0), backlog=connections)
    piece, got = bytes(2**20), [0] * connections

    def send() -> None:
        with source.accept()[0] as end, contextlib.suppress(OSError):
            while time.monotonic() < stop:
                end.sendall(piece)

    def take(index: int, port: int) -> None:
        room = bytearray(2**20)
        with socket.create_connection(("127.0.0.1", port)) as end:
            while count := end.recv_into(room):
                got[index] += count

    with source, Throttle(source.getsockname(), 0, float("inf")) as line:
        threads = [threading.Thread(target=send, daemon=True) for _ in range(connections)]
        threads += [threading.Thread(target=take, args=[n, line.port], daemon=True) for n in range(connections)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(got) / (time.monotonic() - began)
