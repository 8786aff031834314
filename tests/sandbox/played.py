"""A bootstrap that is only played: for paths of the lifecycle that need no real machine."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self

import pytest

from bootstrap import ready, run, ssh
from bootstrap.steps import Applied, Engine, Gpu, Identity, Remaining, Report, Supplies
from tests.sandbox.stage import Stage
from tests.sandbox.vast.hosts import FakeHosts


@dataclass
class Played:
    """Stands in for SSH and bootstrap: every machine comes up at once and tells the truth about its GPUs.

    Attributes:
        applied: (address, engine) of each `apply`, in order.
        failures: What the next applies raise; None is success.
        provisioned: What each machine that got ready was told of its boot.
        is_armed: Whether machines can reach the market with their own keys.
    """

    hosts: FakeHosts
    applied: list[tuple[str, Engine]] = field(default_factory=list)
    failures: list[BaseException | None] = field(default_factory=list)
    provisioned: list[Mapping[str, Any]] = field(default_factory=list)
    is_armed: bool = True

    async def connect(self, target: ssh.Target, *, deadline: timedelta) -> "PlayedMachine":
        return PlayedMachine(self, target.address)

    async def inspect_gpus(self, machine: "PlayedMachine") -> tuple[Gpu, ...]:
        place = int(machine.address.rpartition(".")[2]) - 1
        (spec,) = (spec for id_, spec in self.hosts.running.items() if id_ % 250 == place)
        return tuple(Gpu(gpu.name, gpu.memory_mib) for gpu in spec.gpus)

    async def apply(
        self,
        machine: "PlayedMachine",
        engine: Engine,
        identity: Identity,
        supplies: Supplies,
        remaining: Remaining,
        *,
        left: Callable[[str], timedelta],
        report: Report,
    ) -> Applied:
        self.applied.append((machine.address, engine))
        if self.failures and (failure := self.failures.pop(0)):
            raise failure
        return Applied({"weights": 0.0, "engine": 0.0}, changed=True)

    async def first_token(self, *_: Any, **__: Any) -> float:
        return 0.1

    async def hand_over(
        self,
        machine: "PlayedMachine",
        remaining: Remaining,
        provisioning: Mapping[str, Any] | None,
        *,
        patience: timedelta,
    ) -> Mapping[str, Any]:
        if provisioning is not None:
            self.provisioned.append(provisioning)
        return {"phase": "r", "armed": self.is_armed, "unarmed_because": None if self.is_armed else "HTTP 401"}

    async def answer(
        self, control: ready.Control, method: str, what: str, timeout: timedelta, body: object = None
    ) -> dict[str, Any] | None:
        mine = [engine for address, engine in self.applied if address in control.endpoint]
        return {"settings": mine[-1].settings_hash(), "armed": self.is_armed, "in_flight": 0} if mine else None


@dataclass
class PlayedMachine:
    """A session on a machine that is not there."""

    played: Played
    address: str
    host_key: str = "ssh-ed25519 AAAA"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Log out of nothing."""


@contextmanager
def play_bootstrap(stage: Stage) -> Iterator[Played]:
    """Put the played bootstrap in place of the real one."""
    assert isinstance(stage.market.hosts, FakeHosts)
    played = Played(stage.market.hosts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssh, "connect", played.connect)
        patch.setattr(run, "inspect_gpus", played.inspect_gpus)
        patch.setattr(run, "apply", played.apply)
        patch.setattr(run, "hand_over", played.hand_over)
        patch.setattr(ready, "first_token", played.first_token)
        patch.setattr(ready.Control, "_ask", lambda *asked: played.answer(*asked))
        yield played
