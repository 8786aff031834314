"""A connection to the store: made once, asked for one range after the other, never waited for."""

import os
import socket
import ssl
import time
import urllib.parse
from dataclasses import replace
from functools import cache
from typing import NoReturn

from bootstrap.host.fetching.answers import Answer, Fault, Range, find_fault

TIMEOUT_SECONDS = 20.0
PIECE_BYTES = 2**16
"""Written at once. It stays in the processor's cache; of four times as much, ext4's large pages cost twice the time."""
TAIL_BYTES = 2**17
"""Of a range, as long as so much of it is to come, one is only woken for a whole piece: waking costs more than reading.
Some of a record may be in OpenSSL's hands and no more in the kernel's."""
HEAD_BYTES = 2**16
SAID_BYTES = 4096


class Failed(Exception):  # noqa: N818 - says what it carries
    """The bytes do not come, or cannot be kept."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.kind)
        self.fault = fault


class Line:
    """One connection.

    Attributes:
        wanted: What it is asked for at present.
        moved: How many bytes of that are on the disk.
        heard: When something came last.
        error: Why it could not be made.
    """

    def __init__(self, url: str) -> None:
        self.place = place_of(url)
        self.wanted: Range | None = None
        self.moved = 0
        self.heard = time.monotonic()
        self.error: OSError | None = None
        self._socket: socket.socket | None = None
        self._buffer = memoryview(bytearray(HEAD_BYTES + PIECE_BYTES))
        self._filled = 0
        self._answer: Answer | None = None
        self._is_body = self._wakes_late = self._is_closed = False
        self._fd = -1

    @property
    def come(self) -> int:
        """How many bytes have come of what it is asked for."""
        return self.moved + self._filled * self._is_body

    # --- making it

    def connect(self) -> None:
        """Connect, in a thread of its own; what goes wrong is left in `error`."""
        scheme, host, port = self.place
        try:
            self._socket = socket.create_connection((host, port), TIMEOUT_SECONDS)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if scheme == "https":
                self._socket = tls_context().wrap_socket(self._socket, server_hostname=host)
            self._socket.setblocking(False)
        except OSError as error:
            self.error = error
        if self._is_closed:  # meanwhile
            self.close()

    def fileno(self) -> int:
        """Return what to select on; -1 if there is nothing."""
        return self._socket.fileno() if self._socket else -1

    def close(self) -> None:
        """Let go of the connection."""
        self._is_closed = True
        if self._socket:
            self._socket.close()
            self._socket = None

    # --- asking

    def ask(self, wanted: Range) -> None:
        """Ask for a range.

        Raises:
            OSError: Of the network.
            Failed: There is no file to write to.
        """
        self.wanted, self.moved, self.heard = wanted, 0, time.monotonic()
        self._answer, self._is_body, self._filled = None, False, 0
        try:
            self._fd = os.open(wanted.path, os.O_WRONLY)
        except OSError as error:  # told apart here from those of the network
            raise Failed(disk_fault(error)) from None
        if self.error or self._socket is None:
            raise self.error or ConnectionAbortedError
        url = urllib.parse.urlsplit(wanted.url)
        request = (
            f"GET {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\n"
            f"Range: bytes={wanted.at}-{wanted.at + wanted.length - 1}\r\nAccept-Encoding: identity\r\n\r\n"
        ).encode("ascii", "replace")
        if self._socket.send(request) != len(request):  # it is far smaller than what a socket holds
            raise BrokenPipeError

    def finish(self) -> bool:
        """Write down what has come of the range, whole or not; return whether the connection can be asked again.

        Raises:
            Failed: The disk does not take it.
        """
        wanted, self.wanted = self.wanted, None
        try:
            if wanted and self._is_body:
                self._keep(wanted, min(self._filled, wanted.length - self.moved))
            return bool(wanted and self._answer and self._answer.length == wanted.length == self.moved)
        finally:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    # --- what comes

    def receive(self) -> bool:
        """Take what has come; return whether the range is complete.

        Raises:
            OSError: Of the network.
            Failed: The answer is another, or the disk does not take it.
        """
        self.heard = time.monotonic()
        try:
            while not self._is_complete():
                self._read()
                self._take()
            return True
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except ConnectionResetError:
            if self.wanted and self._answer and not self._is_body:  # it has nothing more to say
                self._refuse(self.wanted, self._answer)
            raise

    def _read(self) -> None:
        """Read into the buffer until it is worth looking at, or nothing is there.

        Raises:
            OSError: Nothing is there for now (BlockingIOError, SSLWantReadError), or will ever be.
        """
        if self._socket is None:
            raise ConnectionResetError
        receive, buffer, filled = self._socket.recv_into, self._buffer, self._filled
        enough = filled + 1
        if self.wanted and self._is_body:
            enough = min(PIECE_BYTES, self.wanted.length - self.moved)
        try:
            while filled < enough:  # once for each record of TLS, 16 kB: nothing else belongs here
                filled += receive(buffer[filled:]) or _ended()
        finally:
            self._filled = filled

    def _take(self) -> None:
        """Do with the buffer what can be done."""
        wanted = self.wanted
        if not wanted:
            raise ConnectionAbortedError("something came that nobody asked for")
        if not self._is_body:
            self._take_head(wanted)
        left = wanted.length - self.moved
        if self._is_body and self._filled >= min(left, PIECE_BYTES):
            self._keep(wanted, min(left, self._filled))
            if self._wakes_late and wanted.length - self.moved < TAIL_BYTES:
                self._wake_at(1)

    def _wake_at(self, count: int) -> None:
        """Ask the kernel to call for us only once so many bytes are there."""
        if self._socket:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
        self._wakes_late = count > 1

    def _is_complete(self) -> bool:
        return self.wanted is not None and self._is_body and self.moved == self.wanted.length

    def _take_head(self, wanted: Range) -> None:
        """Read the head of the answer if all of it is there, and of a refusal what it says."""
        text = bytes(self._buffer[: self._filled])
        if not self._answer:
            end = text.find(b"\r\n\r\n") + 4
            if end < 4:
                if self._filled >= HEAD_BYTES:
                    raise ConnectionAbortedError("what comes is no HTTP")
                return
            self._answer, text = read_head(text[:end]), text[end:]
            self._filled = len(text)
            self._buffer[: self._filled] = text
        answer = self._answer
        if answer.status in (200, 206):
            if fault := find_fault(answer, wanted):
                raise Failed(fault)
            self._is_body = True
            self._wake_at(PIECE_BYTES if wanted.length > TAIL_BYTES else 1)
        elif b"</Error>" in text or len(text) >= min(
            SAID_BYTES, SAID_BYTES if answer.length is None else answer.length
        ):
            self._refuse(wanted, answer)

    def _refuse(self, wanted: Range, answer: Answer) -> NoReturn:
        said = bytes(self._buffer[: min(self._filled, SAID_BYTES)]).decode(errors="replace")
        raise Failed(find_fault(replace(answer, said=said), wanted) or Fault("network", "an empty refusal"))

    def _keep(self, wanted: Range, count: int) -> None:
        """Write the beginning of the buffer where it belongs."""
        chunk, at = self._buffer[:count], wanted.at + self.moved
        try:
            while chunk:
                written = os.pwrite(self._fd, chunk, at)
                chunk, at = chunk[written:], at + written
        except OSError as error:
            raise Failed(disk_fault(error)) from None
        self.moved += count
        rest = self._filled - count
        if rest:
            self._buffer[:rest] = bytes(self._buffer[count : self._filled])
        self._filled = rest


def _ended() -> NoReturn:
    raise ConnectionResetError("closed by the other end")


def read_head(text: bytes) -> Answer:
    """Return the head of an answer.

    Raises:
        ConnectionAbortedError: It is none.
    """
    first, *lines = text.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdecimal():
        raise ConnectionAbortedError("what comes is no HTTP")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = fields.get("content-length", "")
    if int(words[1]) in (200, 206) and "transfer-encoding" in fields:
        raise ConnectionAbortedError("what comes is in chunks")
    return Answer(
        int(words[1]),
        int(length) if length.isdecimal() else None,
        fields.get("content-range", ""),
        fields.get("date", ""),
        fields.get("retry-after", ""),
    )


def place_of(url: str) -> tuple[str, str, int]:
    """Return what a connection is made to: scheme, host and port."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def disk_fault(error: OSError) -> Fault:
    """Return the fault that an error of the disk is."""
    return Fault("disk", f"the machine's disk: {os.strerror(error.errno or 0)}")


def network_fault(error: OSError) -> Fault:
    """Return the fault that an error of the network is."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Fault("untrusted", f"the store's certificate is not trusted on the machine: {error.verify_message}")
    why = error.strerror or str(error) or ("no answer" if isinstance(error, TimeoutError) else type(error).__name__)
    return Fault("network", f"the connection to the store fails: {why}")


@cache
def tls_context() -> ssl.SSLContext:
    """Return a context that trusts what this machine trusts.

    `SSL_CERT_FILE` is OpenSSL's own variable, `AWS_CA_BUNDLE` that of S3's clients. An image without system
    certificates may still carry certifi: vLLM needs it.
    """
    context = ssl.create_default_context()
    if bundle := os.environ.get("AWS_CA_BUNDLE"):
        context.load_verify_locations(bundle)
    if not context.cert_store_stats()["x509_ca"] and not ssl.get_default_verify_paths().capath:
        try:
            import certifi
        except ImportError:
            return context
        context.load_verify_locations(certifi.where())
    return context
