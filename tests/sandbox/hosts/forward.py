"""The host's published ports: bytes to and from its own address, as a container engine's proxy carries them."""

import asyncio
import contextlib
from typing import Self

CHUNK = 65_536


class Forward:
    """One published port and the connections through it."""

    def __init__(self, to_ip: str, to_port: int) -> None:
        self._to = to_ip, to_port
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0

    @classmethod
    async def open(cls, ip: str, port: int, to_ip: str, to_port: int) -> Self:
        """Publish a container port.

        Args:
            ip: Public address of the host.
            port: Public port, 0 for any free one.
            to_ip: The address that programs on the host bind.
            to_port: Container port.
        """
        forward = cls(to_ip, to_port)
        forward._server = await asyncio.start_server(forward._serve, ip, port)
        forward.port = forward._server.sockets[0].getsockname()[1]
        return forward

    async def close(self) -> None:
        """Stop listening and cut what is open."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._carry(reader, writer)
        finally:
            # Whatever has not been said by now is not said: a reset, also where nobody listens in there.
            writer.transport.abort()
            self._connections.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            near_reader, near_writer = await asyncio.open_connection(*self._to)
        except OSError:
            return
        try:
            with contextlib.suppress(OSError):
                await asyncio.gather(_copy(reader, near_writer), _copy(near_reader, writer))
                writer.close()
                await writer.wait_closed()
        finally:
            near_writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry one direction until it ends, and pass the end on: the other may still have something to say."""
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
