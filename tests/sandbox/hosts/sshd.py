"""The SSH server of a rented host: commands, SFTP and SCP as root, with the keys that the market attached."""

import asyncio
import contextlib
import os
import posixpath
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import asyncssh

from tests.sandbox.vast.hosts import SOUND, SshTrouble

CHUNK = 65_536
DROP_SECONDS = 0.05
"""From the start of a command to the drop: it has begun, and its result is not known."""
ACCEPTED_ENV = ("LANG", "LC_")
"""What a client may set, by prefix; the same as Debian's sshd_config."""


@dataclass(frozen=True)
class Account:
    """Who may log in, and what he finds.

    Attributes:
        host_key: Proves which host this is.
        authorized: Asked at each login for the public keys that may log in.
        env: Environment of every command.
        home: Where commands start, and what relative SFTP paths are relative to.
        folder: SFTP sees nothing above it.
    """

    host_key: asyncssh.SSHKey
    authorized: Callable[[], Sequence[str]]
    env: Mapping[str, str]
    home: Path
    folder: Path


class SshServer:
    """The server and the connections to it."""

    def __init__(self, account: Account, trouble: SshTrouble = SOUND) -> None:
        # The numbers of the trouble count down as commands and logins come.
        self._account, self._trouble = account, trouble
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._acceptor: asyncssh.SSHAcceptor | None = None
        self._is_closed = False
        self.port = 0

    @classmethod
    async def open(cls, ip: str, port: int, account: Account, trouble: SshTrouble = SOUND) -> Self:
        """Listen on the host's public address; port 0 takes any free one."""
        server = cls(account, trouble)
        server._acceptor = await asyncssh.create_server(
            lambda: _Login(account, server._connections, server._note_login),
            ip,
            port,
            server_host_keys=[account.host_key],
            process_factory=server._run,
            sftp_factory=lambda channel: _Sftp(channel, account),
            allow_scp=True,
            encoding=None,
            line_editor=False,
        )
        server.port = server._acceptor.get_port()
        server._spoil_key()
        return server

    def treat(self, trouble: SshTrouble) -> None:
        """Break it in this way from now on, or repair it; a host key that has changed stays changed."""
        self._trouble = trouble
        self._spoil_key()

    async def close(self) -> None:
        """Stop listening and cut what is open."""
        self._is_closed = True
        if self._acceptor is not None:
            self._acceptor.close()
        for connection in list(self._connections):
            connection.abort()

    async def _run(self, process: "asyncssh.SSHServerProcess[bytes]") -> None:
        # A command that was on its way when the host went off does not start any more.
        if self._is_closed:
            return
        if self._trouble.drops_after is None:
            await _run_command(process, self._account)
            return
        left = self._trouble.drops_after
        self._trouble = replace(self._trouble, drops_after=left - 1 if left else None)
        if left:
            await _run_command(process, self._account)
        else:
            await self._drop(process)

    async def _drop(self, process: "asyncssh.SSHServerProcess[bytes]") -> None:
        """Begin a command and cut the connection; what has begun runs on, as it does behind a real sshd."""
        command = asyncio.create_task(_run_command(process, self._account))
        await asyncio.sleep(DROP_SECONDS)
        connection = process.get_extra_info("connection")
        connection.abort()
        await command

    def _note_login(self) -> None:
        with (self._account.folder / "sshd.log").open("a") as log:
            log.write("sshd: Accepted publickey for root\n")
        if self._trouble.other_key_after:
            self._trouble = replace(self._trouble, other_key_after=self._trouble.other_key_after - 1)
        self._spoil_key()

    def _spoil_key(self) -> None:
        """Show another host key from the next connection on, once it is time."""
        if self._trouble.other_key_after == 0 and self._acceptor is not None:
            self._acceptor.update(server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")])
            self._trouble = replace(self._trouble, other_key_after=None)


class _Login(asyncssh.SSHServer):
    """Lets root in, by the keys that are attached at that moment."""

    def __init__(
        self, account: Account, connections: set[asyncssh.SSHServerConnection], note: Callable[[], None]
    ) -> None:
        self._account, self._connections, self._note = account, connections, note

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self._connection)

    def auth_completed(self) -> None:
        self._note()

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        offered = key.export_public_key("openssh").split()[:2]
        return username == "root" and any(text.encode().split()[:2] == offered for text in self._account.authorized())


class _Sftp(asyncssh.SFTPServer):
    """Files under the real paths that commands see, but none outside the host's folder."""

    def __init__(self, channel: "asyncssh.SSHServerChannel[bytes]", account: Account) -> None:
        super().__init__(channel)
        self._home, self._folder = os.fsencode(account.home), os.fsencode(account.folder)

    def exit(self) -> None:
        # OpenSSH's scp takes a session that ends without a status for a failure.
        if self.channel.get_subsystem() == "sftp":
            self.channel.exit(0)

    def map_path(self, path: bytes) -> bytes:
        if path == b"~" or path.startswith(b"~/"):
            path = b"." + path[1:]
        mapped = posixpath.normpath(posixpath.join(self._home, path))
        if mapped != self._folder and not mapped.startswith(self._folder + b"/"):
            raise asyncssh.SFTPPermissionDenied(f"outside the host's folder: {os.fsdecode(path)}")
        return mapped


async def _run_command(process: "asyncssh.SSHServerProcess[bytes]", account: Account) -> None:
    """Run one command as sshd does: by the login shell, in a session of its own.

    When the client goes away the command lives on: it meets the end of its input, and no signal.
    """
    asked = {name: value for name, value in process.env.items() if str(name).startswith(ACCEPTED_ENV)}
    shell = ["bash", "-c", process.command] if process.command else ["bash", "-l"]
    child = await asyncio.create_subprocess_exec(
        *shell,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**account.env, **asked},
        cwd=account.home,
        start_new_session=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    feeding = asyncio.create_task(_feed(process, child, child.stdin))
    try:
        # Both streams to their end and then the exit status: a daemon that keeps them open keeps the session open.
        await asyncio.gather(_drain(child.stdout, process.stdout), _drain(child.stderr, process.stderr))
        _report_exit(process, await child.wait())
    finally:
        feeding.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await feeding


async def _feed(
    process: "asyncssh.SSHServerProcess[bytes]", child: asyncio.subprocess.Process, stdin: asyncio.StreamWriter
) -> None:
    """Carry the client's input and signals to the command."""
    while True:
        try:
            data = await process.stdin.read(CHUNK)
            if not data:
                break
            stdin.write(data)
            await stdin.drain()
        except asyncssh.SignalReceived as received:
            with contextlib.suppress(ProcessLookupError, AttributeError):
                os.killpg(child.pid, getattr(signal, f"SIG{received.signal}"))
        except asyncssh.TerminalSizeChanged:
            continue
        except (OSError, asyncssh.Error):
            break
    with contextlib.suppress(OSError):
        stdin.close()


async def _drain(source: asyncio.StreamReader, sink: "asyncssh.SSHWriter[bytes]") -> None:
    """Carry the command's output to the client; once that is gone, the rest is lost."""
    while data := await source.read(CHUNK):
        with contextlib.suppress(OSError, asyncssh.Error):
            sink.write(data)
            await sink.drain()


def _report_exit(process: "asyncssh.SSHServerProcess[bytes]", status: int) -> None:
    with contextlib.suppress(OSError, asyncssh.Error):
        if status < 0:
            process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
        else:
            process.exit(status)
