"""Carry one command to a machine. The only module that knows SSH."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Self

import asyncssh

from bootstrap.steps import COMMAND_TIMEOUT
from dynamic_providers.errors import BootError

RECONNECT = timedelta(seconds=60)
"""A home uplink that drops is back within a minute, or it is a matter for the operator."""
HANDSHAKE_SECONDS = 15
RETRY_SECONDS = 1.0
KEEPALIVE_SECONDS = 10


@dataclass(frozen=True)
class Target:
    """Where to log in.

    Args:
        address: IP address.
        port: TCP port of the SSH server.
        client_key: Our private key, in OpenSSH's or a PEM format.
        host_key: The machine's public key (`ssh-ed25519 AAAA…`) as seen before; None takes the one that comes first.
        username: On the machine.
    """

    address: str
    port: int
    client_key: str = field(repr=False)
    host_key: str | None = None
    username: str = "root"


@dataclass(frozen=True)
class Completed:
    """What a command came to. The status is -1 if a signal ended it."""

    exit_status: int
    stdout: str
    stderr: str


class _HostKeyChanged(Exception):  # noqa: N818 - never leaves this module
    pass


class _Client(asyncssh.SSHClient):
    """Accepts the pinned host key, or any while none is pinned, and remembers it."""

    def __init__(self, pinned: str | None) -> None:
        self.pinned = pinned
        self.seen = ""

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Compare type and key; a comment behind them means nothing."""
        self.seen = " ".join(key.export_public_key().decode().split()[:2])
        return self.pinned is None or self.pinned.split()[:2] == self.seen.split()


class Machine:
    """A machine that we are logged in to. A connection that breaks is made again, to the same host key only.

    Every command given to `run`, and every question to `ask`, must therefore be one that may come twice.
    """

    def __init__(self, target: Target, connection: asyncssh.SSHClientConnection, host_key: str) -> None:
        self.target = target
        self.host_key = host_key
        self._connection = connection
        self._answering: dict[str, asyncssh.SSHClientProcess[bytes]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Log out."""
        self._connection.close()
        with contextlib.suppress(OSError, asyncssh.Error):
            await self._connection.wait_closed()

    async def run(self, command: str, *, stdin: bytes | None = None, timeout: timedelta = COMMAND_TIMEOUT) -> Completed:
        """Run a shell command and wait for it.

        Args:
            command: For the machine's login shell; never a secret.
            stdin: What it reads; secrets travel here.
            timeout: Of one try.

        Raises:
            BootError: The connection broke and could not be made again, or the command took longer than *timeout*.
        """
        return await self._twice(lambda: self._run(command, stdin, timeout))

    async def ask(self, program: str, question: str, *, timeout: timedelta = COMMAND_TIMEOUT) -> Completed:
        """Put a line to a program that answers each with a line: started once, it costs no more start for the next.

        Args:
            program: A command as for `run`.
            question: Without a line break; secrets travel here.
            timeout: Of one try.

        Returns:
            The answer, with status 0; or what the program ended with, and printed to stderr, instead of one.

        Raises:
            BootError: As `run`.
        """
        return await self._twice(lambda: self._ask(program, question, timeout))

    async def _twice(self, work: Callable[[], Awaitable[Completed]]) -> Completed:
        try:
            return await work()
        except (OSError, asyncssh.Error):  # TimeoutError is an OSError too
            await self._reconnect()
        try:
            return await work()
        except (OSError, asyncssh.Error) as error:
            raise BootError("ssh", f"the connection to {_name(self.target)} broke twice: {_why(error)}") from error

    async def _run(self, command: str, stdin: bytes | None, timeout: timedelta) -> Completed:
        async with asyncio.timeout(timeout.total_seconds()):
            done = await self._connection.run(command, input=stdin or b"", encoding=None)
        return Completed(_status(done), _text(done.stdout), _text(done.stderr))

    async def _ask(self, program: str, question: str, timeout: timedelta) -> Completed:
        async with asyncio.timeout(timeout.total_seconds()):
            if program not in self._answering:
                self._answering[program] = await self._connection.create_process(program, encoding=None)
            process = self._answering[program]
            process.stdin.write(question.encode() + b"\n")
            if answer := await process.stdout.readline():
                return Completed(0, _text(answer), "")
            del self._answering[program]
            done = await process.wait()
        return Completed(_status(done), "", _text(done.stderr))

    async def _reconnect(self) -> None:
        self._connection.abort()
        self._answering.clear()
        pinned = Target(
            self.target.address, self.target.port, self.target.client_key, self.host_key, self.target.username
        )
        again = await connect(pinned, deadline=RECONNECT)
        self._connection = again._connection


async def connect(target: Target, *, deadline: timedelta) -> Machine:
    """Log in, trying again while the machine comes up and until its owner has put our key there.

    Raises:
        BootError: Not within the deadline, or the machine shows another host key than the pinned one.
    """
    until = time.monotonic() + deadline.total_seconds()
    while True:
        try:
            return await _login(target, min(HANDSHAKE_SECONDS, max(until - time.monotonic(), 1)))
        except _HostKeyChanged as error:
            raise BootError(
                "ssh",
                f"{_name(target)} shows another host key than before: this is not the machine that was rented,"
                " or somebody stands in between",
            ) from error
        except (OSError, asyncssh.Error) as error:
            if time.monotonic() + RETRY_SECONDS > until:
                seconds = deadline.total_seconds()
                raise BootError("ssh", f"no login at {_name(target)} within {seconds:.0f} s: {_why(error)}") from error
        await asyncio.sleep(RETRY_SECONDS)


async def _login(target: Target, seconds: float) -> Machine:
    client = _Client(target.host_key)
    connect_to: Callable[..., Awaitable[asyncssh.SSHClientConnection]] = asyncssh.connect
    try:
        async with asyncio.timeout(seconds):
            connection = await connect_to(
                target.address,
                target.port,
                username=target.username,
                client_keys=[asyncssh.import_private_key(target.client_key)],
                client_factory=lambda: client,
                known_hosts=([], [], []),  # none: `_Client` is asked
                # Nothing of the operator's own set-up: no agent, no ~/.ssh/config, no other way in.
                config=None,
                agent_path=None,
                preferred_auth="publickey",
                keepalive_interval=KEEPALIVE_SECONDS,
                keepalive_count_max=3,
            )
    except asyncssh.HostKeyNotVerifiable as error:
        raise _HostKeyChanged from error
    return Machine(target, connection, client.seen)


def _status(done: asyncssh.SSHCompletedProcess) -> int:
    if done.exit_status is None:  # what ends by a signal has one too, -1
        raise ConnectionResetError("it was closed before the command had ended")
    return done.exit_status


def _name(target: Target) -> str:
    return f"{target.address}:{target.port}"


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
