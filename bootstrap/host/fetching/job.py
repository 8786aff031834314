"""A download as a whole: hands out ranges, asks again for what broke off, and keeps each file that is right.

One thread decides everything. Workers only carry, and the threads that hash only read.
"""

import contextlib
import itertools
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait

from bootstrap.host.fetching.answers import Fault, Range
from bootstrap.host.fetching.line import disk_fault
from bootstrap.host.fetching.pace import RATES_KEPT, SLOW_SECONDS, Pace, choose_slow
from bootstrap.host.fetching.part import Part
from bootstrap.host.fetching.worker import Helper, start_helpers

HASHERS = 4
"""A core without SHA instructions checks 400 MB/s: several files grow, and are checked, side by side."""
TRIES = 9
DROPS = 3
BACKOFF_SECONDS = 0.2
BACKOFF_MOST_SECONDS = 10.0
FRESH_WITHIN_SECONDS = 600.0
"""How long fresh URLs are waited for before the rest is left to another run."""
TICK_SECONDS = 0.25
FRESH = frozenset({"expired", "skewed"})
AGAIN = frozenset({"busy", "network"})


@dataclass(eq=False)
class Task:
    """A range that is to be fetched, and what has gone wrong with it."""

    part: Part
    segments: range
    at: int
    left: int
    failures: int = 0
    drops: int = 0
    not_before: float = 0.0


@dataclass(eq=False)
class Flight:
    """A task under way."""

    task: Task
    url: str
    helper: Helper
    began: float
    moved: int = 0
    marks: deque[tuple[float, int]] = field(default_factory=deque)
    is_dropped: bool = False

    def rate(self, now: float) -> float | None:
        """Return its bytes a second of late; None as long as it is too young to tell."""
        self.marks.append((now, self.moved))
        while len(self.marks) > 1 and self.marks[1][0] <= now - SLOW_SECONDS:
            self.marks.popleft()
        since, moved = self.marks[0]
        return (self.moved - moved) / (now - since) if now - since >= SLOW_SECONDS else None


class Job:
    """Fetches files until all are there, or one cannot be had.

    Args:
        parts: The files.
        fresh_urls: Asked now and then for URLs that take the place of the present ones, by SHA-256.
        tick: Called about four times a second.

    Attributes:
        failure: The file that cannot be had, and why.
        waiting: The file that fresh URLs are waited for, and why.
        renewals: How often they have come.
    """

    def __init__(
        self, parts: Sequence[Part], fresh_urls: Callable[[], Mapping[str, str]], tick: Callable[[], None]
    ) -> None:
        self.parts = parts
        self.failure: tuple[Part, Fault] | None = None
        self.waiting: tuple[Part, Fault] | None = None
        self.renewals = 0
        self._fresh_urls, self._tick = fresh_urls, tick
        self._unkept = list(parts)
        self._have = dict.fromkeys(parts, 0)
        self._todo: dict[Part, deque[Task]] = {part: deque() for part in parts}
        self._flights: dict[int, Flight] = {}
        self._ids = itertools.count()
        self._helpers: list[Helper] = []
        self._hashers = ThreadPoolExecutor(HASHERS)
        self._bell, self._button = Pipe(duplex=False)
        self._pressing = threading.Lock()
        self._pace = Pace(time.monotonic())
        self._rates: deque[float] = deque(maxlen=RATES_KEPT)
        self._moved = 0
        self._next_tick = self._give_up = 0.0

    @property
    def bytes(self) -> int:
        """How many bytes are there."""
        return sum(self._have.values())

    def run(self) -> None:
        """Fetch and check every part, or set `failure`; what is there stays for the next run."""
        self._open()
        try:
            if not self.failure:
                self._start()
            while self._unkept and not self.failure:
                self._look()
        except (EOFError, ConnectionError):
            self._fail(self._unkept[0], Fault("host", "a process of the download was killed on the machine"))
        finally:
            self._end()

    # --- beginning and end

    def _open(self) -> None:
        for part in self.parts:
            try:
                part.open()
            except OSError as error:
                self._fail(part, disk_fault(error))
                return
            self._have[part] = part.bytes_done()
            self._enqueue(part)
        need = sum(part.size - part.allocated() for part in self.parts)
        free = shutil.disk_usage(self.parts[0].partial.parent).free if self.parts else 0
        if need > free:
            text = f"the machine's disk has {free / 1e9:.1f} GB free, {need / 1e9:.1f} GB are to go there"
            self._fail(self.parts[0], Fault("disk", text))

    def _start(self) -> None:
        self._helpers = start_helpers(sum(part.size for part in self.parts) - self.bytes)
        for part in self.parts:
            self._hashers.submit(self._hash, part)

    def _end(self) -> None:
        self.failure = self.failure or ((self._unkept[0], Fault("host", "broken off")) if self._unkept else None)
        for part in self.parts:
            with part.moved:
                part.moved.notify_all()
        self._hashers.shutdown()
        for helper in self._helpers:
            helper.end()
        for part in self.parts:
            part.close()
        self._bell.close()
        self._button.close()

    def _fail(self, part: Part, fault: Fault) -> None:
        self.failure = self.failure or (part, fault)

    # --- the loop

    def _look(self) -> None:
        """Hand out what can be, take in what has happened."""
        self._hand_out(time.monotonic())
        pipes = [self._bell, *(helper.pipe for helper in self._helpers)]
        for pipe in wait(pipes, self._pause(time.monotonic())):
            if isinstance(pipe, Connection):
                self._hear(*pipe.recv())
        now = time.monotonic()
        if now >= self._next_tick:
            self._next_tick = now + TICK_SECONDS
            self._pace.look(now, self._moved, is_full=len(self._flights) >= self._pace.limit)
            self._drop_slow(now)
            self._take_fresh_urls(now)
            self._tick()

    def _pause(self, now: float) -> float:
        """Return how long nothing is to be done unless something happens."""
        tries = [task.not_before for tasks in self._todo.values() for task in itertools.islice(tasks, 1)]
        soon = [at for at in (*tries, self._next_tick) if at > now]
        return max(0.0, min(soon, default=now + TICK_SECONDS) - now)

    def _hear(self, what: str, *said: object) -> None:
        match what, *said:
            case "moved", dict(moved):
                for id_, count in moved.items():
                    if id_ in self._flights and not is_stale(self._flights[id_].task):
                        self._count(self._flights[id_], count)
            case "ended", int(id_), int(moved), fault:
                self._land(id_, moved, fault if isinstance(fault, Fault) else None)
            case "hashed", int(index), str(digest):
                self._judge(self.parts[index], digest)
            case "unread", int(index), Fault() as fault:
                self._fail(self.parts[index], fault)

    # --- ranges

    def _hand_out(self, now: float) -> None:
        while not self.waiting and len(self._flights) < self._pace.limit:
            task = self._choose_task(now)
            if not task or not self._pace.may_ask(now):
                return
            part, id_ = task.part, next(self._ids)
            self._todo[part].remove(task)
            helper = min(self._helpers, key=lambda helper: helper.flights)
            helper.flights += 1
            self._flights[id_] = Flight(task, part.url, helper, now)
            wanted = Range(id_, part.url, str(part.partial), task.at, task.left, part.size, part.is_whole)
            helper.pipe.send(("fetch", wanted))

    def _choose_task(self, now: float) -> Task | None:
        """Return a task of one of the first files that have any, of the one that has the least under way."""
        ready: list[Task] = []
        for tasks in self._todo.values():
            task = next((task for task in itertools.islice(tasks, self._pace.limit) if task.not_before <= now), None)
            ready += [task] if task else []
            if len(ready) == HASHERS:
                break
        under_way = [flight.task.part for flight in self._flights.values()]
        return min(ready, key=lambda task: under_way.count(task.part), default=None)

    def _count(self, flight: Flight, moved: int) -> None:
        more, flight.moved = moved - flight.moved, moved
        self._moved += more
        self._have[flight.task.part] += more

    def _land(self, id_: int, moved: int, fault: Fault | None) -> None:
        """Take in the end of a flight."""
        now, flight = time.monotonic(), self._flights.pop(id_)
        task, part = flight.task, flight.task.part
        flight.helper.flights -= 1
        if is_stale(task):
            return
        self._count(flight, moved)
        task.at, task.left = task.at + moved, task.left - moved
        if not task.left:
            self._rates.append(moved / max(now - flight.began, 1e-6))
            with self._judging(part):
                part.note(task.segments)
        elif not fault or fault.kind in AGAIN or flight.is_dropped:
            self._ask_again(flight, fault, now)
        elif fault.kind in FRESH:
            if flight.url == part.url and not self.waiting:
                self.waiting, self._give_up = (part, fault), now + FRESH_WITHIN_SECONDS
            self._todo[part].appendleft(task)
        elif fault.kind == "whole":
            self._take_whole(part)
        else:
            self._fail(part, fault)

    def _ask_again(self, flight: Flight, fault: Fault | None, now: float) -> None:
        task = flight.task
        if task.part.is_whole:  # there is no going on in the middle
            self._have[task.part] = 0
            task.at, task.left = 0, task.part.size
        if flight.is_dropped:
            task.drops += 1
        else:
            task.failures = 1 if flight.moved and not task.part.is_whole else task.failures + 1
            task.not_before = now + min(BACKOFF_SECONDS * 2**task.failures, BACKOFF_MOST_SECONDS)
        if fault and fault.kind == "busy":
            self._pace.refuse(now)
            task.not_before = max(task.not_before, now + fault.retry_after)
        if task.failures >= TRIES and fault:
            self._fail(task.part, fault)
        self._todo[task.part].appendleft(task)

    def _enqueue(self, part: Part) -> None:
        """Ask for every segment of a file that is not there."""
        for segment in part.segments:
            if segment not in part.done:
                at = segment * part.length(0)
                self._todo[part].append(Task(part, range(segment, segment + 1), at, part.length(segment)))

    def _take_whole(self, part: Part) -> None:
        """Ask for all of a file at once, as the store gives no less."""
        part.is_whole = True
        self._have[part] = 0
        self._todo[part] = deque([Task(part, part.segments, 0, part.size)])
        with self._judging(part):
            part.forget()

    def _drop_slow(self, now: float) -> None:
        """Break off what a fresh connection would bring sooner."""
        rates = {id_: rate for id_, flight in self._flights.items() if (rate := flight.rate(now)) is not None}
        left = {id_: self._flights[id_].task.left - self._flights[id_].moved for id_ in rates}
        for id_ in choose_slow(rates, left, self._rates):
            flight = self._flights[id_]
            if not flight.is_dropped and flight.task.drops < DROPS:
                flight.is_dropped = True
                flight.helper.pipe.send(("drop", id_))

    def _take_fresh_urls(self, now: float) -> None:
        if fresh := self._fresh_urls():
            self.waiting = None
            self.renewals += 1
            for part in self.parts:
                part.url = fresh.get(part.sha256, part.url)
        elif self.waiting and now >= self._give_up:
            self._fail(*self.waiting)

    # --- files

    def _hash(self, part: Part) -> None:
        """Hash a file as it grows and say what it came to. Runs beside the loop."""
        index = self.parts.index(part)
        try:
            digest = part.hash(lambda: self.failure is not None)
        except OSError as error:
            self._press("unread", index, disk_fault(error))
        else:
            self._press("hashed", index, digest)

    def _press(self, *message: object) -> None:
        with self._pressing:
            self._button.send(message)

    def _judge(self, part: Part, digest: str) -> None:
        """Keep a file that is right; fetch a spoilt one once more."""
        with self._judging(part):
            if digest == part.sha256:
                part.keep()
                self._unkept.remove(part)
            elif part.is_spoilt:
                part.discard()
                text = (
                    "what the bucket holds is not what its manifest says: "
                    "`gpu models verify <model> --drop`, then push the model again"
                )
                self._fail(part, Fault("corrupt", text))
            else:
                part.is_spoilt = True
                part.forget()
                self._have[part] = 0
                self._enqueue(part)
                self._hashers.submit(self._hash, part)

    @contextlib.contextmanager
    def _judging(self, part: Part) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._fail(part, disk_fault(error))


def is_stale(task: Task) -> bool:
    """Tell whether a task is of the time before its file was asked for in one piece."""
    return task.part.is_whole and task.segments != task.part.segments
