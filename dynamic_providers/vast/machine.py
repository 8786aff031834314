"""What the lifecycle does on a machine itself: look, bring up, drain, keep what was compiled."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from bootstrap import cache, ready, run
from bootstrap.steps import Engine, Grant, Identity, Remaining, Supplies
from dynamic_providers.errors import MismatchError, StackError
from dynamic_providers.lease import keys
from dynamic_providers.lease.label import Label
from dynamic_providers.lease.policy import GRACE
from dynamic_providers.store.binaries import CADDY, VMAGENT
from dynamic_providers.store.startup_cache import (
    CacheKey,
    Kept,
    SpoiltCacheError,
    drop_cache,
    find_cache,
    keep_cache,
)
from dynamic_providers.vast.boot import TELL_SECONDS, Boot
from dynamic_providers.vast.models import GPUS, SSH, VRAM_TOLERANCE, Instance
from dynamic_providers.vast.rent import World
from dynamic_providers.vast.request import MachineRequest
from dynamic_providers.vast.supply import Supply

if TYPE_CHECKING:  # asyncssh and x509 take half a second to import: only when a machine is really logged in to
    from bootstrap.ssh import Machine

DOOR_PATIENCE = timedelta(seconds=5)
"""For a courtesy that money and state do not wait for."""
CONTROL_PATIENCE = timedelta(seconds=10)
"""For a question to the agent, which looks at engine and door before it answers: three seconds each if they hang."""
DRAIN = timedelta(minutes=1)
"""What `pulumi destroy` grants to running requests."""
ARMED_PATIENCE = timedelta(seconds=30)
"""The agent had the whole boot to reach the market; a market that is away just now must not cost a machine."""


@dataclass(frozen=True)
class Tenant:
    """Who moves in: a machine, what it is to serve, and by which lease.

    Attributes:
        label: What the machine will carry once it is ready.
        until: The lease's end while it is being changed: never before the one that it has.
        host_key: The machine's SSH key as it was first seen; None on the first connection, which pins it.
    """

    request: MachineRequest
    instance: Instance
    label: Label
    until: datetime
    host_key: str | None = None

    @property
    def endpoint(self) -> str:
        """The front door, as clients reach it."""
        return f"https://{self.instance.address}:{self.instance.door_port}"


async def bootstrap(supply: Supply, tenant: Tenant, identity: Identity, engine: Engine, boot: Boot) -> tuple[str, bool]:
    """Bring the model server up, have it make one token, and leave the machine to itself.

    Returns:
        The machine's host key, and whether it is armed: able to end its own rental.
    """
    request, instance = tenant.request, tenant.instance
    async with await _log_in(request, instance, tenant.host_key, boot.left("ssh")) as machine:
        gpus = await _verify_gpus(machine, request)
        boot.done("ssh", f"{instance.address}:{instance.ports[SSH]}, {gpus}")
        supplies = _supplies(boot.world, supply, request, instance, engine)
        remaining = _remaining(boot.world, tenant.label, tenant.until)
        applied = await run.apply(machine, engine, identity, supplies, remaining, left=boot.left, report=boot.tell)
        for phase in ("weights", "engine"):
            boot.done(phase, seconds=applied.phases[phase])
        if applied.cache_refused:
            _drop_cache(boot.world, supply, cache_key(request, instance, engine), applied.cache_refused)
        elif supplies.cache:
            boot.world.say(
                f"start-up cache: {supplies.cache.size / 1e6:.1f} MB of machine {instance.machine_id} put back"
            )
        await _first_token(tenant, identity, engine, boot)
        remaining = _remaining(boot.world, tenant.label, tenant.label.expires_at)
        state = await run.hand_over(machine, remaining, boot.provisioning(), patience=ARMED_PATIENCE)
        return machine.host_key, _tell_armed(boot.world, state)


async def _first_token(tenant: Tenant, identity: Identity, engine: Engine, boot: Boot) -> None:
    await ready.first_token(
        tenant.endpoint,
        tenant.request.fleet.ca_certificate,
        identity.tokens[tenant.request.model.clients[0]],
        engine.served_name,
        deadline=boot.left("first token"),
        embeds=engine.embeds,
    )
    boot.done("first token", tenant.endpoint)


def _remaining(world: World, label: Label, until: datetime) -> Remaining:
    """Return what the machine is told of its lease, by the market's clock."""
    now, nothing = world.client.now(), timedelta(0)
    return Remaining(
        lease=max(until - now, nothing),
        boot=max(label.deadline - now, nothing),
        idle=timedelta(minutes=label.idle_minutes),
        grace=GRACE,
    )


def _tell_armed(world: World, state: Mapping[str, Any]) -> bool:
    if state.get("armed"):
        return True
    why = state.get("unarmed_because") or "it does not say why"
    world.say(
        f"NOT ARMED: the machine cannot reach the market with its own key ({why}), and so cannot end its own rental.\n"
        "  The reaper and `pulumi destroy` still can; do not leave it alone without either"
    )
    return False


def _supplies(world: World, supply: Supply, request: MachineRequest, instance: Instance, engine: Engine) -> Supplies:
    """Sign for everything that the machine fetches."""
    programs = [CADDY, *([VMAGENT] if engine.monitoring and supply.has_vmagent else [])]
    urls = supply.presigner.urls([*(pin.sha256 for pin in programs), *(file.sha256 for file in engine.files)])
    grants = {pin: Grant(pin.sha256, pin.size, urls[pin.sha256]) for pin in programs}
    kept = _find_cache(world, supply, cache_key(request, instance, engine)) if engine.startup_cache else None
    return Supplies(
        caddy=grants[CADDY],
        blobs={file.sha256: Grant(file.sha256, file.size, urls[file.sha256]) for file in engine.files},
        vmagent=grants.get(VMAGENT),
        fresh_urls=supply.presigner.urls,
        cache=kept,
    )


async def keep_startup_cache(
    world: World, supply: Supply, request: MachineRequest, instance: Instance, host_key: str, engine: Engine
) -> None:
    """Have a machine that serves put what its engine compiled into the bucket, unless that is there.

    What goes wrong is told and costs the next start of this machine a minute.
    """
    key = cache_key(request, instance, engine)
    try:
        if find_cache(supply.store, key):
            return
        async with await _log_in(request, instance, host_key, DOOR_PATIENCE) as machine:
            packed = await cache.pack(machine, engine)
            await cache.send(machine, packed, supply.presigner.write(key.archive, packed.size, packed.md5))
        # What is put whole, and not encrypted for us, is marked by its MD5: Hetzner encrypts for nobody.
        keep_cache(supply.store, key, Kept(packed.size, packed.sha256, b64decode(packed.md5).hex()))
    except (cache.CacheError, StackError) as error:
        world.say(f"start-up cache not kept: {error}")
    else:
        world.say(f"start-up cache: {packed.size / 1e6:.1f} MB kept for machine {key.machine_id}")


def cache_key(request: MachineRequest, instance: Instance, engine: Engine) -> CacheKey:
    """Return what the engine's compile caches on this machine depend on."""
    return CacheKey(
        machine_id=instance.machine_id,
        image=request.image,
        gpu=f"{instance.gpu_count} × {instance.gpu}",
        compiled=engine.compile_hash(),
    )


def _find_cache(world: World, supply: Supply, key: CacheKey) -> Grant | None:
    """Return where the machine's own cache comes from, if it has one."""
    try:
        try:
            kept = find_cache(supply.store, key)
        except SpoiltCacheError as error:
            _drop_cache(world, supply, key, error)
            return None
        urls = supply.presigner.read([key.archive]) if kept else {}
    except StackError as error:  # it would have saved a minute; it must not cost the machine
        world.say(f"start-up cache not used: {error}")
        return None
    return Grant(kept.sha256, kept.size, urls[key.archive]) if kept else None


def _drop_cache(world: World, supply: Supply, key: CacheKey, why: object) -> None:
    world.say(f"start-up cache of machine {key.machine_id} dropped: {why}")
    with suppress(StackError):  # what is left of it is never believed
        drop_cache(supply.store, key)


async def drain(world: World, request: MachineRequest, instance: Instance) -> None:
    """Let the machine finish what it is answering; one that does not answer at its front door is not waited for."""
    endpoint = f"https://{instance.address}:{instance.door_port}"
    told: float | None = None

    def report(left: int | None) -> None:
        nonlocal told
        now = world.clock.monotonic()
        if told is None or now - told >= TELL_SECONDS:
            told = now
            world.say(f"instance {instance.id}: draining, {'some' if left is None else left} request(s) still running")

    control = ready.Control(endpoint, request.fleet.ca_certificate, control_token(request, instance.id))
    await control.drain(deadline=DRAIN, timeout=CONTROL_PATIENCE, report=report)


def control_token(request: MachineRequest, instance_id: int) -> str:
    """Return what opens a machine's control endpoints."""
    return keys.control_token(request.fleet.observe, request.uid, instance_id)


async def _verify_gpus(machine: Machine, request: MachineRequest) -> str:
    """Compare what the machine's own driver says with what was asked, before a byte of weights is sent."""
    need = request.need
    gpus = await run.inspect_gpus(machine)
    said = ", ".join(f"{gpu.name} ({gpu.memory_mib} MiB)" for gpu in gpus) or "no GPU"
    fitting = [
        gpu
        for gpu in gpus
        if gpu.memory_mib / 1024 >= need.min_vram_gib * VRAM_TOLERANCE
        and any(GPUS[name].is_reported_as(gpu.name) for name in need.gpus)
    ]
    if len(fitting) != need.gpu_count or len(gpus) != need.gpu_count:
        raise MismatchError(f"the machine itself reports {said}, asked was {need.gpu_count} × {' or '.join(need.gpus)}")
    return said


async def _log_in(request: MachineRequest, instance: Instance, host_key: str | None, deadline: timedelta) -> Machine:
    from bootstrap import ssh

    private, _ = ssh_keypair(request)
    target = ssh.Target(instance.address, instance.ports[SSH], client_key=private, host_key=host_key)
    return await ssh.connect(target, deadline=deadline)


def ssh_keypair(request: MachineRequest) -> tuple[str, str]:
    """Return the private and the public key that the machine lets in."""
    from dynamic_providers.lease.certificates import ssh_keypair

    return ssh_keypair(request.fleet.sign, request.uid)


def identity_of(request: MachineRequest, instance: Instance, label: Label) -> Identity:
    """Return the machine's own secrets; all derive from the fleet, the lease and this one rental."""
    from dynamic_providers.lease.certificates import sign_leaf

    fleet, uid = request.fleet, request.uid
    leaf = sign_leaf(
        fleet.sign,
        fleet.ca_certificate,
        uid=uid,
        instance_id=instance.id,
        address=instance.address,
        expires_at=label.expires_at,
    )
    return Identity(
        instance_id=str(instance.id),
        certificate=leaf.certificate,
        private_key=leaf.private_key,
        tokens={name: keys.client_token(fleet.sign, uid, instance.id, name) for name in request.model.clients},
        scrape_token=keys.scrape_token(fleet.observe, uid, instance.id),
        control_token=control_token(request, instance.id),
        machine_id=str(instance.machine_id),
        uid=uid,
        stack=request.stack,
        usd_per_hour=instance.usd_per_hour,
        ca_certificate=fleet.ca_certificate,
    )
