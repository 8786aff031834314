"""The boot of a machine: its phases, their deadlines, and the wait until the market says that it runs."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from dynamic_providers.errors import BootError, HostError
from dynamic_providers.vast.models import COMING_UP, DOOR, SSH, Instance
from dynamic_providers.vast.rent import LOOK_SECONDS, World

# The part of `boot_minutes` that each phase may take at most; together they may not take more than all of it.
# An image that a host does not hold is the slowest by far: a healthy host was seen silent over it for 10 minutes
# (vast-ai/base-image @a7552d1, cadence-trace-findings.md).
PHASE_SHARES = {"scheduled": 0.25, "image": 0.6, "ssh": 0.2, "weights": 0.7, "engine": 0.6, "first token": 0.15}
TELL_SECONDS = 15.0
"""How often a wait that takes long says that it goes on."""
SHOW_SECONDS = 3.0
"""The same where the new line takes the old one's place; without a terminal each is a line in Pulumi's output."""


@dataclass
class Lost:
    """What was lost on hosts that were given back before this one; it travels with the machine that gets ready.

    Attributes:
        began: When the run began, by its clock.
        failures: Reason → how many, the latest reason last.
        ssh_seconds: Waited for logins that never came.
    """

    began: float
    failures: dict[str, int] = field(default_factory=dict)
    ssh_seconds: float = 0.0

    def book(self, error: HostError, boot: "Boot") -> None:
        """Note a host that let us down."""
        reason = error.phase.replace(" ", "_") if isinstance(error, BootError) else "mismatch"
        self.failures[reason] = self.failures.pop(reason, 0) + 1
        if reason == "ssh":
            self.ssh_seconds += boot.seconds_since_last()


@dataclass
class Boot:
    """The boot of one machine: what its phases have taken, and how long they may still take.

    Attributes:
        minutes: For all of it.
        lost: What was lost before; None for a machine that serves already, and is changed.
    """

    world: World
    minutes: float
    lost: Lost | None = None
    phases: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._began = self._last = self._told = self.world.clock.monotonic()

    def left(self, phase: str) -> timedelta:
        """Return how long *phase*, begun now, may take."""
        budget = timedelta(minutes=self.minutes)
        used = timedelta(seconds=self.world.clock.monotonic() - self._began)
        return max(min(budget * PHASE_SHARES[phase], budget - used), timedelta(seconds=1))

    def done(self, phase: str, detail: str = "", *, seconds: float | None = None) -> None:
        """Book and print a phase that has just ended."""
        now = self.world.clock.monotonic()
        self.phases[phase] = round(now - self._last if seconds is None else seconds, 1)
        self._last = self._told = now
        self.world.say(f"{phase:<12}{self.phases[phase]:>7.1f} s   {detail}".rstrip())

    def seconds_since_last(self) -> float:
        """Return how long the phase that goes on now has taken."""
        return round(self.world.clock.monotonic() - self._last, 1)

    def provisioning(self) -> dict[str, Any] | None:
        """Return how the machine came up, as `run/provisioning.json` has it; None if it did so before."""
        if self.lost is None:
            return None
        return {
            "phases": dict(self.phases),
            "cold_start_seconds": round(self.world.clock.monotonic() - self.lost.began, 1),
            "failures": dict(self.lost.failures),
            "ssh_lost_seconds": self.lost.ssh_seconds,
        }

    def tell(self, phase: str, text: str) -> None:
        """Tell how a phase goes on, now and then."""
        now, show = self.world.clock.monotonic(), self.world.show
        if now - self._told >= (SHOW_SECONDS if show else TELL_SECONDS):
            self._told = now
            (show or self.world.say)(f"{phase:<12}{now - self._last:>7.1f} s … {text}")


def wait_until_running(world: World, instance: Instance, boot: Boot) -> Instance:
    """Return the instance once it runs and its ports are published.

    Raises:
        BootError: It missed a deadline, or its host says that it will not come up.
    """
    for phase, is_over in (("scheduled", _is_scheduled), ("image", is_reachable)):
        deadline = world.clock.monotonic() + boot.left(phase).total_seconds()
        while not is_over(instance):
            state = f"{instance.status or 'not begun'}: {instance.status_message}".strip(": ")
            if instance.is_hopeless or instance.status not in COMING_UP | {"running"}:
                raise BootError(phase, f"machine {instance.machine_id} is {state}")
            if world.clock.monotonic() > deadline:
                raise BootError(phase, f"machine {instance.machine_id} missed its deadline, still {state}")
            boot.tell(phase, state)
            world.clock.sleep(LOOK_SECONDS)
            seen = world.client.show_instance(instance.id)
            if seen is None:
                raise BootError(phase, f"the market no longer knows instance {instance.id}")
            instance = seen
        if phase == "scheduled":
            boot.done(phase, f"instance {instance.id} on machine {instance.machine_id}, {instance.country}")
        else:
            boot.done(phase, instance.status_message.partition("\n")[0])
    return instance


def _is_scheduled(instance: Instance) -> bool:
    return bool(instance.status) and instance.status != "created"


def is_reachable(instance: Instance) -> bool:
    """Say whether it runs and its ports are published, which comes a little later."""
    return instance.status == "running" and bool(instance.address) and {SSH, DOOR} <= instance.ports.keys()
