"""Stack files: what is taken, and what is said about what is not."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pulumi
import pytest
from pulumi.runtime import config as pulumi_config

from dynamic_providers.errors import ConfigError
from infra.platform_settings import PlatformSettings
from infra.settings import KEYS, GpuSettings, load_settings, parse_settings, parse_stack, read_stack_file
from infra.shared_settings import SECRETS, Encrypted, parse_store

ROOT = Path(__file__).parents[2]
STACK_FILES = sorted((ROOT / "stacks").glob("Pulumi.*.yaml"))

GOOD: dict[str, Any] = {
    "kind": "gpu",
    "model": {"name": "tiny", "max_model_len": 2048, "vllm_args": ["--enable-prefix-caching"]},
    "need": {"gpus": ["RTX 4090"], "min_vram_gib": 24, "max_usd_per_hour": 0.5},
    "store": {"bucket": "gpu-models"},
}


def changed(change: dict[str, Any]) -> dict[str, Any]:
    """Return good settings with *change*: `section.key` → value; None takes the key away."""
    raw: dict[str, Any] = json.loads(json.dumps(GOOD))
    for path, value in change.items():
        section, _, key = path.rpartition(".")
        target = raw.setdefault(section, {}) if section else raw
        if value is None:
            del target[key]
        else:
            target[key] = value
    return raw


def problems_of(raw: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_settings(raw)
    return caught.value.problems


def test_defaults_are_those_of_the_design() -> None:
    settings = parse_settings(changed({"model": {"name": "tiny"}}))
    assert (settings.model.max_model_len, settings.model.vllm_args, settings.model.served_name) == (None, (), "tiny")
    need = settings.need
    assert (need.gpu_count, need.regions, need.disk_gb, need.min_reliability) == (1, (), None, 0.95)
    assert (need.min_down_mbps, need.verified, need.datacenter, need.dedicated) == (500, True, False, False)
    lease = settings.lease
    assert (lease.max_hours, lease.idle_minutes, lease.boot_minutes, lease.attempts) == (8, 15, 20, 3)
    assert lease.max_usd_total is None
    assert settings.store is not None
    assert (settings.store.location, settings.store.endpoint, settings.store.profile) == ("fsn1", None, None)
    assert settings.image == "vllm/vllm-openai:v0.32.0"
    assert settings.clients == ("default",)


@pytest.mark.parametrize("path", STACK_FILES, ids=lambda path: path.stem)
def test_shipped_stack_files_are_right(path: Path) -> None:
    parse_stack(read_stack_file(path))


def test_a_first_try_costs_less_than_a_dollar_an_hour() -> None:
    settings = parse_settings(read_stack_file(ROOT / "stacks" / "Pulumi.gpu-on.yaml"))
    assert settings.need.max_usd_per_hour < 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"modle": "x"}, 'modle: "x" is under an unknown key; did you mean model?', id="unknown-key"),
        pytest.param(
            {"need.min_vram": 24},
            "need.min_vram: 24 is under an unknown key; did you mean min_vram_gib?",
            id="unknown-key-inside",
        ),
        pytest.param({"kind": None}, "kind: missing; write kind: gpu", id="no-kind"),
        pytest.param({"kind": "vm"}, 'kind: "vm" is no kind of stack; write gpu', id="other-kind"),
        pytest.param({"kind": "cluster"}, 'kind: "cluster" is not there yet', id="cluster-kind-to-come"),
        pytest.param({"model": None}, "model: missing; write model: {name:", id="no-model"),
        pytest.param({"model": "tiny"}, 'model: "tiny" is no object; write model: {name:', id="model-is-text"),
        pytest.param({"model.name": None}, "model.name: missing", id="no-model-name"),
        pytest.param({"model.name": "Tiny"}, 'model.name: "Tiny" is no model\'s name', id="bad-model-name"),
        pytest.param({"model.name": "tiny:V1"}, 'model.name: "tiny:V1" after `:` comes a tag', id="bad-tag"),
        pytest.param({"model.name": 7}, "model.name: 7 is no text", id="model-name-is-number"),
        pytest.param({"model.max_model_len": "8k"}, 'max_model_len: "8k" is no whole number', id="length-is-text"),
        pytest.param({"model.max_model_len": 0}, "max_model_len: 0 is out of range", id="length-is-zero"),
        pytest.param({"model.max_model_len": True}, "max_model_len: true is no whole number", id="length-is-truth"),
        pytest.param({"model.vllm_args": "--x"}, 'vllm_args: "--x" is no list', id="args-are-text"),
        pytest.param({"model.vllm_args": [{"a": 1}]}, 'vllm_args: {"a": 1} is no text', id="arg-is-object"),
        pytest.param(
            {"model.vllm_args": ["--trust-remote-code"]},
            "model.vllm_args: --trust-remote-code is not taken",
            id="arg-undoes-safety",
        ),
        pytest.param({"model.served_name": "a b"}, 'served_name: "a b" is no name', id="bad-served-name"),
        pytest.param({"need": None}, "need: missing; write need: {gpus:", id="no-need"),
        pytest.param({"need.gpus": None}, "need.gpus: missing", id="no-gpus"),
        pytest.param({"need.gpus": []}, "need.gpus: [] names no GPU", id="empty-gpus"),
        pytest.param({"need.gpus": "RTX 4090"}, 'need.gpus: "RTX 4090" is no list', id="gpus-are-text"),
        pytest.param({"need.gpus": ["RTX 4900"]}, 'need.gpus: "RTX 4900" is no GPU known here', id="unknown-gpu"),
        pytest.param({"need.gpus": ["rtx4090"]}, "did you mean RTX 4090 or RTX 4090 D?", id="gpu-spelt-otherwise"),
        pytest.param({"need.gpus": ["H100"]}, "did you mean H100 PCIe or H100 NVL or H100 SXM?", id="half-a-gpu"),
        pytest.param({"need.min_vram_gib": None}, "need.min_vram_gib: missing; write GiB", id="no-vram"),
        pytest.param({"need.max_usd_per_hour": None}, "need.max_usd_per_hour: missing", id="no-price"),
        pytest.param({"need.max_usd_per_hour": "0,5"}, '"0,5" is no number; write USD', id="price-with-comma"),
        pytest.param({"need.max_usd_per_hour": -1}, "max_usd_per_hour: -1 is out of range", id="price-below-zero"),
        pytest.param({"need.max_usd_per_hour": float("nan")}, "is no number", id="price-is-nan"),
        pytest.param({"need.gpu_count": 1.5}, "need.gpu_count: 1.5 is no whole number", id="half-a-card"),
        pytest.param({"need.regions": ["Europe"]}, 'regions: "Europe" is no region; one of: EU, NA', id="bad-region"),
        pytest.param({"need.disk_gb": 4}, "need.disk_gb: 4 is out of range", id="disk-below-the-markets-least"),
        pytest.param({"need.min_reliability": 95}, "min_reliability: 95 is out of range", id="percent-for-share"),
        pytest.param({"need.verified": "yes"}, 'verified: "yes" is neither true nor false', id="yes-for-true"),
        pytest.param({"lease": "8h"}, 'lease: "8h" is no object; write lease: {max_hours:', id="lease-is-text"),
        pytest.param({"lease.max_hours": 9000}, "lease.max_hours: 9000 is out of range", id="a-year"),
        pytest.param({"lease.idle_minutes": 0}, "lease.idle_minutes: 0 is out of range", id="never-idle"),
        pytest.param({"lease.attempts": 0}, "lease.attempts: 0 is out of range", id="no-attempt"),
        pytest.param(
            {"lease.max_hours": 0.25}, "lease.boot_minutes: 20.0 are no less than the whole lease", id="boots-for-ever"
        ),
        pytest.param({"store": None}, "store: missing; write store: {bucket:", id="no-store"),
        pytest.param({"store.bucket": None}, "store.bucket: missing", id="no-bucket"),
        pytest.param({"store.bucket": "My_Bucket"}, 'store.bucket: "My_Bucket" cannot be', id="bad-bucket"),
        pytest.param({"store.bucket": "10.0.0.1"}, 'store.bucket: "10.0.0.1" cannot be', id="bucket-is-address"),
        pytest.param({"store.bucket": "a"}, 'store.bucket: "a" cannot be', id="short-bucket"),
        pytest.param({"store.location": "eu"}, 'store.location: "eu" is no location; one of: fsn1', id="bad-location"),
        pytest.param({"store.endpoint": "http://x"}, 'store.endpoint: "http://x" is no address', id="no-tls"),
        pytest.param({"platform": "team"}, "store: stands beside `platform`", id="store-beside-platform"),
        pytest.param({"platform": "my team", "store": None}, 'platform: "my team" is no stack', id="bad-platform"),
        pytest.param({"market": "runpod"}, 'market: "runpod" is not there yet', id="other-market"),
        pytest.param({"replicas": 2}, "replicas: 2 machines in one stack are not there yet", id="replicas-to-come"),
        pytest.param({"image": "vllm/vllm-openai"}, "has no tag; write an exact one", id="image-without-tag"),
        pytest.param({"image": "vllm/vllm-openai:latest"}, "is not pinned; write an exact tag", id="moving-tag"),
        pytest.param({"image": "host:5000/vllm"}, "has no tag; write an exact one", id="port-is-no-tag"),
        pytest.param({"image": "vllm/vllm-openai:v0.21.9"}, "has known security holes; write", id="image-with-holes"),
        pytest.param({"clients": []}, "clients: [] names nobody", id="no-client"),
        pytest.param({"clients": ["a b"]}, 'clients: "a b" is no client\'s name', id="bad-client"),
        pytest.param({"clients": ["a", "a"]}, 'clients: "a" is there twice', id="client-twice"),
        pytest.param({"vast_api_key": "s3cret"}, "vast_api_key: stands in clear", id="key-in-clear"),
        pytest.param({"s3_access_key_id": Encrypted()}, "s3_secret_access_key: missing beside", id="half-a-pair"),
        pytest.param(
            {"s3_read_secret_access_key": Encrypted()},
            "s3_read_access_key_id: missing beside",
            id="half-a-reading-pair",
        ),
        pytest.param({"model.startup_cache": "often"}, 'startup_cache: "often" is neither true nor false', id="cache"),
    ],
)
def test_a_mistake_is_told_with_key_value_and_what_is_right(change: dict[str, Any], expected: str) -> None:
    secrets = {key: value for key, value in change.items() if isinstance(value, Encrypted)}
    raw = changed({key: value for key, value in change.items() if key not in secrets}) | secrets
    assert any(expected in problem for problem in problems_of(raw)), problems_of(raw)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"need.gpus": ["H100"]}, id="value"),
        pytest.param({"model": "tiny"}, id="section-of-a-wrong-type"),
        pytest.param({"need": None}, id="missing-section"),
        pytest.param({"platform": "team"}, id="store-beside-platform"),
        pytest.param({"platform": "my team", "store": None}, id="platform"),
    ],
)
def test_one_mistake_is_one_problem(change: dict[str, Any]) -> None:
    assert len(problems_of(changed(change))) == 1


def test_three_mistakes_are_three_problems_in_one_message() -> None:
    raw = changed({"need.gpus": ["RTX 4900"], "lease.max_hours": "long", "store.bucket": "No"})
    with pytest.raises(ConfigError) as caught:
        parse_settings(raw)
    assert len(caught.value.problems) == 3
    assert [line.split(":")[0] for line in caught.value.problems] == ["need.gpus", "lease.max_hours", "store.bucket"]
    assert str(caught.value).startswith("3 problems in the stack's settings:\n  - need.gpus")


def test_a_key_in_clear_is_not_repeated() -> None:
    assert "s3cret" not in " ".join(problems_of(changed({"vast_api_key": "s3cret"})))


def test_numbers_among_arguments_are_arguments() -> None:
    settings = parse_settings(changed({"model.vllm_args": ["--max-num-seqs", 64]}))
    assert settings.model.vllm_args == ("--max-num-seqs", "64")


def test_numbers_as_text_are_numbers() -> None:
    """So `pulumi config set --path need.max_usd_per_hour 0.4` writes them."""
    settings = parse_settings(changed({"need.max_usd_per_hour": "0.4", "need.verified": "false"}))
    assert (settings.need.max_usd_per_hour, settings.need.verified) == (0.4, False)


@pytest.mark.parametrize(
    ("image", "cuda"),
    [
        pytest.param("vllm/vllm-openai:v0.32.0", 13.0, id="plain"),
        pytest.param("vllm/vllm-openai:v0.32.0-cu129", 12.9, id="older-cuda"),
        pytest.param("registry.example:5000/vllm:1.0@sha256:" + "a" * 64, 13.0, id="by-digest"),
    ],
)
def test_the_driver_that_a_machine_needs_follows_from_the_image(image: str, cuda: float) -> None:
    settings = parse_settings(changed({"image": image}))
    assert (settings.image, settings.need.min_cuda) == (image, cuda)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Stand where a Pulumi program stands: its configuration comes by environment, as JSON texts."""
    monkeypatch.setattr(pulumi, "get_project", lambda: "gpu-on-demand")
    token = pulumi_config.CONFIG.set({})
    yield monkeypatch
    pulumi_config.CONFIG.reset(token)


def as_pulumi_passes(raw: dict[str, Any], *secret: str) -> dict[str, str]:
    values = {f"gpu-on-demand:{key}": v if isinstance(v, str) else json.dumps(v) for key, v in raw.items()}
    secrets = [f"gpu-on-demand:{key}" for key in secret]
    return {"PULUMI_CONFIG": json.dumps(values), "PULUMI_CONFIG_SECRET_KEYS": json.dumps(secrets)}


def load(program: pytest.MonkeyPatch, raw: dict[str, Any], *secret: str) -> GpuSettings | PlatformSettings:
    for name, value in as_pulumi_passes(raw, *secret).items():
        program.setenv(name, value)
    return load_settings()


def test_a_program_reads_what_the_file_says(program: pytest.MonkeyPatch) -> None:
    raw = changed({"lease.max_hours": 2, "clients": ["default", "ci"], "replicas": 1})
    assert load(program, raw) == parse_settings(raw)


def test_a_program_notices_keys_that_nobody_asks_for(program: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="modle"):
        load(program, changed({"modle": {"name": "x"}}))


def test_an_encrypted_key_is_fine(program: pytest.MonkeyPatch) -> None:
    load(program, changed({"vast_api_key": "s3cret"}), "vast_api_key")
    with pytest.raises(ConfigError, match="in clear"):
        load(program, changed({"vast_api_key": "s3cret"}))


def test_a_stack_file_keeps_only_our_keys(tmp_path: Path) -> None:
    path = tmp_path / "Pulumi.x.yaml"
    path.write_text(
        "encryptionsalt: v1:x\nconfig:\n  aws:region: x\n  gpu-on-demand:kind: gpu\n"
        "  gpu-on-demand:vast_api_key: {secure: v1:abc}\n"
    )
    assert read_stack_file(path) == {"kind": "gpu", "vast_api_key": Encrypted()}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param("config: [", "no YAML", id="no-yaml"),
        pytest.param("config: 3", "`config` is 3", id="config-is-number"),
    ],
)
def test_a_broken_stack_file_is_named(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "Pulumi.x.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=said) as caught:
        read_stack_file(path)
    assert str(path) in str(caught.value)


def test_the_store_alone_can_be_read_from_a_file_that_is_wrong_elsewhere() -> None:
    store = parse_store(changed({"need": None}))
    assert store is not None
    assert store.bucket == "gpu-models"
    assert parse_store({"kind": "gpu"}) is None


@pytest.mark.parametrize("platform", ["platform", "team-1", "organization/gpu-on-demand/platform"])
def test_a_stack_that_names_a_platform_has_no_store_of_its_own(platform: str) -> None:
    settings = parse_settings(changed({"platform": platform, "store": None}))
    assert (settings.platform, settings.store) == (platform, None)
    assert parse_settings(GOOD).platform is None


def test_every_key_of_the_table_is_known() -> None:
    table = {"model", "need", "lease", "store", "image", "clients", "platform", "market", "replicas"}
    assert table | {"kind", *SECRETS} == set(KEYS)
