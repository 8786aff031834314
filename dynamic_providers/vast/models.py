"""The market's things as values of ours: names and units are translated here and nowhere else."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dynamic_providers.lease.market import Rented

HOURS_PER_MONTH = 720
"""Storage is priced per month of 30 days. Source: vast-ai/docs @c624622 search_offers.yaml, whose example it fits."""

VRAM_TOLERANCE = 0.98
"""A "24 GB" card shows 24,564 MiB = 23.99 GiB, an "80 GB" H100 81,559 MiB = 79.6 GiB: up to 2 % less is nominal."""


@dataclass(frozen=True)
class GpuModel:
    """One kind of GPU under its three names.

    Attributes:
        name: Ours, in stack files.
        vast: The market's `gpu_name`.
        driver: What the driver's own name (`nvidia-smi`, NVML) contains.
        not_driver: What it must not contain, where one name is part of another.
    """

    name: str
    vast: str
    driver: str
    not_driver: tuple[str, ...] = ()

    def is_reported_as(self, driver_name: str) -> bool:
        """Say whether the driver's name is a name of this GPU."""
        others = (*self.not_driver, "Laptop")  # a laptop's chip bears the card's name, not its memory
        return self.driver in driver_name and not any(word in driver_name for word in others)


# Source: vastai 1.9.1, data/query.py (the market's names); NVIDIA's driver for the others.
GPUS: Mapping[str, GpuModel] = {
    gpu.name: gpu
    for gpu in (
        GpuModel("RTX 3060", "RTX 3060", "GeForce RTX 3060", ("Ti",)),
        GpuModel("RTX 3070", "RTX 3070", "GeForce RTX 3070", ("Ti",)),
        GpuModel("RTX 3080", "RTX 3080", "GeForce RTX 3080", ("Ti",)),
        GpuModel("RTX 3080 Ti", "RTX 3080 Ti", "GeForce RTX 3080 Ti"),
        GpuModel("RTX 3090", "RTX 3090", "GeForce RTX 3090", ("Ti",)),
        GpuModel("RTX 3090 Ti", "RTX 3090 Ti", "GeForce RTX 3090 Ti"),
        GpuModel("RTX 4060 Ti", "RTX 4060 Ti", "GeForce RTX 4060 Ti"),
        GpuModel("RTX 4070", "RTX 4070", "GeForce RTX 4070", ("Ti", "SUPER")),
        GpuModel("RTX 4070 Ti", "RTX 4070 Ti", "GeForce RTX 4070 Ti", ("SUPER",)),
        GpuModel("RTX 4070 Ti Super", "RTX 4070S Ti", "GeForce RTX 4070 Ti SUPER"),
        GpuModel("RTX 4080", "RTX 4080", "GeForce RTX 4080", ("SUPER",)),
        GpuModel("RTX 4080 Super", "RTX 4080S", "GeForce RTX 4080 SUPER"),
        GpuModel("RTX 4090", "RTX 4090", "GeForce RTX 4090", ("4090 D",)),
        GpuModel("RTX 4090 D", "RTX 4090D", "GeForce RTX 4090 D"),
        GpuModel("RTX 5070 Ti", "RTX 5070 Ti", "GeForce RTX 5070 Ti"),
        GpuModel("RTX 5080", "RTX 5080", "GeForce RTX 5080"),
        GpuModel("RTX 5090", "RTX 5090", "GeForce RTX 5090", ("5090 D",)),
        GpuModel("RTX A4000", "RTX A4000", "RTX A4000"),
        GpuModel("RTX A5000", "RTX A5000", "RTX A5000"),
        GpuModel("RTX A6000", "RTX A6000", "RTX A6000"),
        GpuModel("RTX 4000 Ada", "RTX 4000Ada", "RTX 4000 Ada"),
        GpuModel("RTX 5000 Ada", "RTX 5000Ada", "RTX 5000 Ada"),
        GpuModel("RTX 6000 Ada", "RTX 6000Ada", "RTX 6000 Ada"),
        GpuModel("RTX PRO 6000 WS", "RTX PRO 6000 WS", "RTX PRO 6000 Blackwell Workstation"),
        GpuModel("RTX PRO 6000 S", "RTX PRO 6000 S", "RTX PRO 6000 Blackwell Server"),
        GpuModel("T4", "Tesla T4", "Tesla T4"),
        GpuModel("L4", "L4", "NVIDIA L4", ("L40",)),
        GpuModel("L40", "L40", "NVIDIA L40", ("L40S",)),
        GpuModel("L40S", "L40S", "NVIDIA L40S"),
        GpuModel("A10", "A10", "NVIDIA A10", ("A100", "A10G")),
        GpuModel("A40", "A40", "NVIDIA A40"),
        GpuModel("A100 PCIe", "A100 PCIE", "NVIDIA A100", ("SXM",)),
        GpuModel("A100 SXM", "A100 SXM4", "NVIDIA A100-SXM4"),
        GpuModel("H100 PCIe", "H100 PCIE", "NVIDIA H100 PCIe"),
        GpuModel("H100 NVL", "H100 NVL", "NVIDIA H100 NVL"),
        GpuModel("H100 SXM", "H100 SXM", "NVIDIA H100", ("PCIe", "NVL")),
        GpuModel("H200", "H200", "NVIDIA H200", ("NVL",)),
        GpuModel("H200 NVL", "H200 NVL", "NVIDIA H200 NVL"),
        GpuModel("B200", "B200", "NVIDIA B200"),
    )
}
GPU_OF_VAST: Mapping[str, GpuModel] = {gpu.vast: gpu for gpu in GPUS.values()}

# A region is a group of countries, or one country by its two letters. EU is the European Economic Area, Switzerland
# and the United Kingdom: where data-protection law is the same or found adequate.
_EU = "AT BE BG CH CY CZ DE DK EE ES FI FR GB GR HR HU IE IS IT LI LT LU LV MT NL NO PL PT RO SE SI SK"
REGIONS: Mapping[str, frozenset[str]] = {
    "EU": frozenset(_EU.split()),
    "NA": frozenset({"CA", "US", "MX"}),
    "ASIA": frozenset({"AE", "HK", "ID", "IL", "IN", "JP", "KR", "MY", "PH", "SG", "TH", "TR", "TW", "VN"}),
    "OCEANIA": frozenset({"AU", "NZ"}),
}


@dataclass(frozen=True)
class GpuNeed:
    """What the model requires of a machine. Field names are the stack file's keys under `need`.

    Attributes:
        gpus: Names of ours (keys of `GPUS`), in no order; any of them will do.
        gpu_count: GPUs in the machine that are ours.
        min_vram_gib: Memory of *each* GPU, nominal GiB.
        max_usd_per_hour: All-in: GPU, disk; what the market calls `dph_total` at our disk size.
        regions: Keys of `REGIONS` or two-letter country codes; empty means any.
        disk_gb: Size of the disk to rent; fixed once rented.
        min_reliability: 0..1, the market's own estimate.
        min_down_mbps: Download speed as the host measured it, Mbit/s.
        verified: Only machines that the market has verified.
        datacenter: Only machines in a data centre.
        dedicated: Only whole machines, no slice of a shared host.
        min_cuda: Highest CUDA version that the driver must run; follows from the image.
        min_compute_capability: 7.5 is Turing, 8.0 Ampere; follows from the image.
    """

    gpus: tuple[str, ...]
    max_usd_per_hour: float
    min_vram_gib: float
    gpu_count: int = 1
    regions: tuple[str, ...] = ()
    disk_gb: float | None = None
    min_reliability: float = 0.95
    min_down_mbps: float = 500.0
    verified: bool = True
    datacenter: bool = False
    dedicated: bool = False
    min_cuda: float = 13.0
    min_compute_capability: float = 7.5

    @property
    def countries(self) -> frozenset[str]:
        """Two-letter codes that `regions` allow; empty means any."""
        return frozenset().union(*(REGIONS.get(region, {region}) for region in self.regions))


@dataclass(frozen=True)
class Offer:
    """One ask on the market; gone once taken.

    Attributes:
        vram_gib: Memory of each GPU.
        usd_per_hour: All-in for the disk size that was searched with (`dph_total`).
        usd_per_gb_down: For every byte that the machine downloads, image and weights included.
        down_mbps: As the host measured it, Mbit/s.
        available_disk_gb: The most that can be rented there.
        gpu_fraction: Share of the physical machine.
        hours_left: Until the host takes the machine back.
    """

    id: int
    machine_id: int
    gpu: str
    gpu_count: int
    vram_gib: float
    usd_per_hour: float
    usd_per_gb_down: float
    down_mbps: float
    available_disk_gb: float
    reliability: float
    country: str
    is_verified: bool
    is_datacenter: bool
    gpu_fraction: float
    cuda: float
    compute_capability: float
    direct_ports: int
    hours_left: float

    @classmethod
    def from_api(cls, row: Mapping[str, Any]) -> "Offer":
        """Read one row of the search. A field that is missing reads as the value that fits no need.

        Source: vast-ai/docs @c624622 search_offers.yaml. `gpu_ram` is MB and its examples are multiples of 1024, so
        we read MiB; `inet_down` is Mbit/s by the official client's help; `compute_cap` is ×100.
        """
        vast_name = str(row.get("gpu_name") or "")
        known = GPU_OF_VAST.get(vast_name)
        return cls(
            id=int(row["id"]),
            machine_id=int(row["machine_id"]),
            gpu=known.name if known else vast_name,
            gpu_count=int(row.get("num_gpus") or 0),
            vram_gib=_number(row, "gpu_ram") / 1024,
            usd_per_hour=_number(row, "dph_total", missing=float("inf")),
            usd_per_gb_down=_number(row, "inet_down_cost", missing=float("inf")),
            down_mbps=_number(row, "inet_down"),
            available_disk_gb=_number(row, "disk_space"),
            reliability=_number(row, "reliability2", missing=_number(row, "reliability")),
            country=parse_country(row.get("geolocation")),
            is_verified=row.get("verification") == "verified",
            is_datacenter=row.get("hosting_type") == 1,
            gpu_fraction=_number(row, "gpu_frac"),
            cuda=_number(row, "cuda_max_good"),
            compute_capability=_number(row, "compute_cap") / 100,
            direct_ports=int(_number(row, "direct_port_count")),
            hours_left=_number(row, "duration") / 3600,
        )


# What `actual_status` says while a machine is still coming up.
# Source: vast-ai/docs @c624622 cli/reference/show-instances.mdx, SkyPilot @04698d7.
COMING_UP = frozenset({None, "", "created", "loading", "rebooting", "restarting", "recycling"})

# Texts in `status_msg` after which a machine never leaves `loading`; compared in lower case.
# Source: vast-ai/base-image @a7552d1 tools/template_manager/test_template.py:521, dstack, official self-test.
_HOPELESS = (
    "error response from daemon",
    "failed to pull image",
    "no space left on device",
    "manifest unknown",
    "unauthorized",
    "unexpected eof",
    "oci runtime create failed",
    "pull access denied",
    "repository does not exist",
    "no such image",
)


@dataclass(frozen=True)
class Instance(Rented):
    """What we rent on a machine; billed until destroyed.

    Attributes:
        status: The market's `actual_status`; None until the host has begun.
        status_message: What the host says of it, such as image layers being pulled.
        intended: What the market wants it to be: `running` or `stopped`.
        address: Public IP address; empty until running.
        ports: Container port (`8443/tcp`) → public port.
    """

    machine_id: int
    status: str | None
    status_message: str
    intended: str
    current: str
    gpu: str
    gpu_count: int
    vram_gib: float
    disk_gb: float
    usd_per_hour: float
    country: str
    address: str
    ports: Mapping[str, int]

    @classmethod
    def from_api(cls, row: Mapping[str, Any]) -> "Instance":
        """Read one row of the instance list. Source: vast-ai/docs @c624622 show_instance.yaml, show_instances.yaml."""
        vast_name = str(row.get("gpu_name") or "")
        known = GPU_OF_VAST.get(vast_name)
        return cls(
            id=int(row["id"]),
            label=row.get("label"),
            started_at=datetime.fromtimestamp(_number(row, "start_date"), UTC),
            machine_id=int(row.get("machine_id") or 0),
            status=row.get("actual_status"),
            status_message=str(row.get("status_msg") or "").strip(),
            intended=str(row.get("intended_status") or ""),
            current=str(row.get("cur_state") or ""),
            gpu=known.name if known else vast_name,
            gpu_count=int(row.get("num_gpus") or 0),
            vram_gib=_number(row, "gpu_ram") / 1024,
            disk_gb=_number(row, "disk_space"),
            usd_per_hour=_number(row, "dph_total", missing=float("inf")),
            country=parse_country(row.get("geolocation")),
            address=str(row.get("public_ipaddr") or "").strip(),  # it can carry white space
            ports=_parse_ports(row.get("ports")),
        )

    @property
    def is_stopped(self) -> bool:
        """Whether it was definitely stopped: by the market, by hand, or because credit ran out.

        `offline`, `unknown` and words we do not know are not that: they may pass.
        """
        return self.status in {"exited", "stopped"} and self.current in {"stopped", "unloaded"}

    @property
    def is_hopeless(self) -> bool:
        """Whether its host says something after which nothing comes."""
        message = self.status_message.lower()
        return any(text in message for text in _HOPELESS)

    @property
    def door_port(self) -> int | None:
        """Public port of the front door, None until the host has published it."""
        return self.ports.get(DOOR)


DOOR = "8443/tcp"
SSH = "22/tcp"


@dataclass(frozen=True)
class Charge:
    """What the market says one instance has cost so far, USD by kind (`gpu`, `disk`, `bwd` …)."""

    usd_by_kind: Mapping[str, float]

    @property
    def usd(self) -> float:
        """The sum."""
        return sum(self.usd_by_kind.values())


def parse_country(geolocation: object) -> str:
    """Return the two letters that end `Sweden, SE`; empty if there are none."""
    code = str(geolocation or "").rpartition(",")[2].strip().upper()
    return code if len(code) == 2 else ""


def _number(row: Mapping[str, Any], key: str, *, missing: float = 0.0) -> float:
    value = row.get(key)
    return missing if value is None else float(value)


def _parse_ports(raw: object) -> dict[str, int]:
    # {"8443/tcp": [{"HostIp": "0.0.0.0", "HostPort": "40080"}]}; null until running; HostPort is a string.
    if not isinstance(raw, Mapping):
        return {}
    return {str(name): int(bound[0]["HostPort"]) for name, bound in raw.items() if bound}
