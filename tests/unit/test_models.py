"""The market's rows as values of ours: units, missing fields, odd shapes; and GPUs told apart by all their names."""

from datetime import UTC, datetime
from typing import Any

import pytest

from dynamic_providers.vast.models import (
    DOOR,
    GPU_OF_VAST,
    GPUS,
    REGIONS,
    SSH,
    Charge,
    GpuNeed,
    Instance,
    Offer,
    parse_country,
)
from dynamic_providers.vast.offers import unmet_by
from tests.unit.builders import NOW, a_need, a_plan, an_instance, an_instance_row

OFFER_ROW: dict[str, Any] = {
    "id": 777,
    "ask_contract_id": 777,
    "machine_id": 12,
    "gpu_name": "RTX 4090",
    "num_gpus": 1,
    "gpu_ram": 24564,
    "gpu_frac": 1.0,
    "dph_total": 0.41,
    "inet_down": 812.5,
    "inet_down_cost": 0.002,
    "disk_space": 500.0,
    "reliability2": 0.991,
    "geolocation": "Sweden, SE",
    "verification": "verified",
    "hosting_type": 1,
    "cuda_max_good": 13.0,
    "compute_cap": 890,
    "direct_port_count": 99,
    "duration": 7200 * 3600,
}

# What NVIDIA's driver calls each GPU (`nvidia-smi --query-gpu=name`).
DRIVER_NAMES = {
    "RTX 3060": ["NVIDIA GeForce RTX 3060"],
    "RTX 3070": ["NVIDIA GeForce RTX 3070"],
    "RTX 3080": ["NVIDIA GeForce RTX 3080"],
    "RTX 3080 Ti": ["NVIDIA GeForce RTX 3080 Ti"],
    "RTX 3090": ["NVIDIA GeForce RTX 3090"],
    "RTX 3090 Ti": ["NVIDIA GeForce RTX 3090 Ti"],
    "RTX 4060 Ti": ["NVIDIA GeForce RTX 4060 Ti"],
    "RTX 4070": ["NVIDIA GeForce RTX 4070"],
    "RTX 4070 Ti": ["NVIDIA GeForce RTX 4070 Ti"],
    "RTX 4070 Ti Super": ["NVIDIA GeForce RTX 4070 Ti SUPER"],
    "RTX 4080": ["NVIDIA GeForce RTX 4080"],
    "RTX 4080 Super": ["NVIDIA GeForce RTX 4080 SUPER"],
    "RTX 4090": ["NVIDIA GeForce RTX 4090"],
    "RTX 4090 D": ["NVIDIA GeForce RTX 4090 D"],
    "RTX 5070 Ti": ["NVIDIA GeForce RTX 5070 Ti"],
    "RTX 5080": ["NVIDIA GeForce RTX 5080"],
    "RTX 5090": ["NVIDIA GeForce RTX 5090"],
    "RTX A4000": ["NVIDIA RTX A4000"],
    "RTX A5000": ["NVIDIA RTX A5000"],
    "RTX A6000": ["NVIDIA RTX A6000"],
    "RTX 4000 Ada": ["NVIDIA RTX 4000 Ada Generation"],
    "RTX 5000 Ada": ["NVIDIA RTX 5000 Ada Generation"],
    "RTX 6000 Ada": ["NVIDIA RTX 6000 Ada Generation"],
    "RTX PRO 6000 WS": ["NVIDIA RTX PRO 6000 Blackwell Workstation Edition"],
    "RTX PRO 6000 S": ["NVIDIA RTX PRO 6000 Blackwell Server Edition"],
    "T4": ["Tesla T4"],
    "L4": ["NVIDIA L4"],
    "L40": ["NVIDIA L40"],
    "L40S": ["NVIDIA L40S"],
    "A10": ["NVIDIA A10"],
    "A40": ["NVIDIA A40"],
    "A100 PCIe": ["NVIDIA A100-PCIE-40GB", "NVIDIA A100 80GB PCIe"],
    "A100 SXM": ["NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB"],
    "H100 PCIe": ["NVIDIA H100 PCIe"],
    "H100 NVL": ["NVIDIA H100 NVL"],
    "H100 SXM": ["NVIDIA H100 80GB HBM3"],
    "H200": ["NVIDIA H200"],
    "H200 NVL": ["NVIDIA H200 NVL"],
    "B200": ["NVIDIA B200"],
}


@pytest.mark.parametrize(
    ("name", "driver_name"), [(name, said) for name in DRIVER_NAMES for said in DRIVER_NAMES[name]]
)
def test_a_gpu_is_recognised_by_its_driver_name_and_taken_for_no_other(name: str, driver_name: str) -> None:
    assert [gpu.name for gpu in GPUS.values() if gpu.is_reported_as(driver_name)] == [name]


def test_the_driver_names_of_all_gpus_are_tried() -> None:
    assert DRIVER_NAMES.keys() == GPUS.keys()


@pytest.mark.parametrize(
    "driver_name",
    [
        "NVIDIA GeForce RTX 3060 Ti",
        "NVIDIA GeForce RTX 3070 Ti",
        "NVIDIA GeForce RTX 4070 SUPER",
        "NVIDIA GeForce RTX 5090 D",
        "NVIDIA GeForce RTX 4060",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3080 Ti Laptop GPU",
        "NVIDIA A10G",
        "NVIDIA GH200 480GB",
        "NVIDIA RTX 4000 SFF Ada Generation",
        "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
        "Quadro RTX 6000",
        "AMD Instinct MI300X",
        "",
    ],
)
def test_a_gpu_that_no_stack_file_can_ask_for_is_taken_for_none(driver_name: str) -> None:
    assert [gpu.name for gpu in GPUS.values() if gpu.is_reported_as(driver_name)] == []


def test_no_two_gpus_share_a_name() -> None:
    assert len(GPU_OF_VAST) == len(GPUS) == len(DRIVER_NAMES)


def test_an_offer_is_read_in_our_units() -> None:
    assert Offer.from_api(OFFER_ROW) == Offer(
        id=777,
        machine_id=12,
        gpu="RTX 4090",
        gpu_count=1,
        vram_gib=24564 / 1024,
        usd_per_hour=0.41,
        usd_per_gb_down=0.002,
        down_mbps=812.5,
        available_disk_gb=500.0,
        reliability=0.991,
        country="SE",
        is_verified=True,
        is_datacenter=True,
        gpu_fraction=1.0,
        cuda=13.0,
        compute_capability=8.9,
        direct_ports=99,
        hours_left=7200.0,
    )


def test_the_offer_of_the_examples_fits() -> None:
    assert unmet_by(Offer.from_api(OFFER_ROW), a_plan()) == []


@pytest.mark.parametrize("value", ["absent", None], ids=["missing", "null"])
@pytest.mark.parametrize(
    ("field", "unmet"),
    [
        ("gpu_name", "gpus"),
        ("num_gpus", "gpu_count"),
        ("gpu_ram", "min_vram_gib"),
        ("gpu_frac", "dedicated"),
        ("dph_total", "max_usd_per_hour"),
        ("inet_down", "min_down_mbps"),
        ("inet_down_cost", "max_usd_total"),
        ("disk_space", "disk_gb"),
        ("reliability2", "min_reliability"),
        ("geolocation", "regions"),
        ("verification", "verified"),
        ("hosting_type", "datacenter"),
        ("cuda_max_good", "CUDA of the image"),
        ("compute_cap", "compute capability"),
        ("direct_port_count", "public ports"),
        ("duration", "max_hours"),
    ],
)
def test_a_field_that_is_not_there_never_passes_for_one_that_fits(field: str, unmet: str, value: str | None) -> None:
    row = {key: given for key, given in OFFER_ROW.items() if key != field} | ({} if value else {field: None})
    strict = a_plan(need=a_need(dedicated=True, datacenter=True), max_usd_total=1000.0)
    assert unmet_by(Offer.from_api(OFFER_ROW), strict) == []
    assert unmet in unmet_by(Offer.from_api(row), strict)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"gpu_name": "RTX 4070S Ti"}, {"gpu": "RTX 4070 Ti Super"}, id="the-markets-name-becomes-ours"),
        pytest.param({"gpu_name": "Voodoo 2"}, {"gpu": "Voodoo 2"}, id="an-unknown-gpu-keeps-its-name"),
        pytest.param(
            {"reliability2": None, "reliability": 0.97}, {"reliability": 0.97}, id="older-name-of-reliability"
        ),
        pytest.param({"compute_cap": 750}, {"compute_capability": 7.5}, id="compute-capability-times-100"),
        pytest.param({"gpu_ram": 81559.0}, {"vram_gib": 81559 / 1024}, id="mib"),
        pytest.param({"verification": "deverified"}, {"is_verified": False}, id="no-longer-verified"),
        pytest.param({"hosting_type": 0}, {"is_datacenter": False}, id="community"),
        pytest.param(
            {"num_gpus": "2", "dph_total": "0.8"}, {"gpu_count": 2, "usd_per_hour": 0.8}, id="numbers-as-text"
        ),
    ],
)
def test_an_offers_field(change: dict[str, Any], expected: dict[str, Any]) -> None:
    offer = Offer.from_api(OFFER_ROW | change)
    assert {name: getattr(offer, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("geolocation", "country"),
    [
        pytest.param("Sweden, SE", "SE", id="name-and-code"),
        pytest.param(", US", "US", id="code-alone-behind-a-comma"),
        pytest.param("US", "US", id="code-alone"),
        pytest.param("Quebec, Canada, CA ", "CA", id="three-parts-and-a-space"),
        pytest.param("sweden, se", "SE", id="small-letters"),
        pytest.param("Sweden", "", id="name-alone"),
        pytest.param("", "", id="empty"),
        pytest.param(None, "", id="null"),
        pytest.param(7, "", id="a-number"),
    ],
)
def test_the_country_of_an_offer(geolocation: object, country: str) -> None:
    assert parse_country(geolocation) == country


@pytest.mark.parametrize(
    ("regions", "inside", "outside"),
    [
        pytest.param(("EU",), {"SE", "NO", "CH", "GB"}, {"US", "RU", "TR"}, id="a-region"),
        pytest.param(("EU", "NA"), {"SE", "CA"}, {"JP"}, id="two-regions"),
        pytest.param(("SE",), {"SE"}, {"NO"}, id="a-country"),
        pytest.param(("NA", "SE"), {"SE", "US"}, {"NO"}, id="a-region-and-a-country"),
    ],
)
def test_the_countries_of_a_need(regions: tuple[str, ...], inside: set[str], outside: set[str]) -> None:
    countries = a_need(regions=regions).countries
    assert inside <= countries
    assert not outside & countries


def test_no_region_means_any_country() -> None:
    assert a_need(regions=()).countries == frozenset()


def test_no_country_is_in_two_regions() -> None:
    assert sum(map(len, REGIONS.values())) == len(frozenset().union(*REGIONS.values()))


def test_a_need_says_what_the_design_promises_by_default() -> None:
    need = GpuNeed(gpus=("RTX 4090",), max_usd_per_hour=1.0, min_vram_gib=24.0)
    assert (need.gpu_count, need.regions, need.disk_gb) == (1, (), None)
    assert (need.min_reliability, need.min_down_mbps) == (0.95, 500.0)
    assert (need.verified, need.datacenter, need.dedicated) == (True, False, False)


def test_an_instance_is_read_in_our_units() -> None:
    instance = Instance.from_api(an_instance_row())
    assert (instance.id, instance.machine_id, instance.gpu, instance.gpu_count) == (4242, 500, "RTX 4090", 1)
    assert (instance.status, instance.intended, instance.current) == ("running", "running", "running")
    assert (instance.vram_gib, instance.disk_gb, instance.usd_per_hour) == (24564 / 1024, 60.0, 0.40)
    assert (instance.country, instance.address) == ("SE", "203.0.113.7")
    assert instance.started_at == NOW
    assert instance.ports == {SSH: 40022, DOOR: 40443}
    assert instance.door_port == 40443


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"actual_status": None}, {"status": None}, id="not-begun"),
        pytest.param({"status_msg": None}, {"status_message": ""}, id="no-message"),
        pytest.param({"status_msg": " pulling\n"}, {"status_message": "pulling"}, id="message-with-white-space"),
        pytest.param({"public_ipaddr": " 203.0.113.7 \n"}, {"address": "203.0.113.7"}, id="address-with-white-space"),
        pytest.param({"public_ipaddr": None}, {"address": ""}, id="no-address-yet"),
        pytest.param({"ports": None}, {"ports": {}, "door_port": None}, id="no-ports-yet"),
        pytest.param({"ports": [40022, 40443]}, {"ports": {}}, id="ports-as-a-list-say-nothing"),
        pytest.param({"ports": {"8443/tcp": None, "22/tcp": []}}, {"ports": {}}, id="ports-not-bound"),
        pytest.param(
            {"ports": {"8443/tcp": [{"HostIp": "::", "HostPort": "7"}, {"HostPort": "8"}]}},
            {"ports": {"8443/tcp": 7}},
            id="the-first-of-two-bindings",
        ),
        pytest.param({"ports": {"8443/tcp": [{"HostPort": 7}]}}, {"ports": {"8443/tcp": 7}}, id="port-as-a-number"),
        pytest.param({"label": None}, {"label": None, "parsed": None, "is_ours": False}, id="no-label"),
        pytest.param({"gpu_ram": None, "disk_space": None}, {"vram_gib": 0.0, "disk_gb": 0.0}, id="nothing-known"),
        pytest.param({"start_date": None}, {"started_at": datetime.fromtimestamp(0, UTC)}, id="no-start"),
    ],
)
def test_an_instances_field(change: dict[str, Any], expected: dict[str, Any]) -> None:
    instance = an_instance(**change)
    assert {name: getattr(instance, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("status", "current", "stopped"),
    [
        ("exited", "stopped", True),
        ("stopped", "stopped", True),
        ("exited", "unloaded", True),
        ("exited", "running", False),  # a container that is being restarted
        ("running", "running", False),
        ("running", "stopped", False),  # on its way; the next look knows
        ("offline", "stopped", False),
        ("unknown", "stopped", False),
        ("hibernated", "stopped", False),
        (None, "stopped", False),
        (None, "", False),
    ],
)
def test_stopped_is_said_only_on_a_definite_answer(status: str | None, current: str, stopped: bool) -> None:
    assert an_instance(actual_status=status, cur_state=current).is_stopped == stopped


@pytest.mark.parametrize(
    ("message", "hopeless"),
    [
        ("Error response from daemon: manifest unknown", True),
        ("failed to pull image vllm/vllm-openai:v0", True),
        ("write /var/lib/docker: no space left on device", True),
        ("x: OCI runtime create failed: nvidia-container-cli", True),
        ("error pulling image: unexpected EOF", True),
        ("pull access denied for x, repository does not exist", True),
        ("f1555660aa88: Pulling fs layer", False),
        ("f1555660aa88: Download complete", False),
        ("success, running vllm/vllm-openai_v0.32.0/ssh", False),
        ("", False),
        (None, False),
    ],
)
def test_a_host_that_says_it_will_never_come_up_is_believed(message: str | None, hopeless: bool) -> None:
    assert an_instance(status_msg=message).is_hopeless == hopeless


def test_a_charge_is_the_sum_of_its_kinds() -> None:
    assert Charge({"gpu": 0.25, "disk": 0.5, "bwd": 0.125}).usd == 0.875
