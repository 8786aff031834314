"""What a platform gives to the gpu stacks that name it: its one output, `fleet`, written here and read here.

Read by the engine's own function, not by a StackReference: that would copy every output into the state of the stack
that reads, and make its `destroy` fail once the platform is gone.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pulumi

from dynamic_providers.errors import ConfigError
from dynamic_providers.lease import keys
from dynamic_providers.lease.monitoring import WriteTarget
from dynamic_providers.store.address import StoreAddress
from dynamic_providers.vast.request import FleetKeys
from infra import rules
from infra.monitoring_settings import certificate_problem, write_url_problem

OUTPUT = "fleet"
READ_OUTPUTS = "pulumi:pulumi:readStackOutputs"
_SECRETS = ("sign", "observe")
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]{64,8192}-----END CERTIFICATE-----\n?")
_KEY = re.compile(r"[0-9a-f]{64}")
_Check = tuple[str, Any, Callable[[str], bool]]
"""Key, value, and whether that is of the form that it must have."""


@dataclass(frozen=True)
class Membership:
    """What a gpu stack gets from its platform."""

    fleet: FleetKeys
    store: StoreAddress
    monitoring: WriteTarget | None = None


def render_fleet(fleet: Mapping[str, Any], store: StoreAddress, monitoring: WriteTarget | None) -> dict[str, Any]:
    """Return the output.

    Args:
        fleet: `fleet_id`, `ca_certificate`, `sign` and `observe`; values may be Pulumi's.
        store: The platform's own.
        monitoring: Where machines write their metrics; None: nowhere.
    """
    given = {
        "fleet_id": fleet["fleet_id"],
        "ca_certificate": fleet["ca_certificate"],
        "sign": pulumi.Output.secret(fleet["sign"]),
        "observe": pulumi.Output.secret(fleet["observe"]),
        "store": store.to_props(),
    }
    return given | ({"monitoring": monitoring.to_props()} if monitoring else {})


def read_platform(name: str) -> Membership:
    """Ask the engine for what the platform gives.

    Args:
        name: Its stack; in full (`organization/project/stack`) where it is of another project.

    Raises:
        ConfigError: There is none, it is not up, or what it gives cannot be used.
    """
    full = name if "/" in name else f"{pulumi.get_organization()}/{pulumi.get_project()}/{name}"
    try:
        answer = pulumi.runtime.invoke(READ_OUTPUTS, {"name": full})
    except Exception as error:  # the SDK raises nothing narrower
        if "unknown stack" in str(error) or "no stack named" in str(error):
            problem = f"there is no stack {name!r}; make it: pulumi stack init {name} && pulumi up -s {name}"
        else:
            problem = f"the outputs of stack {name!r} cannot be read: {error}"
        raise ConfigError([f"platform: {problem}"]) from error
    return parse_fleet((answer.value or {}).get("outputs") or {}, name)


def parse_fleet(outputs: Mapping[str, Any], name: str) -> Membership:
    """Check a platform's outputs and return what it gives.

    Raises:
        ConfigError: All that is wrong with them.
    """
    if OUTPUT not in outputs:
        raise ConfigError([f"platform: stack {name!r} has no output `fleet`; {_why_not(outputs, name)}"])
    fleet = outputs[OUTPUT]
    # Pulumi puts an empty object where it cannot decrypt.
    if fleet == {} or (isinstance(fleet, Mapping) and any(fleet.get(key) == {} for key in _SECRETS)):
        raise ConfigError(
            [
                f"platform: the secrets of stack {name!r} cannot be decrypted: it is under another passphrase than "
                "PULUMI_CONFIG_PASSPHRASE; use one for both"
            ]
        )
    if not isinstance(fleet, Mapping) or not all(
        isinstance(section, Mapping) for section in (fleet.get("store"), fleet.get("monitoring", {}))
    ):
        raise ConfigError([f"platform: output `fleet` of stack {name!r} is not what a platform gives"])
    problems = [f"platform: {key} in output `fleet` of stack {name!r} {why}" for key, why in _wrong(fleet)]
    if problems:
        raise ConfigError([*problems, f"platform: put it right by: pulumi up -s {name}"])
    known = FleetKeys(fleet["fleet_id"], fleet["ca_certificate"], fleet["sign"], fleet["observe"])
    monitoring = WriteTarget.from_props(fleet["monitoring"]) if "monitoring" in fleet else None
    return Membership(known, StoreAddress.from_props(fleet["store"]), monitoring)


def _why_not(outputs: Mapping[str, Any], name: str) -> str:
    if outputs:
        return "it is no platform: name one that says kind: platform"
    return f"bring it up first: pulumi up -s {name}"


def _wrong(fleet: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name the values that are not of the form that a platform gives; none is repeated, they may be secret."""
    store = fleet["store"]
    checks: list[_Check] = [
        ("fleet_id", fleet.get("fleet_id"), lambda text: not rules.fleet_id_problem(text)),
        ("ca_certificate", fleet.get("ca_certificate"), lambda text: bool(_PEM.fullmatch(text))),
        ("sign", fleet.get("sign"), lambda text: bool(_KEY.fullmatch(text))),
        ("observe", fleet.get("observe"), lambda text: bool(_KEY.fullmatch(text))),
        ("store.bucket", store.get("bucket"), lambda text: not rules.bucket_problem(text)),
        ("store.location", store.get("location"), lambda text: not rules.location_problem(text)),
        ("store.endpoint", store.get("endpoint", "https://none"), lambda text: not rules.endpoint_problem(text)),
        ("store.profile", store.get("profile", "none"), lambda text: 0 < len(text) <= 200),
    ]
    checks += _monitoring_checks(fleet["monitoring"]) if "monitoring" in fleet else []
    found = [(key, "is not of the form that it must have") for key, value, fits in checks if not _is(value, fits)]
    if not found and keys.observe_key(fleet["sign"]) != fleet["observe"]:
        found.append(("observe", "does not derive from sign"))
    return found


def _monitoring_checks(monitoring: Mapping[str, Any]) -> list[_Check]:
    checks: list[_Check] = [
        ("monitoring.write_url", monitoring.get("write_url"), lambda text: not write_url_problem(text))
    ]
    if "ca_certificate" in monitoring:
        own = monitoring["ca_certificate"]
        checks.append(("monitoring.ca_certificate", own, lambda text: not certificate_problem(text)))
    return checks


def _is(value: Any, fits: Callable[[str], bool]) -> bool:
    return isinstance(value, str) and fits(value)
