"""`kind: platform`: what a team's gpu stacks share."""

from pathlib import Path

import pulumi
from pulumi import ResourceOptions

from dynamic_providers.store.address import StoreAddress
from dynamic_providers.store.resource import Bucket, Model
from dynamic_providers.vast.resource import Fleet
from infra.membership import OUTPUT, render_fleet
from infra.model_settings import ModelSource
from infra.platform_settings import BucketSettings, PlatformSettings


def platform_stack(settings: PlatformSettings) -> None:
    """Declare fleet and bucket, and export what gpu stacks need of them."""
    fleet = Fleet("fleet")
    bucket = _bucket(settings.bucket, fleet)
    address = settings.bucket.address
    pulumi.export(OUTPUT, render_fleet(fleet.to_props(), address, settings.monitoring))
    pulumi.export("bucket", address.bucket)
    pulumi.export("unsupported", bucket.unsupported)
    pulumi.export("models", {model.name: _model(model, address, bucket).release for model in settings.models})


def _bucket(settings: BucketSettings, fleet: Fleet) -> Bucket:
    asked = {
        "store": settings.address.to_props(),
        "stack": pulumi.get_stack(),
        "fleet_id": fleet.fleet_id,
        "force_destroy": settings.force_destroy,
        "project": settings.project,
        "keys": list(settings.keys),
        "take_over": settings.take_over,
    }
    bucket = Bucket("bucket", {key: value for key, value in asked.items() if value not in (None, [])})
    bucket.unsupported.apply(lambda lines: _warn(settings.address.bucket, lines or []))
    return bucket


def _model(source: ModelSource, address: StoreAddress, bucket: Bucket) -> Model:
    props = source.to_props(address, Path(pulumi.get_root_directory()))
    if "fingerprint" not in props:
        pulumi.log.warn(f"model {source.name}: {props['folder']} is not on this machine; what the bucket has stays")
    return Model(source.name, props, ResourceOptions(depends_on=[bucket]))


def _warn(bucket: str, lines: list[str]) -> None:
    for feature, _, reason in (line.partition(": ") for line in lines):
        pulumi.log.warn(f"bucket {bucket}: {_MEANS.get(feature, feature)}; {feature}: {reason}")


_MEANS = {
    "lifecycle": "old versions and broken pushes stay, and are paid for, until `gpu models prune`",
    "versioning": "what is deleted by mistake cannot be had back",
    "keys": "any key of the same project opens it",
    "policy": "it answers without TLS as well",
    "programs": "a program that machines fetch from it is missing",
}
"""What it means for the operator that the server does not do it."""
