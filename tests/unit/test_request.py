"""What a stack asks of a machine: carried through Pulumi unchanged, and what a change of it means."""

import json
from dataclasses import replace
from typing import Any

import pytest

from dynamic_providers.store.address import StoreAddress
from dynamic_providers.store.manifest import Facts
from dynamic_providers.vast.models import GpuNeed
from dynamic_providers.vast.request import (
    LeaseTerms,
    MachineRequest,
    disk_for,
    is_updated_by,
    misfits,
    replaced_by,
)
from tests.unit.builders import a_fleet, a_model, a_need, a_request

GB = 1_000_000_000
APPLIED = "hash-of-the-settings"


def through_pulumi(value: Any) -> Any:
    """Return *value* as the engine hands it to a provider: every number a float, no None."""
    if isinstance(value, dict):
        return {key: through_pulumi(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [through_pulumi(item) for item in value]
    return float(value) if type(value) is int else value


REQUESTS = [
    pytest.param(a_request(), id="usual"),
    pytest.param(
        a_request(
            need=GpuNeed(gpus=("H100 SXM", "H200"), max_usd_per_hour=20, min_vram_gib=80, gpu_count=8, dedicated=True),
            model=a_model(max_model_len=None, vllm_args=(), size_bytes=140 * GB),
            terms=LeaseTerms(max_hours=2.5, idle_minutes=5, boot_minutes=45, attempts=1, max_usd_total=50),
            store=StoreAddress("b", "hel1", "https://store.example", "team"),
        ),
        id="every-optional-field-the-other-way",
    ),
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_request_comes_back_from_pulumi_as_it_went(request_: MachineRequest) -> None:
    back = MachineRequest.from_props(through_pulumi(request_.to_props()))
    assert back == request_
    assert back.to_props() == request_.to_props()
    assert json.dumps(back.to_props()) == json.dumps(MachineRequest.from_props(back.to_props()).to_props())


@pytest.mark.parametrize("request_", REQUESTS)
def test_what_counts_is_whole_again(request_: MachineRequest) -> None:
    back = MachineRequest.from_props(through_pulumi(request_.to_props()))
    counts: list[object] = [back.need.gpu_count, back.model.size_bytes, back.terms.idle_minutes, back.terms.attempts]
    counts += [back.model.max_model_len] * (back.model.max_model_len is not None)
    assert {type(count) for count in counts} == {int}  # `8192.0` is no argument of vLLM


@pytest.mark.parametrize("request_", REQUESTS)
def test_what_pulumi_keeps_is_json_without_none(request_: MachineRequest) -> None:
    def nones(value: Any) -> bool:
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        return value is None or any(map(nones, items))

    props = request_.to_props()
    assert json.loads(json.dumps(props)) == props
    assert not nones(props)


def test_more_props_than_a_request_has_are_no_matter() -> None:
    props = a_request().to_props() | {"endpoint": "https://203.0.113.7:40443", "__provider": "…", "is_stopped": False}
    assert MachineRequest.from_props(props) == a_request()


# The disk and what fits


@pytest.mark.parametrize(
    ("size_bytes", "disk_gb"),
    [
        pytest.param(0, 38.0, id="image-and-spare-alone"),
        pytest.param(1, 39.0, id="a-byte-more-is-a-gb-more"),
        pytest.param(16 * GB, 54.0, id="whole"),
        pytest.param(16 * GB + 1, 55.0, id="rounded-up"),
    ],
)
def test_the_disk_follows_from_the_model(size_bytes: int, disk_gb: float) -> None:
    assert disk_for(size_bytes) == disk_gb
    assert a_request(need=a_need(disk_gb=None), model=a_model(size_bytes=size_bytes)).disk_gb == disk_gb


def test_a_disk_that_is_asked_for_is_rented() -> None:
    assert a_request(need=a_need(disk_gb=200.0)).disk_gb == 200.0


def test_offers_are_weighed_with_disk_image_and_weights() -> None:
    terms = LeaseTerms(max_hours=3, boot_minutes=30, max_usd_total=7.0)
    plan = a_request(need=a_need(disk_gb=None), model=a_model(size_bytes=8 * GB), terms=terms).plan
    assert plan.need == a_need(disk_gb=46.0)
    assert (plan.hours, plan.load_gb, plan.boot_minutes, plan.max_usd_total) == (3, 20.0, 30, 7.0)


def a_fit(*, gib: float, count: int = 1, vram: float = 24.0, disk: float | None = None) -> MachineRequest:
    need = a_need(gpu_count=count, min_vram_gib=vram, disk_gb=disk)
    return a_request(need=need, model=a_model(size_bytes=round(gib * 2**30)))


@pytest.mark.parametrize(
    ("request_", "problems"),
    [
        pytest.param(a_fit(gib=15.0), [], id="fits"),
        pytest.param(a_fit(gib=17.0, vram=20.0), [], id="exactly-what-there-is-room-for"),
        pytest.param(a_fit(gib=17.01, vram=20.0), ["need.min_vram_gib"], id="a-little-more"),
        pytest.param(a_fit(gib=34.0, vram=20.0, count=2), [], id="two-gpus-hold-twice"),
        pytest.param(a_fit(gib=131.4, vram=80.0, count=2), [], id="70b-on-two-h100"),
        pytest.param(a_fit(gib=131.4, vram=80.0), ["need.min_vram_gib"], id="70b-on-one-h100"),
        pytest.param(a_fit(gib=10.0, disk=48.0), ["need.disk_gb"], id="disk-too-small"),
        pytest.param(a_fit(gib=10.0, disk=49.0), [], id="disk-just-enough"),
        pytest.param(a_fit(gib=30.0, disk=40.0), ["need.min_vram_gib", "need.disk_gb"], id="both-are-told"),
    ],
)
def test_a_model_that_fits_no_machine_of_the_need_is_told_before_any_money(
    request_: MachineRequest, problems: list[str]
) -> None:
    assert [line.partition(":")[0] for line in misfits(request_)] == problems


@pytest.mark.parametrize("gib", [17.01, 20.5, 25.0, 131.4])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_advice_of_a_misfit_is_enough(gib: float, count: int) -> None:
    problems = misfits(a_fit(gib=gib, count=count, vram=4.0))
    assert len(problems) == 1
    advised = float(problems[0].partition("at least ")[2].split()[0])
    assert misfits(a_fit(gib=gib, count=count, vram=advised)) == []
    assert misfits(a_fit(gib=gib, count=count, vram=advised - 1)) != []


@pytest.mark.parametrize(
    ("context", "args", "is_told"),
    [
        pytest.param(8192, (), False, id="as-long"),
        pytest.param(4096, (), True, id="too-long"),
        pytest.param(None, (), False, id="unknown"),
        pytest.param(4096, ('--hf-overrides={"rope_scaling": {}}',), False, id="stretched"),
    ],
)
def test_more_context_than_the_model_has_is_told_before_any_money(
    context: int | None, args: tuple[str, ...], is_told: bool
) -> None:
    fit = a_fit(gib=10.0)
    asked = replace(fit, model=replace(fit.model, max_model_len=8192, vllm_args=args))
    problems = misfits(asked, Facts(context_length=context))
    assert [line.partition(",")[0] for line in problems] == ["model.max_model_len: 8192"] * is_told


def test_a_misfit_names_the_model_by_its_name() -> None:
    [problem] = misfits(a_fit(gib=100.0, disk=1000.0))
    assert "llama has 100.0 GiB" in problem
    assert "sha256" not in problem


# Replace, update, or nothing


def outputs(**change: Any) -> dict[str, Any]:
    """Return what the state holds of a machine that serves the usual request."""
    extra = {"applied": APPLIED, "is_stopped": False, "is_ready": True, "disk_gb": 60.0, "usd_per_hour": 0.4}
    return dict(through_pulumi(a_request().to_props() | extra), **change)


def test_nothing_changed_is_nothing_to_do() -> None:
    news = a_request().to_props()
    assert replaced_by(outputs(), news) == []
    assert not is_updated_by(outputs(), news, APPLIED)


@pytest.mark.parametrize(
    ("change", "replaces"),
    [
        pytest.param({"need": a_need(max_usd_per_hour=0.6)}, ["need"], id="price"),
        pytest.param({"need": a_need(gpus=("RTX 3090",))}, ["need"], id="gpu"),
        pytest.param({"need": a_need(gpu_count=2)}, ["need"], id="gpu-count"),
        pytest.param({"need": a_need(regions=())}, ["need"], id="region"),
        pytest.param({"need": a_need(disk_gb=61.0)}, ["need", "model"], id="disk"),
        pytest.param({"image": "vllm/vllm-openai:v0.33.0"}, ["image"], id="image"),
        pytest.param({"uid": "ffffffffffff"}, ["uid"], id="lease"),
        pytest.param(
            {"need": a_need(disk_gb=None), "model": a_model(size_bytes=22 * GB)}, ["need"], id="fits-the-disk"
        ),
        pytest.param(
            {"need": a_need(disk_gb=None), "model": a_model(size_bytes=22 * GB + 1)}, ["need", "model"], id="too-big"
        ),
        pytest.param({"model": a_model(release=f"qwen@sha256:{'cd' * 32}")}, [], id="model"),
        pytest.param({"model": a_model(vllm_args=())}, [], id="arguments"),
        pytest.param({"model": a_model(clients=("default",))}, [], id="clients"),
        pytest.param({"terms": LeaseTerms(max_hours=4)}, [], id="lease-terms"),
        pytest.param({"store": StoreAddress("elsewhere", "hel1")}, [], id="store"),
        pytest.param({"stack": "renamed"}, [], id="stack-name"),
    ],
)
def test_what_replaces_the_machine(change: dict[str, Any], replaces: list[str]) -> None:
    assert replaced_by(outputs(), a_request(**change).to_props()) == replaces


def test_a_model_that_outgrows_a_disk_we_chose_replaces_the_machine() -> None:
    automatic = a_request(need=a_need(disk_gb=None))
    olds = outputs(need=automatic.to_props()["need"], disk_gb=46.0)
    bigger = a_request(need=a_need(disk_gb=None), model=a_model(size_bytes=9 * GB))
    assert replaced_by(olds, automatic.to_props()) == []
    assert replaced_by(olds, bigger.to_props()) == ["model"]


def test_a_rotated_fleet_replaces_the_machine() -> None:
    news = a_request().to_props() | {"fleet_id": "deadbeef", "ca_certificate": "another"}
    assert replaced_by(outputs(), news) == ["fleet_id", "ca_certificate"]


@pytest.mark.parametrize(
    ("olds", "replaces"),
    [
        pytest.param(outputs(is_stopped=True), ["is_stopped"], id="definitely-stopped"),
        pytest.param(outputs(is_stopped=False), [], id="running"),
        pytest.param({k: v for k, v in outputs().items() if k != "is_stopped"}, [], id="not-known"),
    ],
)
def test_a_machine_that_the_market_stopped_is_replaced(olds: dict[str, Any], replaces: list[str]) -> None:
    assert replaced_by(olds, a_request().to_props()) == replaces


def test_a_moving_market_changes_nothing() -> None:
    olds = outputs(usd_per_hour=99.0, disk_gb=500.0)
    assert replaced_by(olds, a_request().to_props()) == []
    assert not is_updated_by(olds, a_request().to_props(), APPLIED)


@pytest.mark.parametrize(
    ("olds", "terms", "wanted", "updated"),
    [
        pytest.param(outputs(), LeaseTerms(), APPLIED, False, id="as-applied"),
        pytest.param(outputs(), LeaseTerms(), "another", True, id="settings-changed"),
        pytest.param(outputs(applied="another"), LeaseTerms(), APPLIED, True, id="machine-reports-something-else"),
        pytest.param(outputs(applied=None), LeaseTerms(), APPLIED, True, id="nothing-applied"),
        pytest.param(outputs(is_ready=False), LeaseTerms(), APPLIED, True, id="label-does-not-say-ready"),
        pytest.param(
            outputs() | {"model": through_pulumi(a_request(model=a_model(clients=("default",))).to_props()["model"])},
            LeaseTerms(),
            APPLIED,
            True,
            id="applied-and-never-recorded",
        ),
        pytest.param(outputs(), LeaseTerms(max_hours=9), APPLIED, True, id="longer-lease"),
        pytest.param(outputs(), LeaseTerms(idle_minutes=16), APPLIED, True, id="idle-limit"),
        pytest.param(outputs(), LeaseTerms(boot_minutes=30), APPLIED, False, id="boot-deadline-is-of-the-next-boot"),
        pytest.param(outputs(), LeaseTerms(attempts=5), APPLIED, False, id="attempts-are-of-the-next-rent"),
    ],
)
def test_what_updates_the_machine_in_place(olds: dict[str, Any], terms: LeaseTerms, wanted: str, updated: bool) -> None:
    assert is_updated_by(olds, a_request(terms=terms).to_props(), wanted) == updated


def test_the_fleets_keys_are_inputs_and_nothing_else_of_it() -> None:
    props = a_request().to_props()
    assert {key: props[key] for key in ("fleet_id", "ca_certificate", "sign", "observe")} == {
        "fleet_id": a_fleet().id,
        "ca_certificate": a_fleet().ca_certificate,
        "sign": a_fleet().sign,
        "observe": a_fleet().observe,
    }
