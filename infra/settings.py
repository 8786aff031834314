"""The stack file, read and checked once: every problem at once, and values that need no further doubt."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from bootstrap.arguments import refused_args
from dynamic_providers.errors import ConfigError
from dynamic_providers.lease.policy import MAX_LIFETIME
from dynamic_providers.store.address import StoreAddress
from dynamic_providers.vast.models import GpuNeed
from dynamic_providers.vast.request import LeaseTerms
from infra import rules
from infra.fields import Section, show
from infra.platform_settings import PlatformSettings, parse_platform
from infra.shared_settings import SECRETS, STORE_EXAMPLE, STORE_KEYS, Encrypted, check_secrets, parse_address

PROJECT = "gpu-on-demand"
DEFAULT_CLIENT = "default"
KEYS = ("kind", "model", "need", "lease", "store", "image", "clients", "platform", "market", "replicas", *SECRETS)
MODEL_KEYS = ("name", "max_model_len", "vllm_args", "served_name", "startup_cache")
LEASE_KEYS = ("max_hours", "idle_minutes", "boot_minutes", "attempts", "max_usd_total")
NEED_KEYS = (
    *("gpus", "gpu_count", "min_vram_gib", "max_usd_per_hour", "regions", "disk_gb"),
    *("min_reliability", "min_down_mbps", "verified", "datacenter", "dedicated"),
)


@dataclass(frozen=True)
class ModelSettings:
    """What is to be served.

    Attributes:
        ref: `name` or `name@sha256:<hex>`, as `ModelRef.parse` takes it.
        max_model_len: Tokens of prompt and answer together; None leaves it to the model.
        vllm_args: Further arguments of `vllm serve`.
        served_name: The name to ask for.
        startup_cache: What a machine compiles is kept for the next time that it is rented.
    """

    ref: str
    max_model_len: int | None
    vllm_args: tuple[str, ...]
    served_name: str
    startup_cache: bool = False


@dataclass(frozen=True)
class GpuSettings:
    """A stack of kind `gpu`.

    Attributes:
        store: Where the weights lie; None where the platform says it.
        platform: The stack that fleet and store come from; None for a stack that has its own.
    """

    model: ModelSettings
    need: GpuNeed
    lease: LeaseTerms
    store: StoreAddress | None
    platform: str | None = None
    image: str = rules.DEFAULT_IMAGE
    clients: tuple[str, ...] = (DEFAULT_CLIENT,)


def load_settings() -> GpuSettings | PlatformSettings:
    """Return the settings of the running Pulumi program.

    Raises:
        ConfigError: All that is wrong with the stack file.
    """
    import pulumi
    from pulumi.runtime import config

    # pulumi.Config reads only keys that one knows to ask for; unknown ones must be noticed as well.
    every = {**config.get_config_env(), **config.CONFIG.get()}
    encrypted = config.get_config_secret_keys_env()
    prefix = f"{pulumi.get_project()}:"
    raw = {key.removeprefix(prefix): value for key, value in every.items() if key.startswith(prefix)}
    for key in SECRETS:
        if prefix + key in encrypted or config.is_config_secret(prefix + key):
            raw[key] = Encrypted()
    return parse_stack(raw)


def read_stack_file(path: Path, project: str = PROJECT) -> dict[str, Any]:
    """Return this project's settings as they stand in a stack file, for `parse_stack`.

    Raises:
        ConfigError: There is no such file, or it is no YAML.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: no YAML: {' '.join(str(error).split())}"]) from error
    values = (content.get("config") if isinstance(content, dict) else None) or {}
    if not isinstance(values, dict):
        raise ConfigError([f"{path}: `config` is {show(values)}, not keys and values"])
    return {
        str(key).removeprefix(f"{project}:"): Encrypted() if isinstance(value, dict) and "secure" in value else value
        for key, value in values.items()
        if str(key).startswith(f"{project}:")
    }


def parse_stack(raw: Mapping[str, Any]) -> GpuSettings | PlatformSettings:
    """Check *raw* and return it as values.

    Args:
        raw: Key without the project's name → value; objects as such or as JSON text.

    Raises:
        ConfigError: One line for each problem, all of them.
    """
    return parse_platform(raw) if raw.get("kind") == "platform" else parse_settings(raw)


def parse_settings(raw: Mapping[str, Any]) -> GpuSettings:
    """Check the settings of a gpu stack and return them as values.

    Raises:
        ConfigError: One line for each problem, all of them.
    """
    kind = raw.get("kind")
    if kind == "cluster":
        raise ConfigError([f"kind: {show(kind)} is not there yet; write kind: gpu"])
    problems: list[str] = []
    top = Section(raw, KEYS, problems)
    if top.required_text("kind", "write kind: gpu") not in ("gpu", ""):
        top.problem("kind", kind, "is no kind of stack; write gpu or platform (cluster comes later)")
    _check_reserved(top)
    image = (
        top.text("image", rules.DEFAULT_IMAGE, f"write {rules.DEFAULT_IMAGE}", rules.image_problem)
        or rules.DEFAULT_IMAGE
    )
    settings = GpuSettings(
        model=_parse_model(top),
        need=_parse_need(top, image),
        lease=_parse_lease(top),
        store=_parse_store(top),
        platform=top.text("platform", None, "write the name of the platform's stack", rules.stack_problem),
        image=image,
        clients=_parse_clients(top),
    )
    check_secrets(raw, problems)
    if problems:
        raise ConfigError(problems)
    return settings


def _check_reserved(top: Section) -> None:
    """Turn away what is planned but not there, so that nobody believes it works."""
    market = top.text("market", "vast", "write vast")
    if market != "vast":
        top.problem("market", market, "is not there yet; write vast or leave it out")
    replicas = top.whole("replicas", 1, "write 1 or leave it out", least=1, most=1000)
    if replicas > 1:
        top.problem("replicas", replicas, "machines in one stack are not there yet; make a stack for each")


def _parse_model(top: Section) -> ModelSettings:
    example = "{name: llama-3.1-8b-instruct, max_model_len: 8192}"
    if "model" not in top:
        top.missing("model", f"write model: {example}")
        return ModelSettings("", None, (), "")
    model = top.section("model", MODEL_KEYS, example)
    ref = model.required_text("name", "write the name that the model was pushed under", rules.ref_problem)
    length = model.number("max_model_len", None, "write a number of tokens", least=1, most=10_000_000, whole=True)
    args = model.texts("vllm_args", "write a list such as [--enable-prefix-caching]", numbers=True)
    for problem in refused_args(args):
        model.note("vllm_args", f"{problem}; leave it out")
    name = re.split("[@:]", ref)[0]
    served = model.text("served_name", name, "write the name that clients ask for", rules.served_name_problem)
    return ModelSettings(
        ref, None if length is None else int(length), args, served or name, model.flag("startup_cache", False)
    )


def _parse_need(top: Section, image: str) -> GpuNeed:
    example = "{gpus: [RTX 4090], min_vram_gib: 24, max_usd_per_hour: 0.50}"
    if "need" not in top:
        top.missing("need", f"write need: {example}")
    need = top.section("need", NEED_KEYS, example) if "need" in top else Section({}, NEED_KEYS, [])
    gpus = need.texts("gpus", "write a list such as [RTX 4090, RTX 3090]", rules.gpu_problem)
    if "gpus" not in need:
        need.missing("gpus", "write a list such as [RTX 4090, RTX 3090]; any of them will do")
    elif need.is_empty_list("gpus"):
        need.problem("gpus", [], "names no GPU; write a list such as [RTX 4090, RTX 3090]")
    disk = need.number("disk_gb", None, "write GB, or leave it out", least=8, most=20_000)
    return GpuNeed(
        gpus=gpus,
        gpu_count=need.whole("gpu_count", 1, "write how many", least=1, most=16),
        min_vram_gib=need.required_number("min_vram_gib", "write GiB of each GPU", least=1, most=1024),
        max_usd_per_hour=need.required_number("max_usd_per_hour", "write USD, all-in", least=0.01, most=500),
        regions=need.texts("regions", "write a list such as [EU]", rules.region_problem),
        disk_gb=disk,
        min_reliability=_number(need, "min_reliability", GpuNeed.min_reliability, "write a share", 0, 1),
        min_down_mbps=_number(need, "min_down_mbps", GpuNeed.min_down_mbps, "write Mbit/s", 0, 100_000),
        verified=need.flag("verified", GpuNeed.verified),
        datacenter=need.flag("datacenter", GpuNeed.datacenter),
        dedicated=need.flag("dedicated", GpuNeed.dedicated),
        min_cuda=rules.min_cuda_of(image),
    )


def _parse_lease(top: Section) -> LeaseTerms:
    lease = top.section("lease", LEASE_KEYS, "{max_hours: 8, idle_minutes: 15}")
    terms = LeaseTerms(
        max_hours=_number(
            lease, "max_hours", LeaseTerms.max_hours, "write hours", 0.1, MAX_LIFETIME / timedelta(hours=1)
        ),
        idle_minutes=lease.whole("idle_minutes", LeaseTerms.idle_minutes, "write minutes", least=1, most=10_080),
        boot_minutes=_number(lease, "boot_minutes", LeaseTerms.boot_minutes, "write minutes", 1, 240),
        attempts=lease.whole("attempts", LeaseTerms.attempts, "write how many hosts to try", least=1, most=10),
        max_usd_total=lease.number("max_usd_total", None, "write USD, or leave it out", least=0.01, most=100_000),
    )
    if terms.boot_minutes >= terms.max_hours * 60:
        lease.problem(
            "boot_minutes", terms.boot_minutes, f"are no less than the whole lease ({terms.max_hours:g} h); write fewer"
        )
    return terms


def _parse_store(top: Section) -> StoreAddress | None:
    if "platform" in top:
        if "store" in top:
            top.note("store", "stands beside `platform`, which brings its own; leave one of the two out")
        return None
    if "store" not in top:
        top.missing("store", f"write store: {STORE_EXAMPLE}, or platform: <stack>")
        return None
    return parse_address(top.section("store", STORE_KEYS, STORE_EXAMPLE))


def _parse_clients(top: Section) -> tuple[str, ...]:
    right = "write a list of names such as [default, ci]; each gets a token of its own"
    clients = top.texts("clients", right, rules.client_problem)
    if "clients" not in top:
        return (DEFAULT_CLIENT,)
    if top.is_empty_list("clients"):
        top.problem("clients", [], f"names nobody; {right}")
    for twice in sorted({name for name in clients if clients.count(name) > 1}):
        top.problem("clients", twice, "is there twice; leave one out")
    return clients


def _number(section: Section, key: str, default: float, right: str, least: float, most: float) -> float:
    found = section.number(key, default, right, least=least, most=most)
    return default if found is None else found
