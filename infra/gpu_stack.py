"""`kind: gpu`: one machine that serves one model."""

from typing import Any

import pulumi

from dynamic_providers.credentials import ReadConfig, open_store, vast_client
from dynamic_providers.errors import ConfigError, StackError
from dynamic_providers.lease.monitoring import WriteTarget
from dynamic_providers.store.address import StoreAddress
from dynamic_providers.store.manifest import Manifest, ModelRef
from dynamic_providers.vast.offers import render_survey, require_offer
from dynamic_providers.vast.rent import World, mismatches, survey_market
from dynamic_providers.vast.request import FleetKeys, MachineRequest, ModelRequest, misfits
from dynamic_providers.vast.resource import Fleet, Lease, VastInstance
from infra.membership import Membership, read_platform
from infra.settings import GpuSettings

_NOBODY = FleetKeys(id="", ca_certificate="", sign="", observe="")
"""Stands where a fleet's keys are not known yet."""


def gpu_stack(settings: GpuSettings, read_config: ReadConfig) -> None:
    """Declare fleet, lease and machine, and export what their users need.

    Args:
        settings: The stack file.
        read_config: The same file's secrets.

    Raises:
        StackError: Key, platform, bucket or model are missing, or the model fits no machine of the need.
    """
    market = vast_client(read_config)
    member = read_platform(settings.platform) if settings.platform else None
    store = _store(settings, member)
    manifest = open_store(store, read_config).resolve(ModelRef.parse(settings.model.ref))
    request = _request(settings, store, member.monitoring if member else None, manifest)
    if problems := misfits(request, manifest.facts):
        raise ConfigError(problems)
    fleet = _fleet(member)
    lease = Lease("lease", fleet["fleet_id"])
    if pulumi.runtime.is_dry_run():
        world = World(market, pulumi.log.info)
        pulumi.Output.all(fleet["fleet_id"], lease.uid).apply(
            lambda known: _show_market(world, request, known), run_with_unknowns=True
        )
    machine = VastInstance("machine", request.to_props() | fleet | {"uid": lease.uid})
    _export(fleet["ca_certificate"], machine, request)


def _store(settings: GpuSettings, member: Membership | None) -> StoreAddress:
    store = member.store if member else settings.store
    if store is None:
        raise ConfigError(["store: missing, and no platform that brings one"])
    return store


def _fleet(member: Membership | None) -> dict[str, pulumi.Input[str]]:
    """Return the platform's fleet, or declare the stack's own."""
    if member is None:
        return {**Fleet("fleet").to_props()}
    return {
        "fleet_id": member.fleet.id,
        "ca_certificate": member.fleet.ca_certificate,
        "sign": pulumi.Output.secret(member.fleet.sign),
        "observe": pulumi.Output.secret(member.fleet.observe),
    }


def _request(
    settings: GpuSettings, store: StoreAddress, monitoring: WriteTarget | None, manifest: Manifest
) -> MachineRequest:
    """Return what is asked of the machine, with the release that the model's name stands for right now."""
    model = ModelRequest(
        release=str(manifest.ref),
        size_bytes=manifest.bytes_total,
        served_name=settings.model.served_name,
        max_model_len=settings.model.max_model_len,
        vllm_args=settings.model.vllm_args,
        clients=settings.clients,
        startup_cache=settings.model.startup_cache,
    )
    return MachineRequest(
        stack=pulumi.get_stack(),
        uid="",
        fleet=_NOBODY,
        need=settings.need,
        image=settings.image,
        model=model,
        terms=settings.lease,
        store=store,
        monitoring=monitoring,
    )


def _show_market(world: World, request: MachineRequest, known: list[Any]) -> None:
    """Tell in a preview what an update would rent; nothing where this lease has a machine that will do."""
    fleet_id, uid = known  # not texts, but Pulumi's word for unknown, before the first update
    try:
        mine = [i for i in world.market.list() if i.belongs_to(str(fleet_id), str(uid))]
        if any(not i.is_stopped and not mismatches(i, request) for i in mine):
            return
        survey = survey_market(world, request)
        require_offer(survey)
        world.say("\n".join(["the market now:", *render_survey(survey)]))
    except StackError as error:
        raise pulumi.RunError(str(error)) from error


def _export(ca_certificate: pulumi.Input[str], machine: VastInstance, request: MachineRequest) -> None:
    first = {
        "endpoint": machine.endpoint,
        "model": request.model.served_name,
        "model_digest": request.model.release.rpartition("@")[2],
        "instance_id": machine.instance_id,
        "usd_per_hour": machine.usd_per_hour,
        "phases": machine.phases,
        "attempts": machine.attempts,
        "expires_at": machine.expires_at,
        "armed": machine.armed,
    }
    pulumi.export("machines", [first])
    for name, value in first.items():
        pulumi.export(name, value)
    pulumi.export("ca_certificate", ca_certificate)
    pulumi.export("client_token", pulumi.Output.secret(machine.client_token))
    pulumi.export("tokens", pulumi.Output.secret(machine.tokens))
