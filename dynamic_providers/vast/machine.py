"""What the lifecycle does on a machine itself, over SSH: look, bring up, shut the door, keep what was compiled."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from bootstrap import cache, run
from bootstrap.steps import Deadlines, Engine, Grant, Identity
from dynamic_providers.errors import MismatchError, StackError
from dynamic_providers.lease import keys
from dynamic_providers.lease.label import Label
from dynamic_providers.store.binaries import CADDY
from dynamic_providers.store.startup_cache import (
    CacheKey,
    Kept,
    SpoiltCacheError,
    drop_cache,
    find_cache,
    keep_cache,
)
from dynamic_providers.vast.boot import Boot
from dynamic_providers.vast.models import GPUS, SSH, VRAM_TOLERANCE, Instance
from dynamic_providers.vast.rent import World
from dynamic_providers.vast.request import MachineRequest
from dynamic_providers.vast.supply import Supply

if TYPE_CHECKING:  # asyncssh and x509 take half a second to import: only when a machine is really logged in to
    from bootstrap.ssh import Machine

DOOR_PATIENCE = timedelta(seconds=5)
"""For a courtesy (shutting the door, asking what is applied) that money and state do not wait for."""


async def bootstrap(
    supply: Supply,
    request: MachineRequest,
    instance: Instance,
    host_key: str | None,
    identity: Identity,
    engine: Engine,
    boot: Boot,
) -> str:
    """Bring the model server up; return the machine's host key."""
    urls = supply.presigner.urls([CADDY.sha256, *(file.sha256 for file in engine.files)])
    blobs = {file.sha256: Grant(file.sha256, file.size, urls[file.sha256]) for file in engine.files}
    caddy = Grant(CADDY.sha256, CADDY.size, urls[CADDY.sha256])
    key = cache_key(request, instance, engine)
    async with await _log_in(request, instance, host_key, boot.left("ssh")) as machine:
        gpus = await _verify_gpus(machine, request)
        boot.done("ssh", f"{instance.address}:{instance.ports[SSH]}, {gpus}")
        kept = _find_cache(boot.world, supply, key) if engine.startup_cache else None
        limits = Deadlines(weights=boot.left("weights"), engine=boot.left("engine"))
        applied = await run.apply(
            machine,
            engine,
            identity,
            caddy,
            blobs,
            deadlines=limits,
            report=boot.tell,
            fresh_urls=supply.presigner.urls,
            cache=kept,
        )
        for phase in ("weights", "engine"):
            boot.done(phase, seconds=applied.phases[phase])
        if applied.cache_refused:
            _drop_cache(boot.world, supply, key, applied.cache_refused)
        elif kept:
            boot.world.say(f"start-up cache: {kept.size / 1e6:.1f} MB of machine {key.machine_id} put back")
        return machine.host_key


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


async def shut_door(request: MachineRequest, instance: Instance, host_key: str | None) -> None:
    """Shut the front door, within `DOOR_PATIENCE`."""
    async with asyncio.timeout(DOOR_PATIENCE.total_seconds()):
        async with await _log_in(request, instance, host_key, DOOR_PATIENCE) as machine:
            await run.close_door(machine)


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
        control_token=keys.control_token(fleet.observe, uid, instance.id),
    )
