"""Runs that are broken at one moment, and what an engine does afterwards.

A *moment* is just before or just after one request to market, store or machine. One undisturbed run tells which there
are; then run after run is broken, each at the next one.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from types import SimpleNamespace
from typing import Any

import botocore.endpoint
import httpx
import pytest
from botocore.exceptions import ConnectionClosedError
from botocore.httpsession import URLLib3Session

from dynamic_providers.clock import Clock
from dynamic_providers.stopping import Stop
from dynamic_providers.store.client import Store
from dynamic_providers.vast import lifecycle, resource
from dynamic_providers.vast.client import VastClient
from dynamic_providers.vast.models import Instance
from dynamic_providers.vast.rent import World
from dynamic_providers.vast.request import MachineRequest
from tests.sandbox.fake_machines import FakeMachine, FakeMachines, fake_machines
from tests.sandbox.gate import moment_of
from tests.sandbox.stage import Stage
from tests.sandbox.vast.front import Asked
from tests.sandbox.vast.server import VastEmulator

TOLD_TO_STOP = "Pulumi was told to stop"


class Break(Enum):
    """How a run is broken."""

    DEAD = "dead"  # the process is killed: nothing more happens, no cleaning up either
    STOPPED = "stopped"  # told to stop, as by Ctrl-C; or the engine is gone
    LOST = "lost"  # this one request is lost, or its reply
    CUT = "cut"  # the network is gone from here on


class Dead(BaseException):
    """The process does not exist any more. Whatever it tries from now on raises this."""


class Breaker:
    """Counts the moments of a run, and breaks it at one of them."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self.arm(None, Break.DEAD)

    def arm(self, moment: int | None, how: Break) -> None:
        """Begin a new run, to be broken at the moment of this number; None for an undisturbed one."""
        self.moments: list[str] = []
        self.stop = Stop()
        self._moment, self._how = moment, how
        self._broken_at: float | None = None

    @property
    def is_broken(self) -> bool:
        """Whether the moment has come."""
        return self._broken_at is not None

    @property
    def is_stopped(self) -> bool:
        """Whether the run has been told to stop."""
        return self.is_broken and self._how is Break.STOPPED

    @property
    def seconds_since(self) -> float:
        """What has passed of the market's time since then."""
        return self._clock.monotonic() - self._broken_at if self._broken_at is not None else 0.0

    @contextmanager
    def request(self, name: str) -> Iterator[None]:
        """Stand around one request."""
        self._pass(f"before {name}")
        yield
        self._pass(f"after {name}")

    def live(self) -> None:
        """Raise if the process is dead."""
        if self.is_broken and self._how is Break.DEAD:
            raise Dead

    def _pass(self, name: str) -> None:
        self.live()
        with self._lock:
            number = len(self.moments)
            self.moments.append(name)
        if number == self._moment:
            self._broken_at = self._clock.monotonic()
            self.live()
            if self._how is Break.STOPPED:
                self.stop.request(TOLD_TO_STOP)
        is_cut = self._how is Break.CUT and self.is_broken
        if is_cut or (self._how is Break.LOST and number == self._moment):
            raise ConnectionResetError(f"lost {name}")


class BreakableClock(Clock):
    """Time passes at once, for a process that may be dead or told to stop."""

    def __init__(self, clock: Clock, breaker: Breaker) -> None:
        self._clock, self._breaker = clock, breaker

    def now(self) -> datetime:
        return self._clock.now()

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def sleep(self, seconds: float) -> None:
        self._breaker.live()
        self._breaker.stop.check()
        self._clock.sleep(seconds)


class Wire(httpx.BaseTransport):
    """Carries the requests to the market; without sockets, which would take most of the time."""

    def __init__(self, breaker: Breaker, market: VastEmulator) -> None:
        self._breaker, self._market = breaker, market

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        try:
            with self._breaker.request(f"market {moment_of(request.method, request.url.path)}"):
                target, text = request.url.raw_path.decode(), request.content.decode()
                reply = self._market.answer(Asked(request.method, target, request.headers, text))
        except ConnectionResetError as error:
            raise httpx.ReadError(str(error), request=request) from error
        assert reply is not None
        return httpx.Response(reply.status, headers=reply.headers, content=reply.body)


class QuickStore(Store):
    """A bucket whose clients are made once: to make one takes boto3 longer than a whole run."""

    clients: dict[str, Any] = {}  # noqa: RUF012 - one for all

    def _connect(self, limits: dict[str, Any], **form: Any) -> Any:
        key = f"{self.endpoint} {limits} {form}"
        if key not in self.clients:
            self.clients[key] = super()._connect(limits, **form)
        return self.clients[key]


class Lab:
    """A market with played machines, and a process that works in it and can be broken.

    Args:
        stage: With `FakeMachines` for hosts.
    """

    def __init__(self, stage: Stage) -> None:
        assert isinstance(stage.market.hosts, FakeMachines)
        self.stage, self.hosts = stage, stage.market.hosts
        self.breaker = Breaker(stage.clock)
        self.said: list[str] = []
        clock = BreakableClock(stage.clock, self.breaker)
        wire = Wire(self.breaker, stage.market)
        client = VastClient(stage.market.api_key, stage.market.url, clock=clock, transport=wire)
        self._world = World(client, self._say, clock)

    def world(self, *_: object) -> World:
        """Return what the process of the present run works with."""
        return replace(self._world, stop=self.breaker.stop)

    def own(self, uid: str) -> list[Instance]:
        """Return the instances of a lease, as the market itself knows them."""
        return [i for i in self.stage.show() if i.belongs_to(self.stage.fleet.id, uid)]

    def machine(self, instance_id: int) -> FakeMachine:
        """Return the machine of an instance."""
        return self.hosts.machines[instance_id]

    @contextmanager
    def open(self) -> Iterator[None]:
        """Let the resources work here, and every request be a moment."""
        send, watch = URLLib3Session.send, self.breaker.request

        def sent(session: URLLib3Session, request: Any) -> Any:
            try:
                with watch(f"store {request.method}"):
                    return send(session, request)
            except ConnectionResetError as error:
                raise ConnectionClosedError(endpoint_url=request.url, request=request) from error

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(URLLib3Session, "send", sent)
            patch.setattr(botocore.endpoint, "time", SimpleNamespace(**vars(time) | {"sleep": lambda _: None}))
            patch.setattr(resource._Provider, "_config", None, raising=False)
            patch.setattr(resource._Provider, "_world", self.world)
            patch.setattr(resource, "open_store", lambda address, _: QuickStore(address.bucket))
            patch.setattr(resource, "say", self._say)
            patch.setattr(lifecycle, "STOP_LOOK_SECONDS", 0.003)
            with fake_machines(self.hosts, self.stage.clock, watch, self._pause):
                yield
        self._world.client._http.close()

    async def _pause(self) -> None:
        # A machine takes its time over a command; who is told to stop does not wait for it.
        if self.breaker.is_stopped:
            await asyncio.sleep(0.03)

    def _say(self, line: str) -> None:
        self.breaker.live()
        self.said.append(line)


@dataclass
class Stack:
    """One lease and its machine, as the engine goes about them: its order, and what it would have in its state.

    Attributes:
        uid: The recorded lease's; None where there is none.
        id: The recorded machine's; None where there is none.
        outputs: The recorded machine's.
        has: What the last run that went well was asked for.
    """

    lab: Lab
    uid: str | None = None
    id: str | None = None
    outputs: dict[str, Any] | None = None
    has: MachineRequest | None = None

    def go(self, asked: MachineRequest | None) -> None:
        """Bring it to what is asked; None for nothing."""
        self.has = None
        if asked is None:
            self.destroy()
        else:
            self.up(asked)
        self.has = asked

    def up(self, request: MachineRequest) -> None:
        """Refresh, as Pulumi.yaml says; then do what is missing. What raises is not recorded."""
        self.refresh()
        if self.uid is None:
            lease = resource.LeaseProvider().create({"fleet_id": self.lab.stage.fleet.id, "uid": None})
            self.uid = lease.id
        news, provider = replace(request, uid=self.uid).to_props(), resource.VastInstanceProvider()
        if self.id is not None and self.outputs is not None:
            diff = provider.diff(self.id, self.outputs, news)
            if not diff.replaces:
                if diff.changes:
                    self.outputs = provider.update(self.id, self.outputs, news).outs
                return
            provider.delete(self.id, self.outputs)
            self.id = self.outputs = None
        created = provider.create(news)
        self.id, self.outputs = created.id, created.outs

    def refresh(self) -> None:
        """Read what is recorded."""
        if self.id is not None and self.outputs is not None:
            found = resource.VastInstanceProvider().read(self.id, self.outputs)
            self.id, self.outputs = (found.id, found.outs) if found.id else (None, None)

    def destroy(self) -> None:
        """Refresh; then delete what is recorded, what depends on others first."""
        self.refresh()
        if self.id is not None and self.outputs is not None:
            resource.VastInstanceProvider().delete(self.id, self.outputs)
            self.id = self.outputs = None
        if self.uid is not None:
            resource.LeaseProvider().delete(self.uid, {"fleet_id": self.lab.stage.fleet.id, "uid": self.uid})
            self.uid = None
