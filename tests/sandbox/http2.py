"""A client in HTTP/2 that sends what no decent one would."""

import contextlib
from collections.abc import Iterable

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamReset
from h2.exceptions import ProtocolError

from tests.sandbox.door_world import Door


class Http2:
    """A connection in HTTP/2 that sends what it is told to, right or wrong.

    Args:
        door: To connect to.
    """

    def __init__(self, door: Door) -> None:
        self.tls = door.connect("h2")
        # Nothing is checked or tidied up on its way out.
        unchecked = H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False)
        self.state, self.statuses, self.ended = H2Connection(unchecked), dict[int, int](), False
        self.state.initiate_connection()
        self.tls.sendall(self.state.data_to_send())

    def send(self, method: str, path: str, headers: Iterable[tuple[str, str]] = (), body: bytes = b"") -> int:
        """Send a request; return its number."""
        pseudo = [(":method", method), (":scheme", "https"), (":authority", "a"), (":path", path)]
        return self.send_headers([*pseudo, *headers], body)

    def send_headers(self, headers: Iterable[tuple[str, str]], body: bytes = b"") -> int:
        """Send a request with these headers, pseudo ones included, and no others."""
        number = self.state.get_next_available_stream_id()
        self.state.send_headers(number, list(headers), end_stream=not body)
        if body:
            self.state.send_data(number, body, end_stream=True)
        with contextlib.suppress(OSError):
            self.tls.sendall(self.state.data_to_send())
        return number

    def status_of(self, number: int) -> int | None:
        """Return the status of a request's answer; None if the door ends the stream or the connection instead."""
        while number not in self.statuses and not self.ended:
            try:
                received = self.tls.recv(65536)
                events = self.state.receive_data(received) if received else [ConnectionTerminated()]
            except (OSError, ProtocolError):
                events = [ConnectionTerminated()]
            for event in events:
                if isinstance(event, ResponseReceived) and event.stream_id and event.headers:
                    self.statuses[event.stream_id] = int(dict(event.headers)[b":status"])
                if isinstance(event, DataReceived) and event.flow_controlled_length and event.stream_id:
                    self.state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                if isinstance(event, ConnectionTerminated):
                    self.ended = True
                if isinstance(event, StreamReset) and event.stream_id == number:
                    return None
            with contextlib.suppress(OSError):
                self.tls.sendall(self.state.data_to_send())
        return self.statuses.get(number)
