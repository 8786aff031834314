"""What the market asks of whoever runs its hosts, and a backend that keeps them in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

SSH_PORT = 22
"""Container port of the SSH server."""


@dataclass(frozen=True)
class Gpu:
    """One GPU as the driver on the host reports it."""

    name: str
    memory_mib: int
    compute_capability: float


@dataclass(frozen=True)
class SshTrouble:
    """What is wrong with a host's SSH server.

    Attributes:
        is_refused: Nothing listens on its port.
        drops_after: After so many commands the connection drops in the middle of the next one, once; None for never.
        other_key_after: After so many logins it has another host key; None for never.
    """

    is_refused: bool = False
    drops_after: int | None = None
    other_key_after: int | None = None


SOUND = SshTrouble()


@dataclass(frozen=True)
class HostSpec:
    """What a host is started with.

    Attributes:
        instance_id: The market's id of the instance.
        gpus: The GPUs that are truly there.
        onstart: Script to run on every start; may be empty.
        env: Variables of the create call; only `onstart` sees them.
        tcp_ports: Container ports to publish; 22 stands for the SSH server.
        api_key: The instance's own key; only `onstart` sees it.
        market_url: Where the market's API answers.
        authorized_keys: Public keys that may log in.
        ssh: What is wrong with its SSH server from the start.
    """

    instance_id: int
    gpus: tuple[Gpu, ...]
    onstart: str
    env: Mapping[str, str]
    tcp_ports: tuple[int, ...]
    api_key: str
    market_url: str
    authorized_keys: tuple[str, ...]
    ssh: SshTrouble = SOUND


@dataclass(frozen=True)
class Address:
    """Where a running host is reached: container port -> port on `ip`."""

    ip: str
    ports: Mapping[int, int]


class Hosts(Protocol):
    """Runs the hosts. Calls about one instance never overlap; `stop` and `destroy` of a stopped one do nothing."""

    async def start(self, spec: HostSpec) -> Address:
        """Start the host, or start it again after `stop`, with its files as they were left."""

    async def authorize(self, instance_id: int, keys: Sequence[str]) -> None:
        """Let exactly these public keys log in."""

    async def treat_ssh(self, instance_id: int, trouble: SshTrouble) -> None:
        """Break the SSH server of a running host in this way, or repair it."""

    async def unplug(self, instance_id: int) -> None:
        """Take a running host off the network: nobody reaches it, what runs there runs on."""

    async def plug(self, instance_id: int) -> None:
        """Put it back, at the same address."""

    async def read_log(self, instance_id: int) -> str:
        """Read what its container wrote; empty if there is no such host."""

    async def execute(self, instance_id: int, words: Sequence[str]) -> str:
        """Run a program where SSH sessions begin, without a shell, and return its output. A stopped host will do."""

    async def stop(self, instance_id: int) -> None:
        """End every process of the host; its files stay."""

    async def destroy(self, instance_id: int) -> None:
        """End every process of the host and remove its files."""

    async def close(self) -> None:
        """End every process of every host."""


@dataclass
class FakeHosts:
    """Hosts that exist only in memory: nothing runs, nothing listens.

    Attributes:
        running: The hosts that are on, by instance id.
        starts: Every start there was, in order.
        destroyed: Instance ids, in order.
        keys: Public keys that may log in, by instance id.
        ssh: What is wrong with their SSH servers, by instance id.
        unplugged: The hosts that are off the network.
    """

    running: dict[int, HostSpec] = field(default_factory=dict)
    starts: list[HostSpec] = field(default_factory=list)
    destroyed: list[int] = field(default_factory=list)
    keys: dict[int, tuple[str, ...]] = field(default_factory=dict)
    ssh: dict[int, SshTrouble] = field(default_factory=dict)
    unplugged: set[int] = field(default_factory=set)

    async def start(self, spec: HostSpec) -> Address:
        self.running[spec.instance_id] = spec
        self.starts.append(spec)
        self.unplugged.discard(spec.instance_id)
        self.keys[spec.instance_id] = spec.authorized_keys
        self.ssh[spec.instance_id] = spec.ssh
        # The range that standards set aside for documentation: nothing ever answers there.
        return Address(
            ip=f"203.0.113.{spec.instance_id % 250 + 1}",
            ports={port: 40_000 + index for index, port in enumerate(spec.tcp_ports)},
        )

    async def authorize(self, instance_id: int, keys: Sequence[str]) -> None:
        self.keys[instance_id] = tuple(keys)

    async def treat_ssh(self, instance_id: int, trouble: SshTrouble) -> None:
        self.ssh[instance_id] = trouble

    async def unplug(self, instance_id: int) -> None:
        self.unplugged.add(instance_id)

    async def plug(self, instance_id: int) -> None:
        self.unplugged.discard(instance_id)

    async def read_log(self, instance_id: int) -> str:
        return "".join(f"start of {spec.instance_id}\n" for spec in self.starts if spec.instance_id == instance_id)

    async def execute(self, instance_id: int, words: Sequence[str]) -> str:
        return f"{' '.join(words)}\n"

    async def stop(self, instance_id: int) -> None:
        self.running.pop(instance_id, None)

    async def destroy(self, instance_id: int) -> None:
        self.running.pop(instance_id, None)
        self.destroyed.append(instance_id)

    async def close(self) -> None:
        self.running.clear()
