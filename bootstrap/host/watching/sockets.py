"""HTTP, and the supervisor's XML-RPC, over unix sockets that are named relative to the working directory.

Runs on the machine: standard library only.
"""

import http.client
import socket
import xmlrpc.client


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket.

    Args:
        path: Of the socket.
        timeout: Seconds for each wait.
    """

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        """Connect to the socket instead of a port."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class _Transport(xmlrpc.client.Transport):
    def __init__(self, timeout: float) -> None:
        super().__init__()
        self._timeout = timeout

    def make_connection(self, host: object) -> http.client.HTTPConnection:
        """Ignore the host: there is one supervisor."""
        return UnixConnection("supervisor.sock", self._timeout)


def open_supervisor(timeout: float) -> xmlrpc.client.ServerProxy:
    """Return the supervisor's interface; *timeout* in seconds for each wait."""
    return xmlrpc.client.ServerProxy("http://localhost", transport=_Transport(timeout))
