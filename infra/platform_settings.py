"""`kind: platform`: what a team shares, as its stack file says it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynamic_providers.errors import ConfigError
from dynamic_providers.lease.monitoring import WriteTarget
from dynamic_providers.store.address import StoreAddress
from infra import rules
from infra.fields import Section
from infra.model_settings import ModelSource, parse_models
from infra.monitoring_settings import parse_monitoring
from infra.shared_settings import BUCKET_KEYS, SECRETS, STORE_EXAMPLE, check_secrets, parse_address

PLATFORM_KEYS = ("kind", "store", "models", "monitoring", *SECRETS)


@dataclass(frozen=True)
class BucketSettings:
    """The platform's own bucket.

    Attributes:
        address: Where it lies.
        force_destroy: Delete it with the models in it.
        project: Number of the Hetzner project; None: as the server names it.
        keys: Ids of all access keys that may use it; empty: those that it lets in already, and the one in use.
        take_over: Id of the fleet that it belonged to before.
    """

    address: StoreAddress
    force_destroy: bool = False
    project: str | None = None
    keys: tuple[str, ...] = ()
    take_over: str | None = None


@dataclass(frozen=True)
class PlatformSettings:
    """A stack of kind `platform`.

    Attributes:
        monitoring: Where machines write their metrics; None: nowhere.
    """

    bucket: BucketSettings
    models: tuple[ModelSource, ...] = ()
    monitoring: WriteTarget | None = None


def parse_platform(raw: Mapping[str, Any]) -> PlatformSettings:
    """Check *raw*, as `parse_settings` does for a gpu stack, and return it as values.

    Raises:
        ConfigError: One line for each problem, all of them.
    """
    problems: list[str] = []
    top = Section(raw, PLATFORM_KEYS, problems)
    settings = PlatformSettings(
        bucket=_parse_bucket(top),
        models=parse_models(raw.get("models"), problems),
        monitoring=parse_monitoring(top),
    )
    check_secrets(raw, problems)
    if problems:
        raise ConfigError(problems)
    return settings


def _parse_bucket(top: Section) -> BucketSettings:
    if "store" not in top:
        top.missing("store", f"write store: {STORE_EXAMPLE}")
        return BucketSettings(StoreAddress("", rules.LOCATIONS[0]))
    store = top.section("store", BUCKET_KEYS, STORE_EXAMPLE)
    project = store.number("project", None, "write the number of the Hetzner project", least=1, most=10**12, whole=True)
    return BucketSettings(
        address=parse_address(store),
        force_destroy=store.flag("force_destroy", False),
        project=None if project is None else str(int(project)),
        keys=store.texts("keys", "write a list of access key ids", rules.access_key_problem),
        take_over=store.text("take_over", None, "write a fleet's id, in quotes", rules.fleet_id_problem),
    )
