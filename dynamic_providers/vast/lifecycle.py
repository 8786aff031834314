"""A machine's life: create, update, delete, read. Knows nothing of Pulumi; a gateway may call it one day.

create   adopt or rent; wait; connect; bootstrap; one real token; the machine looks after itself from then on;
         a host that fails is given back, the next is taken
update   label to booting; apply, the door shut while the engine changes; one real token; label to ready;
         on failure the former settings come back
delete   drain; destroy, verified; receipt
read     gone only on a definite answer; else whether it runs, and the settings that the machine itself reports
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

from bootstrap import ready
from bootstrap.onstart import render_onstart
from bootstrap.steps import Engine, ModelFile
from dynamic_providers.errors import (
    BootError,
    BootstrapError,
    ConfigError,
    HostError,
    NoOfferError,
    StackError,
    StoppedError,
)
from dynamic_providers.lease.label import Label, Phase
from dynamic_providers.lease.policy import GRACE
from dynamic_providers.store.client import Store
from dynamic_providers.store.manifest import Manifest
from dynamic_providers.vast.boot import Boot, Lost, is_reachable, wait_until_running
from dynamic_providers.vast.machine import (
    CONTROL_PATIENCE,
    Tenant,
    bootstrap,
    control_token,
    drain,
    identity_of,
    keep_startup_cache,
    ssh_keypair,
)
from dynamic_providers.vast.models import Instance
from dynamic_providers.vast.rent import (
    World,
    adopt,
    give_back,
    give_back_twins,
    given_back_on_error,
    new_label,
    read_back,
    rent,
)
from dynamic_providers.vast.request import MachineRequest
from dynamic_providers.vast.supply import Supply, open_supply

Result = TypeVar("Result")

STOP_LOOK_SECONDS = 0.25
"""Between looks whether a run that works over SSH is still wanted."""


def engine_of(request: MachineRequest, manifest: Manifest | None = None) -> Engine:
    """Return what the machine is to serve. Its hash needs no manifest: the release's digest stands for it."""
    model = request.model
    files = tuple(ModelFile(file.path, file.size, file.sha256) for file in manifest.files) if manifest else ()
    return Engine(
        release=model.release,
        served_name=model.served_name,
        files=files,
        vllm_args=model.vllm_args,
        max_model_len=model.max_model_len,
        gpu_count=request.need.gpu_count,
        clients=model.clients,
        startup_cache=model.startup_cache,
        allow=manifest.allow if manifest else (),
        monitoring=request.monitoring,
    )


def create(world: World, store: Store, request: MachineRequest) -> tuple[str, dict[str, Any]]:
    """Bring a machine up; return (instance id, outputs).

    Raises:
        StackError: Nothing is left rented, or the error is a LeakError that says so.
    """
    supply = open_supply(world, store, request)  # before any money
    avoid: set[int] = set()
    failure: HostError | None = None
    lost = Lost(world.clock.monotonic())
    for attempt in range(1, request.terms.attempts + 1):
        boot = Boot(world, request.terms.boot_minutes, lost)
        try:
            rental = adopt(world, request) or rent(world, request, _onstart(world, request), avoid)
        except NoOfferError as error:
            text = f"{error}\n  before that: {failure}" if failure else str(error)
            raise NoOfferError(text, error.turned_away) from error
        if rental.has_served:
            boot.lost = None  # it was told how it came up when it did
        try:
            with given_back_on_error(world, rental):
                instance = read_back(world, request, rental)
                outputs = _bring_up(world, supply, request, instance, rental.label, boot)
                give_back_twins(world, request, keep=instance.id)
                return str(instance.id), outputs | {"attempts": attempt}
        except HostError as error:
            avoid.add(rental.machine_id)
            failure = error
            lost.book(error, boot)
    raise BootError(
        getattr(failure, "phase", "verify"),
        f"none of {request.terms.attempts} machines came up; the last one: {failure}\n"
        "  raise lease.attempts or lease.boot_minutes, or loosen need, then run this again",
    ) from failure


def update(
    world: World, store: Store, instance_id: int, olds: MachineRequest, news: MachineRequest, host_key: str | None
) -> dict[str, Any]:
    """Change what a running machine serves; return its outputs. Never destroys.

    Raises:
        StackError: The former settings serve again, or the error says that they do not.
    """
    supply = open_supply(world, store, news)
    instance = world.client.show_instance(instance_id)
    if instance is None or instance.status != "running":
        raise BootError("engine", f"instance {instance_id} does not run now: run `pulumi up` again to replace it")
    old_label = _label_of(world, instance, olds)
    longer = timedelta(hours=news.terms.max_hours - olds.terms.max_hours)
    label = replace(new_label(world, news), expires_at=old_label.expires_at + longer)
    if label.expires_at <= world.client.now():
        raise ConfigError(
            [f"lease.max_hours: {news.terms.max_hours:g} h are over already; write more, or run: pulumi destroy"]
        )
    try:
        boot = Boot(world, news.terms.boot_minutes)
        return _bring_up(world, supply, news, instance, label, boot, host_key)
    except StoppedError as error:
        raise StoppedError(
            f"{error.reason}; the change is half done: run `pulumi up` again before {label.deadline:%H:%M} UTC, and it"
            " goes on; later the machine ends its own rental"
        ) from error
    except StackError as error:
        world.say(f"the change failed ({_first_line(error)}): putting the former settings back")
        # With a deadline of its own: by the spent one the machine would end itself while the model loads.
        back = replace(new_label(world, olds), expires_at=old_label.expires_at, idle_minutes=old_label.idle_minutes)
        try:
            boot = Boot(world, olds.terms.boot_minutes)
            _bring_up(world, open_supply(world, store, olds), olds, instance, back, boot, host_key)
        except StackError as second:
            raise BootstrapError(
                "update",
                f"{error}\nand the former settings do not come back either: {second}\n"
                f"  mend the stack file and run `pulumi up` before {back.deadline:%H:%M} UTC, when the machine ends its"
                " own rental, or give it back with `pulumi destroy`",
            ) from error
        world.say("the former settings serve again")
        raise


def delete(world: World, instance_id: int, request: MachineRequest) -> None:
    """Drain, destroy, verify, print the receipt.

    Raises:
        LeakError: It may still be billed.
    """
    world.stop.check()
    instance = world.client.show_instance(instance_id)
    if instance is not None and is_reachable(instance):
        # Best effort: a host that does not answer is no reason to pay for it any longer.
        asyncio.run(_unless_stopped(world, drain(world, request, instance)))
    give_back(world, instance or instance_id)


def read(world: World, instance_id: int, request: MachineRequest, olds: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the outputs as they are now, None if the instance is definitely gone."""
    instance = world.client.show_instance(instance_id)
    if instance is None:
        # The read of one instance may lag; a complete list that lacks it as well is an answer.
        instance = next((i for i in world.market.list() if i.id == instance_id), None)
    if instance is None:
        return None
    label = instance.parsed
    is_ready = label is not None and label.phase is Phase.READY and instance.belongs_to(request.fleet.id, request.uid)
    outputs = dict(olds) | {"is_stopped": instance.is_stopped, "is_ready": is_ready}
    if not instance.is_stopped:
        token = control_token(request, instance_id)
        control = ready.Control(str(olds["endpoint"]), request.fleet.ca_certificate, token)
        state = asyncio.run(control.read(timeout=CONTROL_PATIENCE))
        if state is not None:  # unreachable is unknown, and unknown changes nothing
            outputs |= {"applied": _applied(world, instance_id, state), "armed": bool(state.get("armed"))}
    return outputs


def _bring_up(
    world: World,
    supply: Supply,
    request: MachineRequest,
    instance: Instance,
    label: Label,
    boot: Boot,
    host_key: str | None = None,
) -> dict[str, Any]:
    """Take an instance from wherever it is to ready; return its outputs.

    Args:
        world: The market.
        supply: Where weights and front door come from.
        request: What is to serve there.
        instance: Ours, in any state of coming up.
        label: What it carries while booting; its expiry is the lease's.
        boot: Deadlines.
        host_key: The machine's, as it was first seen; None on the first connection, which pins it.
    """
    # The longer of two expiries first, the shorter last: no moment at which the machine outlives its own certificate.
    expires = max(label.expires_at, instance.parsed.expires_at if instance.parsed else label.expires_at)
    booting = replace(label, expires_at=expires)
    if instance.label != booting.render():
        world.market.relabel(instance.id, booting.render())
    world.client.attach_ssh_key(instance.id, ssh_keypair(request)[1])
    instance = wait_until_running(world, instance, boot)
    identity = identity_of(request, instance, label)
    engine = engine_of(request, supply.manifest)
    tenant = Tenant(request, instance, label, expires, host_key)
    work = bootstrap(supply, tenant, identity, engine, boot)
    host_key, is_armed = asyncio.run(_unless_stopped(world, work))
    world.market.relabel(instance.id, label.ready().render())
    if engine.startup_cache:
        asyncio.run(_unless_stopped(world, keep_startup_cache(world, supply, request, instance, host_key, engine)))
    return {
        **request.to_props(),
        "instance_id": str(instance.id),
        "endpoint": tenant.endpoint,
        "usd_per_hour": round(instance.usd_per_hour, 6),
        "disk_gb": instance.disk_gb,
        "phases": boot.phases,
        "attempts": 1,
        "expires_at": label.expires_at.isoformat(),
        "applied": engine.settings_hash(),
        "is_stopped": False,
        "is_ready": True,
        "armed": is_armed,
        "ssh_host_key": host_key,
        "client_token": identity.tokens[request.model.clients[0]],
        "tokens": dict(identity.tokens),
    }


def _applied(world: World, instance_id: int, state: Mapping[str, Any]) -> str:
    """Return the hash of what serves; `None` if nothing does, and the next `up` is to start it anew."""
    if ending := state.get("ending"):
        world.say(f"instance {instance_id} is ending its own rental: {ending}")
    engine = state.get("engine") or {}
    if engine.get("state") == "unhealthy":
        world.say(f"instance {instance_id}: its engine was given up: {engine.get('message')}")
        return "None"
    return str(state.get("settings"))


def _onstart(world: World, request: MachineRequest) -> str:
    """Return the script of a container that is rented now."""
    boot = timedelta(minutes=request.terms.boot_minutes)
    # An agent that ends is back within seconds: however long people may idle, it is dead after an hour's silence.
    stale = min(timedelta(minutes=request.terms.idle_minutes), timedelta(hours=1)) + GRACE
    return render_onstart(boot, stale, world.client.now() + boot)


def _label_of(world: World, instance: Instance, request: MachineRequest) -> Label:
    """Return the label of a machine of this lease, or what it was before somebody spoilt it."""
    label = instance.parsed
    if label is not None and instance.belongs_to(request.fleet.id, request.uid):
        return label
    # The lease began with the rent: to spoil a label must not make it last longer.
    expires_at = instance.started_at.replace(microsecond=0) + timedelta(hours=request.terms.max_hours)
    return replace(new_label(world, request), phase=Phase.READY, expires_at=expires_at)


async def _unless_stopped(world: World, work: Coroutine[Any, Any, Result]) -> Result:
    """Return what *work* gives, or break it off as soon as the run is not wanted any more."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            world.stop.check()
            await asyncio.wait({task}, timeout=STOP_LOOK_SECONDS)
    finally:
        task.cancel()
    return await task


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0]
