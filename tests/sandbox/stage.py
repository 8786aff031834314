"""Where the lifecycle is tried: a market, its hosts, a bucket, and a clock that does not keep one waiting."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from dynamic_providers.clock import Clock
from dynamic_providers.lease import keys
from dynamic_providers.lease.certificates import fleet_id, make_ca
from dynamic_providers.lease.label import Phase
from dynamic_providers.store.address import StoreAddress
from dynamic_providers.store.client import Store
from dynamic_providers.store.manifest import Manifest
from dynamic_providers.vast import lifecycle
from dynamic_providers.vast.client import VastClient
from dynamic_providers.vast.models import GpuNeed, Instance
from dynamic_providers.vast.rent import World
from dynamic_providers.vast.request import FleetKeys, LeaseTerms, MachineRequest, ModelRequest
from dynamic_providers.vast.resource import VastInstanceProvider
from tests.sandbox.hosts.backend import SshHosts
from tests.sandbox.hosts.processes import find_processes
from tests.sandbox.storage import Storage
from tests.sandbox.vast.hosts import Hosts
from tests.sandbox.vast.server import VastEmulator

TOOLS = Path(__file__).parent / "vllm_stub"
UID = "0123456789ab"
RECEIPT = re.compile(r"instance (\d+) is destroyed, billing stopped: ([\d.]+) USD")


@dataclass(frozen=True)
class Bucket:
    """A bucket that is up, with releases in it."""

    storage: Storage
    store: Store
    releases: Mapping[str, Manifest]

    @property
    def host_environment(self) -> dict[str, str]:
        """What makes a host trust it."""
        ca = str(self.storage.ca_path)
        return {"SSL_CERT_FILE": ca, "AWS_CA_BUNDLE": ca, "STUB_START_SECONDS": "0"}


class WatchedHosts(SshHosts):
    """Real hosts that remember what lay on them when they were destroyed."""

    def __init__(self, root: Path, env: Mapping[str, str]) -> None:
        super().__init__(root, TOOLS, env)
        self.root = root.resolve()
        self.left: dict[int, set[str]] = {}

    def workspace(self, instance_id: int) -> Path:
        """Return where everything of ours lies on a host."""
        return self.root / str(instance_id) / "w/gpu-on-demand"

    async def destroy(self, instance_id: int) -> None:
        workspace = self.workspace(instance_id)
        self.left[instance_id] = {str(p.relative_to(workspace)) for p in workspace.rglob("*") if p.is_file()}
        await super().destroy(instance_id)


@dataclass
class Stage:
    """A market, and one fleet that rents there.

    Attributes:
        said: What the operator was told, line by line.
    """

    market: VastEmulator
    bucket: Bucket
    clock: Clock
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        client = VastClient(self.market.api_key, self.market.url, clock=self.clock)
        self.world = World(client, self.said.append, self.clock)
        sign = "5a" * 32
        authority = make_ca(sign, datetime.now(UTC))
        self.fleet = FleetKeys(fleet_id(authority), authority, sign, keys.observe_key(sign))

    def request(self, release: str = "tiny", **change: Any) -> MachineRequest:
        """Return what is asked of a machine; *change* goes to the part that has such a field."""
        manifest = self.bucket.releases[release]
        request = MachineRequest(
            stack="gpu-on",
            uid=UID,
            fleet=self.fleet,
            need=GpuNeed(("RTX 4090",), max_usd_per_hour=0.5, min_vram_gib=24.0, regions=("EU",), disk_gb=60.0),
            image="vllm/vllm-openai:v0.32.0",
            model=ModelRequest(str(manifest.ref), manifest.bytes_total, release, 2048, (), ("default",)),
            terms=LeaseTerms(),
            store=StoreAddress(self.bucket.store.bucket, "fsn1"),
        )
        for part in ("need", "model", "terms"):
            value = getattr(request, part)
            mine = {key: change.pop(key) for key in tuple(change) if key in vars(value)}
            request = replace(request, **{part: replace(value, **mine)})
        return replace(request, **change)

    def create(self, request: MachineRequest | None = None) -> "Machine":
        """Bring a machine up as the resource does."""
        request = request or self.request()
        id_, outputs = lifecycle.create(self.world, self.bucket.store, request)
        return Machine(self, int(id_), request, {**request.to_props(), **outputs})

    def tell_market(self, path: str, **body: Any) -> None:
        """Use one of the sandbox's own controls."""
        httpx.post(f"{self.market.url}/sandbox/{path}", json=body, trust_env=False).raise_for_status()

    def show(self) -> list[Instance]:
        """Return the instances that are there, as the market itself knows them."""
        return [Instance.from_api(row) for row in self.market.instances]

    def calls(self, method: str, path: str) -> list[dict[str, Any]]:
        """Return the requests of this kind that the market received."""
        return [r for r in self.market.requests if r["method"] == method and r["path"].startswith(path)]

    @property
    def rents(self) -> list[dict[str, Any]]:
        """The requests to rent."""
        return self.calls("PUT", "/api/v0/asks/")


@contextmanager
def open_stage(bucket: Bucket, hosts: Hosts, clock: Clock, *, boot_seconds: float = 0.0) -> Iterator[Stage]:
    """Open a market of one's own; whatever is played there, nothing may be left rented or running at the end."""
    with VastEmulator(hosts, boot_seconds=boot_seconds, clock=lambda: clock.now().timestamp()) as market:
        opened = Stage(market, bucket, clock)
        yield opened
        opened.world.client._http.close()
        left = market.instances
        market.settle()
    assert not left, [row["label"] for row in left]
    if isinstance(hosts, WatchedHosts):
        assert not find_processes(f"{hosts.root}/")


@dataclass
class Machine:
    """A machine that was brought up: what Pulumi's state would hold of it."""

    stage: Stage
    id: int
    request: MachineRequest
    outputs: dict[str, Any]

    @property
    def instance(self) -> Instance:
        """The market's row of it."""
        return next(instance for instance in self.stage.show() if instance.id == self.id)

    @property
    def phase(self) -> Phase | None:
        """What its label says it is doing."""
        return self.instance.parsed.phase if self.instance.parsed else None

    def read(self) -> dict[str, Any] | None:
        """Look as a refresh does, and remember it."""
        found = lifecycle.read(self.stage.world, self.id, self.request, self.outputs)
        self.outputs = found if found is not None else self.outputs
        return found

    def update(self, request: MachineRequest) -> None:
        """Change it as the resource does; what fails leaves the state as it was."""
        key = self.outputs["ssh_host_key"]
        world, store = self.stage.world, self.stage.bucket.store
        outputs = lifecycle.update(world, store, self.id, self.request, request, key)
        self.request, self.outputs = request, {**request.to_props(), **outputs}

    def delete(self) -> None:
        """Give it back."""
        lifecycle.delete(self.stage.world, self.id, self.request)

    def verdict(self, request: MachineRequest | None = None) -> str:
        """Say what the engine would do about it: `unchanged`, `update` or `replace`."""
        diff = VastInstanceProvider().diff(str(self.id), self.outputs, (request or self.request).to_props())
        return "replace" if diff.replaces else "update" if diff.changes else "unchanged"


def assert_receipts_equal_the_ledger(stage: Stage) -> None:
    """What was told at each destroy is what the market's books say, to 0.0001 USD."""
    told = {int(m[1]): float(m[2]) for m in map(RECEIPT.match, stage.said) if m}
    ledger = {row["id"]: sum(row["usd"].values()) for row in stage.market.ledger()["instances"]}
    assert told == pytest.approx(ledger, abs=1e-4)
