"""A worker of a download: carries ranges from the store to the disk, many at once in one thread; decides nothing.

It is told `("fetch", Range)` and `("drop", id)`; it tells `("moved", {id: bytes})` now and then and
`("ended", id, bytes, fault)` once for each range. It ends when the other end hangs up, however that came about.
"""

import contextlib
import os
import queue
import selectors
import signal
import socket
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import NoReturn

from bootstrap.host.fetching.answers import Fault, Range
from bootstrap.host.fetching.line import TIMEOUT_SECONDS, Failed, Line, network_fault, place_of

PROCESSES = 4
PROCESS_BYTES = 256 * 2**20
"""Less than this is fetched sooner than another Python starts."""
TELL_SECONDS = 0.1


@dataclass(eq=False)
class Helper:
    """A worker as the job sees it.

    Attributes:
        pipe: To it.
        pid: Of its process; None if it runs in a thread of this one.
        flights: How many ranges it carries.
    """

    pipe: Connection
    pid: int | None = None
    flights: int = 0

    def end(self) -> None:
        """Hang up. What it still carries is of no more use."""
        self.pipe.close()
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def start_helpers(size: int) -> list[Helper]:
    """Start what fetches *size* bytes.

    A process for each core where that is much: to decrypt and to write takes a core for each 500 MB/s or so. Forked,
    and so there at once, before this process has any other thread. Where that is little, a thread.
    """
    count = min(PROCESSES, len(os.sched_getaffinity(0)), size // PROCESS_BYTES)
    helpers: list[Helper] = []
    for _ in range(count if count > 1 else 0):
        ours, theirs = Pipe()
        pid = os.fork()
        if not pid:
            for pipe in (ours, *(helper.pipe for helper in helpers)):
                pipe.close()  # or it would never hear that this process has ended
            _be_helper(theirs)
        theirs.close()
        helpers.append(Helper(ours, pid))
    return helpers or [_start_thread()]


def _be_helper(pipe: Connection) -> NoReturn:
    try:
        Worker(pipe).run()
    except BaseException:  # noqa: BLE001 - said here, or nobody would ever know
        traceback.print_exc()
    finally:
        os._exit(0)


def _start_thread() -> Helper:
    ours, theirs = Pipe()
    threading.Thread(target=Worker(theirs).run, daemon=True).start()
    return Helper(ours)


class Worker:
    """The connections of one process."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._selector = selectors.DefaultSelector()
        self._busy: dict[int, Line] = {}
        self._idle: list[Line] = []
        self._made: queue.SimpleQueue[tuple[Line, Range]] = queue.SimpleQueue()
        self._bell, self._button = socket.socketpair()
        self._told = 0.0

    def run(self) -> None:
        """Do as told until the other end hangs up."""
        self._selector.register(self._pipe, selectors.EVENT_READ, self._take_orders)
        self._selector.register(self._bell, selectors.EVENT_READ, self._take_made)
        try:
            with contextlib.suppress(EOFError, OSError):  # of the pipe
                while True:
                    for key, _ in self._selector.select(TELL_SECONDS):
                        if isinstance(key.data, Line):
                            self._receive(key.data)
                        else:
                            key.data()
                    self._look(time.monotonic())
        finally:
            for line in (*self._busy.values(), *self._idle):
                self._close(line)
            for end in (self._bell, self._button, self._selector, self._pipe):
                end.close()

    def _take_orders(self) -> None:
        while self._pipe.poll():
            order, value = self._pipe.recv()
            if order == "fetch":
                self._fetch(value)
            elif value in self._busy:
                self._end(self._busy[value], Fault("network", "dropped"))

    def _fetch(self, wanted: Range) -> None:
        place = place_of(wanted.url)
        line = next((line for line in self._idle if line.place == place), None)
        if line:
            self._idle.remove(line)
            self._ask(line, wanted)
            return
        line = self._busy[wanted.id] = Line(wanted.url)
        line.wanted = wanted

        def make() -> None:
            line.connect()
            self._made.put((line, wanted))
            with contextlib.suppress(OSError):  # all is over
                self._button.send(b"!")

        threading.Thread(target=make, daemon=True).start()

    def _take_made(self) -> None:
        self._bell.recv(4096)
        while not self._made.empty():
            line, wanted = self._made.get()
            if self._busy.get(wanted.id) is not line:
                line.close()  # nobody waits for it any more
                continue
            if line.fileno() >= 0 and not line.error:
                self._selector.register(line, selectors.EVENT_READ, line)
            self._ask(line, wanted)

    def _ask(self, line: Line, wanted: Range) -> None:
        self._busy[wanted.id] = line
        try:
            line.ask(wanted)
        except Failed as error:
            self._end(line, error.fault)
        except OSError as error:
            self._end(line, network_fault(error))

    def _receive(self, line: Line) -> None:
        fault = None
        try:
            if not line.receive():
                return
        except Failed as error:
            fault = error.fault
        except OSError as error:
            fault = network_fault(error)
        if line.wanted:
            self._end(line, fault)
        elif line in self._idle:  # else it was closed since the kernel called for it
            self._idle.remove(line)
            self._close(line)

    def _end(self, line: Line, fault: Fault | None) -> None:
        """Tell what became of a range, and keep the connection for another if it can be."""
        if not line.wanted:
            return
        id_ = line.wanted.id
        del self._busy[id_]
        can_be_asked = False
        try:
            can_be_asked = line.finish() and not fault
        except Failed as error:
            fault = error.fault
        if can_be_asked:
            self._idle.append(line)
        else:
            self._close(line)
        self._pipe.send(("ended", id_, line.moved, fault))

    def _close(self, line: Line) -> None:
        with contextlib.suppress(KeyError, ValueError):  # it never came to be
            self._selector.unregister(line)
        line.close()

    def _look(self, now: float) -> None:
        """Tell how far all is, and give up what says nothing."""
        if now - self._told < TELL_SECONDS:
            return
        self._told = now
        if self._busy:
            self._pipe.send(("moved", {id_: line.come for id_, line in self._busy.items()}))
        for line in list(self._busy.values()):
            if now - line.heard > TIMEOUT_SECONDS:
                self._end(line, network_fault(TimeoutError()))
