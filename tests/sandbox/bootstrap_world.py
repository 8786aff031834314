"""One rented host, a bucket and the bootstrap: real SSH, supervisor, Caddy and TLS; the model server is the stub."""

import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from bootstrap import ready, run
from bootstrap.onstart import render_onstart
from bootstrap.ssh import Target, connect
from bootstrap.steps import (
    Applied,
    Engine,
    FreshUrls,
    Grant,
    Identity,
    ModelFile,
    Remaining,
    Supplies,
)
from dynamic_providers.lease.certificates import make_ca, sign_leaf, ssh_keypair
from dynamic_providers.store.binaries import CADDY, Binary, find_binary
from tests.sandbox.blob_server import BlobServer
from tests.sandbox.hosts.backend import SshHosts
from tests.sandbox.vast.hosts import Gpu, HostSpec

SIGN = "11" * 32
NOW = datetime.now(UTC)
CA = make_ca(SIGN, NOW)
PRIVATE, PUBLIC = ssh_keypair(SIGN, "uid0")
TOKEN, SCRAPE, CONTROL = "client-token-1", "scrape-token-1", "control-token-1"
DEADLINES = {"weights": timedelta(seconds=30), "engine": timedelta(seconds=30)}
SOON = timedelta(seconds=20)
HOUR = timedelta(hours=1)
REMAINING = Remaining(lease=HOUR, boot=HOUR, idle=HOUR, grace=HOUR)


@dataclass
class World:
    """A rented host, a bucket, and what is to run."""

    hosts: SshHosts
    folder: Path
    spec: HostSpec
    address: str
    ssh_port: int
    endpoint: str
    store: BlobServer
    engine: Engine
    identity: Identity
    caddy: Grant
    told: list[tuple[str, str]]
    vmagent: Grant | None = None

    def target(self, host_key: str | None = None) -> Target:
        return Target(self.address, self.ssh_port, PRIVATE, host_key)

    def grants(self, engine: Engine) -> dict[str, Grant]:
        return {f.sha256: Grant(f.sha256, f.size, self.store.url(f.sha256)) for f in engine.files}

    @property
    def root(self) -> Path:
        """Where everything of ours lies."""
        return self.folder / "w/gpu-on-demand"

    async def apply(
        self,
        engine: Engine | None = None,
        deadlines: Mapping[str, timedelta] = DEADLINES,
        fresh_urls: FreshUrls | None = None,
    ) -> Applied:
        engine = engine or self.engine
        supplies = Supplies(self.caddy, self.grants(engine), self.vmagent, fresh_urls)
        async with await connect(self.target(), deadline=SOON) as machine:
            return await run.apply(
                machine,
                engine,
                self.identity,
                supplies,
                REMAINING,
                left=deadlines.__getitem__,
                report=lambda *told: self.told.append(told),
            )

    @property
    def control(self) -> ready.Control:
        return ready.Control(self.endpoint, CA, CONTROL)

    async def sh(self, command: str) -> str:
        async with await connect(self.target(), deadline=SOON) as machine:
            return (await machine.run(f'cd "$GPU_WORKSPACE/gpu-on-demand/run" && {command}')).stdout

    async def pids(self) -> dict[str, int]:
        status = json.loads(await self.sh("echo '[\"status\"]' | python3 ../bundle/host/machine.py"))
        return {name: program["pid"] for name, program in status["programs"].items() if program["pid"]}

    def client(self) -> httpx.AsyncClient:
        context = ssl.create_default_context(cadata=CA)
        return httpx.AsyncClient(base_url=self.endpoint, verify=context, trust_env=False)

    async def ask(self, method: str, path: str, token: str | None = TOKEN, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with self.client() as client:
            return await client.request(method, path, headers=headers | more.pop("headers", {}), **more)

    async def first_token(
        self, token: str = TOKEN, deadline: timedelta = SOON, *, served_name: str = "", ca: str = CA
    ) -> float:
        name = served_name or self.engine.served_name
        embeds = self.engine.embeds
        return await ready.first_token(self.endpoint, ca, token, name, deadline=deadline, embeds=embeds)


@asynccontextmanager
async def a_world(tmp_path: Path, store: BlobServer, model: Path) -> AsyncIterator[World]:
    # Deeper than a unix socket's 107 bytes, as a workspace may well be.
    root = tmp_path / ("a-workspace-that-lies-deep-" * 4)
    tools = Path(__file__).parent / "vllm_stub"
    hosts = SshHosts(root, tools, {"STUB_START_SECONDS": "0.3"})
    spec = HostSpec(
        instance_id=7,
        gpus=(Gpu("NVIDIA GeForce RTX 4090", 24564, 8.9),),
        onstart=render_onstart(HOUR, HOUR, NOW + HOUR),
        env={},
        tcp_ports=(22, 8443),
        api_key="the-machines-own-key",
        market_url="http://127.0.0.1:9",
        authorized_keys=(PUBLIC,),
    )
    try:
        address = await hosts.start(spec)
        leaf = sign_leaf(SIGN, CA, uid="uid0", instance_id=7, address=address.ip, expires_at=NOW + timedelta(hours=1))
        yield World(
            hosts,
            root / "7",
            spec,
            address.ip,
            address.ports[22],
            f"https://{address.ip}:{address.ports[8443]}",
            store,
            Engine("tiny@sha256:" + "ab" * 32, "tiny", put_model(store, model), max_model_len=2048),
            Identity(
                "7",
                leaf.certificate + CA,
                leaf.private_key,
                {"default": TOKEN},
                SCRAPE,
                CONTROL,
                machine_id="55",
                uid="uid0",
                stack="gpu-on",
                usd_per_hour=0.41,
                ca_certificate=CA,
            ),
            put_program(store, CADDY),
            [],
        )
    finally:
        await hosts.close()


def put(store: BlobServer, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    store.blobs[digest] = content
    return digest


def put_model(store: BlobServer, folder: Path) -> tuple[ModelFile, ...]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple(
        ModelFile(str(path.relative_to(folder)), path.stat().st_size, put(store, path.read_bytes())) for path in paths
    )


def put_program(store: BlobServer, pin: Binary) -> Grant:
    content = find_binary(pin).read_bytes()
    digest = put(store, content)
    return Grant(digest, len(content), store.url(digest))
