"""The documents say what the code does."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from dynamic_providers.store.address import StoreAddress
from dynamic_providers.vast.models import GpuNeed
from dynamic_providers.vast.request import LeaseTerms
from infra import settings
from infra.monitoring_settings import MONITORING_KEYS
from infra.shared_settings import BUCKET_KEYS, SECRETS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def documented_keys() -> set[str]:
    rows = re.findall(r"^\| (`.+?) \|", README, flags=re.MULTILINE)
    return {key for row in rows for key in re.findall(r"`([a-z_.]+)`", row)}


@pytest.mark.parametrize(
    "key",
    [
        *(key for key in settings.KEYS if key not in {"model", "need", "lease", "store", *SECRETS}),
        *(f"model.{key}" for key in settings.MODEL_KEYS),
        *(f"need.{key}" for key in settings.NEED_KEYS),
        *(f"lease.{key}" for key in settings.LEASE_KEYS),
        *(f"store.{key}" for key in BUCKET_KEYS),
        *(f"monitoring.{key}" for key in MONITORING_KEYS),
    ],
)
def test_every_setting_stands_in_the_readme(key: str) -> None:
    assert key in documented_keys()


@pytest.mark.parametrize(
    ("section", "type_"), [("need", GpuNeed), ("lease", LeaseTerms), ("store", StoreAddress)], ids=lambda v: str(v)
)
def test_the_readme_states_the_defaults_that_hold(section: str, type_: type) -> None:
    for field in fields(type_):
        row = re.search(rf"^\| `{section}\.{field.name}` \| (.+?) \|", README, flags=re.MULTILINE)
        if row and isinstance(field.default, bool | int | float):
            default = str(field.default).lower() if isinstance(field.default, bool) else f"{field.default:g}"
            assert row[1] == default, field.name


def test_every_make_target_in_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", README)) <= targets


def test_every_secret_is_named_in_the_readme() -> None:
    assert all(key in README for key in SECRETS)


def test_every_shipped_stack_stands_in_the_readme_with_its_limits() -> None:
    rows = dict(re.findall(r"^\| `(gpu-[a-z0-9-]+)` \| (.+) \|$", README, flags=re.MULTILINE))
    stacks = {path.stem.removeprefix("Pulumi."): path for path in (ROOT / "stacks").glob("Pulumi.gpu-*.yaml")}
    assert set(rows) == set(stacks)
    for name, path in stacks.items():
        need = settings.parse_settings(settings.read_stack_file(path)).need
        count = f"{need.gpu_count} × " if need.gpu_count > 1 else ""
        assert rows[name].endswith(f"| {count}{need.min_vram_gib:g} GiB | {need.max_usd_per_hour:.2f}"), name
