"""Machines of the played market, made from a seed, and the offers and prices that follow from them."""

import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.sandbox.vast.billing import HOURS_PER_MONTH, Rates
from tests.sandbox.vast.catalogue import CPUS, DRIVERS, GPU_KINDS, IN_EUROPE, PLACES, GpuKind

SLICES = (1, 2, 4, 8)
GOOD_MACHINES = 5
"""Of each kind of GPU this many machines are beyond reproach, whatever the seed: the market can always serve."""
WHOLE = "_all"
"""Facts with this ending are about the whole machine; an offer shows its share of them."""

_NOT_PLAYED = (
    "avail_vol_ask_id",
    "avail_vol_dph",
    "avail_vol_size",
    "nw_disk_min_bw",
    "nw_disk_max_bw",
    "nw_disk_avg_bw",
    "platform_fee",
)


@dataclass
class Machine:
    """One physical machine.

    Attributes:
        machine_id: What a tenant avoids.
        kind: Its GPUs.
        gpu_count: How many.
        facts: Columns of its offers that never change.
        usual_usd: Price of one GPU that its owner usually asks.
        usd: Price of one GPU that its owner asks today.
        is_good: Whether it is beyond reproach; such a machine never leaves the market.
        rented: GPUs that are let.
        is_listed: Whether its owner offers it today.
    """

    machine_id: int
    kind: GpuKind
    gpu_count: int
    facts: Mapping[str, Any]
    usual_usd: float
    usd: float
    is_good: bool
    rented: int = 0
    is_listed: bool = True

    @property
    def slices(self) -> tuple[int, ...]:
        """Numbers of GPUs that it offers now."""
        if not self.is_listed:
            return ()
        free = self.gpu_count - self.rented
        return tuple(size for size in (*SLICES, self.gpu_count) if size <= free and self.gpu_count % size == 0)


def make_machines(rng: random.Random, first_id: int, now: float) -> list[Machine]:
    """Make a whole market."""
    machines: list[Machine] = []
    for kind in GPU_KINDS:
        for index in range(kind.machines):
            machine_id = first_id + 37 * len(machines)
            machines.append(make_machine(rng, kind, machine_id, now, is_good=index < GOOD_MACHINES))
    return machines


def make_machine(rng: random.Random, kind: GpuKind, machine_id: int, now: float, *, is_good: bool) -> Machine:
    """Make one machine; a good one is verified, fast, reliable, European and up to date."""
    sizes = [size for size in SLICES if size <= kind.biggest]
    gpu_count = rng.choice(sizes[:2]) if is_good else rng.choices(sizes, [6, 3, 3, 3][: len(sizes)])[0]
    usd = kind.usd_per_hour * (rng.uniform(0.85, 1.05) if is_good else rng.uniform(0.7, 1.7))
    facts = {
        **_identity(rng, machine_id, is_good=is_good),
        **_host(rng, gpu_count, now, is_good=is_good),
        **_network(rng, is_good=is_good),
        **_gpu(kind),
    }
    return Machine(machine_id, kind, gpu_count, facts, usual_usd=usd, usd=usd, is_good=is_good)


def offer_row(machine: Machine, offer_id: int, num_gpus: int, storage_gb: float, now: float) -> dict[str, Any]:
    """Render an offer, priced with so much disk."""
    facts, share = machine.facts, num_gpus / machine.gpu_count
    disk_usd = storage_gb * facts["storage_cost"] / HOURS_PER_MONTH
    return {
        **{name: value for name, value in facts.items() if not name.endswith(WHOLE)},
        "id": offer_id,
        "ask_contract_id": offer_id,
        "bundle_id": zlib.crc32(f"{machine.kind.name}/{num_gpus}/{machine.machine_id}".encode()),
        "bundled_results": 1,
        "machine_id": machine.machine_id,
        "num_gpus": num_gpus,
        "gpu_frac": share,
        "gpu_ids": list(range(machine.rented, machine.rented + num_gpus)),
        "gpu_total_ram": machine.kind.memory_mib * num_gpus,
        "cpu_cores_effective": facts["cpu_cores_all"] * share,
        "cpu_ram": int(facts["cpu_ram_all"] * share),
        "disk_space": round(facts["disk_all"] * share, 1),
        "rentable": True,
        "rented": False,
        "duration": facts["end_date"] - now,
        "time_remaining": "",
        "time_remaining_isbid": "",
        **_prices(machine, num_gpus, disk_usd),
    }


def _prices(machine: Machine, num_gpus: int, disk_usd: float) -> dict[str, Any]:
    gpu_usd = machine.usd * num_gpus
    total = gpu_usd + disk_usd
    tflops = machine.kind.tflops * num_gpus
    dlperf = round(tflops * 1.3, 3)
    return {
        "dph_base": gpu_usd,
        "dph_total": total,
        "dph_total_adj": total,
        "discounted_dph_total": total,
        "discounted_hourly": 0.0,
        "discount_rate": 0.0,
        "credit_discount_max": 0.1,
        "storage_total_cost": disk_usd,
        "min_bid": round(gpu_usd * 0.5, 4),
        "is_bid": False,
        "vram_costperhour": gpu_usd / (machine.kind.memory_mib * num_gpus),
        "dlperf": dlperf,
        "dlperf_per_dphtotal": dlperf / total,
        "total_flops": tflops,
        "flops_per_dphtotal": tflops / total,
        "score": dlperf / total * machine.facts["reliability"] ** 4,
        "search": price_block(gpu_usd, disk_usd),
        "instance": price_block(gpu_usd, disk_usd),
    }


def price_block(gpu_usd: float, disk_usd: float) -> dict[str, float]:
    """Render the prices per hour that rows carry twice."""
    return {
        "gpuCostPerHour": gpu_usd,
        "diskHour": disk_usd,
        "totalHour": gpu_usd + disk_usd,
        "discountTotalHour": 0.0,
        "discountedTotalPerHour": gpu_usd + disk_usd,
    }


def rates_of(row: Mapping[str, Any], disk_gb: float, gpu_usd_per_hour: float) -> Rates:
    """Freeze the prices of an offer for the one who rents it."""
    return Rates(gpu_usd_per_hour, disk_gb, row["storage_cost"], row["inet_down_cost"])


def _identity(rng: random.Random, machine_id: int, *, is_good: bool) -> dict[str, Any]:
    is_verified = is_good or rng.random() < 0.75
    is_datacenter = rng.random() < 0.3
    places = IN_EUROPE if is_good else PLACES
    place = rng.choices(places, [place.weight for place in places])[0].geolocation
    return {
        "host_id": 10_000 + machine_id % 977,
        "hosting_type": int(is_datacenter),
        "verification": "verified" if is_verified else rng.choice(("unverified", "unverified", "deverified")),
        "vericode": int(is_verified),
        "hostname": None,
        "public_ipaddr": f"198.51.100.{machine_id % 250 + 1}",
        "static_ip": is_datacenter or rng.random() < 0.5,
        "geolocation": place,
        "geolocode": zlib.crc32(place.encode()),
        "country_code": place[-2:],
        "logo": "/static/logos/vastai_small2.png",
        "webpage": None,
        "cluster_id": None,
        "external": rng.choice((None, False)),
        "resource_type": "gpu",
        "rn": 1,
    }


def _host(rng: random.Random, gpu_count: int, now: float, *, is_good: bool) -> dict[str, Any]:
    reliability = rng.uniform(0.985, 0.9995) if is_good else 1 - min(0.35, rng.expovariate(40))
    driver, cuda = rng.choices(DRIVERS, [0, 0, 0, 0, 3, 1] if is_good else [1, 2, 2, 3, 7, 2])[0]
    cpu, cores, ghz = rng.choice(CPUS)
    started, lasts = now - rng.uniform(1, 300) * 86_400, rng.uniform(20, 300) if is_good else rng.uniform(0.2, 200)
    return {
        "reliability": reliability,
        "reliability2": reliability,
        "expected_reliability": reliability * 0.999,
        "reliability_mult": 1.0,
        "driver_version": driver,
        "driver_vers": int("".join(part.zfill(3) for part in driver.split("."))),
        "cuda_max_good": cuda,
        "cpu_name": cpu,
        "cpu_arch": "amd64",
        # Some hosts report no number of cores.
        "cpu_cores": cores if is_good or rng.random() < 0.9 else None,
        "cpu_cores_all": cores,
        "cpu_ghz": ghz,
        "cpu_ram_all": gpu_count * rng.choice((32, 64, 128)) * 1024,
        "has_avx": 1,
        "disk_name": rng.choice(("Samsung SSD 990 PRO", "KINGSTON SKC3000D", "nvme", "WD_BLACK SN850X")),
        "disk_all": gpu_count * rng.uniform(300, 1500) if is_good else gpu_count * rng.uniform(40, 900),
        "disk_bw": round(rng.uniform(600, 7000), 1),
        "storage_cost": round(rng.uniform(0.1, 0.2) if is_good else rng.uniform(0.08, 0.4), 4),
        "start_date": started,
        "end_date": now + lasts * 86_400,
        "mobo_name": rng.choice(("ROMED8-2T", "H12SSL-i", "X670E", "Z790")),
        "os_version": rng.choice(("22.04", "24.04")),
        "pci_gen": rng.choice((3.0, 4.0, 5.0)),
        "pcie_bw": round(rng.uniform(6, 52), 1),
        "gpu_lanes": 16,
        "vms_enabled": rng.random() < 0.2,
        "is_vm_deverified": False,
        **dict.fromkeys(_NOT_PLAYED),
    }


def _network(rng: random.Random, *, is_good: bool) -> dict[str, Any]:
    down = rng.uniform(800, 9000) if is_good else rng.choice((rng.uniform(80, 900), rng.uniform(500, 9000)))
    down_cost = round(rng.uniform(0.0, 0.004) if is_good else rng.choice((0.0, 0.002, 0.01, 0.02, 0.04)), 5)
    return {
        "inet_down": round(down, 1),
        "inet_up": round(down * rng.uniform(0.2, 1.0), 1),
        "inet_down_cost": down_cost,
        "inet_up_cost": down_cost,
        "internet_down_cost_per_tb": down_cost * 1000,
        "internet_up_cost_per_tb": down_cost * 1000,
        "direct_port_count": rng.randint(20, 500) if is_good else rng.choice((0, 1, 4, 50, 250, 999)),
    }


def _gpu(kind: GpuKind) -> dict[str, Any]:
    return {
        "gpu_name": kind.name,
        "gpu_arch": "nvidia",
        "gpu_ram": kind.memory_mib,
        "gpu_mem_bw": kind.bandwidth,
        "gpu_max_power": float(kind.watts),
        "gpu_max_temp": 90.0,
        "gpu_display_active": False,
        "compute_cap": kind.compute_cap,
        "bw_nvlink": 0.0,
    }
