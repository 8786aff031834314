"""One rented instance: its state by the clock, and the row that the market shows."""

import asyncio
import zlib
from dataclasses import dataclass, field
from typing import Any

from tests.sandbox.vast.billing import IMAGE_GB, Bill, Meter
from tests.sandbox.vast.catalogue import GpuKind
from tests.sandbox.vast.faults import Fault
from tests.sandbox.vast.hosts import SSH_PORT, Address, HostSpec
from tests.sandbox.vast.machines import Machine, price_block
from tests.sandbox.vast.order import Order
from tests.sandbox.vast.quirks import Quirks
from tests.sandbox.vast.troubles import docker_message, ssh_trouble

# Shares of the boot time after which the row says so. Before the first it says null.
CREATED_AT, LOADING_AT = 0.05, 0.15
PORTS_LAG = 0.05
"""Ports and address are published a little after `running`, by this share of the boot time."""
HUNG_AT = 0.45
"""How far the image comes on a host that hangs."""
WARM_BOOT = 0.3
"""A host that has the image starts in this share of the boot time."""
LAYER_STEPS = ("Pulling fs layer", "Downloading", "Verifying Checksum", "Download complete", "Pull complete")
LAYERS = 12


@dataclass
class Rental:
    """An instance from create to destroy.

    Attributes:
        id: The market's id of it.
        machine: Where it runs.
        offer: The offer's row as it was when taken, priced with the disk that was asked for.
        order: What was asked for.
        variables: Its environment, the account's own variables included.
        label: As it is now.
        api_key: Its own key.
        meter: What it costs.
        boot_started: When the current boot began.
        boot_seconds: How long the current boot takes.
        hangs: Whether it never runs.
        shown: The GPU that its row shows.
        actual: The GPU that the host has.
        keys: Public keys attached to it, by key id.
        quirks: How the market shows it.
        bid_usd: What is bid for an hour of it, None for on-demand.
        floor_usd: The least bid that wins it, now.
        troubles: What befalls it, or will, by the fault's kind.
        intended: `running` or `stopped`.
        address: Where the host is reached; None while it is off.
        offline_until: When its host is back; None while it is there.
        queued_until: When it starts, if it waits for its GPUs to be free; else None.
        last_row: What was shown of it last, once it is destroyed or forgotten.
        lock: Held while the host is being started or stopped.
    """

    id: int
    machine: Machine
    offer: dict[str, Any]
    order: Order
    variables: dict[str, str]
    label: str | None
    api_key: str
    meter: Meter
    boot_started: float
    boot_seconds: float
    hangs: bool
    shown: GpuKind
    actual: GpuKind
    keys: dict[int, str]
    quirks: Quirks
    bid_usd: float | None
    floor_usd: float
    troubles: dict[str, Fault]
    intended: str = "running"
    address: Address | None = None
    offline_until: float | None = None
    queued_until: float | None = None
    last_row: dict[str, Any] | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def is_gone(self) -> bool:
        return self.last_row is not None

    @property
    def ready_at(self) -> float:
        """When the current boot is over."""
        return self.boot_started + self.boot_seconds

    @property
    def has_direct_ports(self) -> bool:
        return bool(self.offer["direct_port_count"] >= len(self.order.tcp_ports))

    def is_due(self, now: float) -> bool:
        """Say whether the host should be on by now, and is not."""
        is_wanted = self.intended == "running" and not self.is_gone and not self.hangs
        return is_wanted and self.offline_until is None and self.address is None and now >= self.ready_at

    def progress(self, now: float) -> float:
        """Say how far the current boot is, 0 to 1."""
        done = 1.0 if now >= self.ready_at else (now - self.boot_started) / self.boot_seconds
        return min(done, HUNG_AT) if self.hangs else done

    def count_download(self, now: float) -> None:
        """Book what has been pulled of the image; a second boot finds it there."""
        if self.intended == "running" and self.meter.downloaded_gb < IMAGE_GB:
            share = max(0.0, self.progress(now) - LOADING_AT) / (1 - LOADING_AT)
            self.meter.downloaded_gb = max(self.meter.downloaded_gb, IMAGE_GB * share)

    def host_spec(self, market_url: str) -> HostSpec:
        """Say what the host is to be started with."""
        return HostSpec(
            instance_id=self.id,
            gpus=(self.actual.to_gpu(),) * self.offer["num_gpus"],
            onstart=self.order.onstart,
            env=self.variables,
            tcp_ports=self.order.tcp_ports if self.has_direct_ports else (),
            api_key=self.api_key,
            market_url=market_url,
            authorized_keys=tuple(self.keys.values()),
            ssh=ssh_trouble(self.troubles),
        )

    def bill(self) -> Bill:
        gpus = f"{self.offer['num_gpus']}x {self.offer['gpu_name']}"
        return Bill(self.id, self.label, self.machine.machine_id, gpus, self.meter)

    def actual_status(self, now: float) -> str | None:
        """Say the market's word for the state it is in."""
        if self.offline_until is not None:
            return "offline"
        if self.address is not None:
            return "running"
        if self.intended == "stopped":
            return "exited"
        progress = self.progress(now)
        if progress < CREATED_AT and self.boot_seconds:
            return None
        is_created = (progress < LOADING_AT and self.boot_seconds) or "oci_error" in self.troubles
        return "created" if is_created else "loading"

    def status_msg(self, now: float) -> str | None:
        """Say what the market says about it: lines of the image pull, then success."""
        status = self.actual_status(now)
        if status == "running":
            runtype = self.order.runtype.split("_")[0].split()[0]
            return f"success, running {self.order.image.replace(':', '_')}/{runtype}"
        complaint = docker_message(self.troubles, self.order.image)
        if complaint and status in ("created", "loading") and self.progress(now) >= HUNG_AT:
            return complaint
        if status != "loading":
            return None
        step = int(self.progress(now) * LAYERS * len(LAYER_STEPS))
        layer = zlib.crc32(f"{self.order.image}/{step // len(LAYER_STEPS)}".encode())
        return f"{layer:08x}{layer % 65_521:04x}: {LAYER_STEPS[step % len(LAYER_STEPS)]}"

    def row(self, now: float) -> dict[str, Any]:
        """Render the row of the instance lists; of one that is gone, as it was."""
        if self.last_row is not None:
            return self.last_row
        status = self.actual_status(now)
        row = {**self.offer, **self._identity(), **self._state(status, now), **self._network(now), **self._money()}
        if row["ports"] is None and self.quirks.unpublished_ports == "absent":
            del row["ports"]
        return row

    def _identity(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "label": self.label,
            "gpu_name": self.shown.name,
            "gpu_ram": self.shown.memory_mib,
            "gpu_total_ram": self.shown.memory_mib * self.offer["num_gpus"],
            "gpu_totalram": self.shown.memory_mib * self.offer["num_gpus"],
            "compute_cap": self.shown.compute_cap,
            "disk_space": self.order.disk_gb,
            "image_uuid": self.order.image,
            "image_args": list(self.order.args),
            "image_runtype": self.order.runtype,
            "extra_env": [[key, value] for key, value in self.order.env.items()],
            "onstart": self.order.onstart or None,
            "jupyter_token": None,
            "template_id": None,
            "template_hash_id": None,
            "template_name": None,
            "volume_info": [],
        }

    def _state(self, status: str | None, now: float) -> dict[str, Any]:
        is_up = status == "running"
        return {
            "actual_status": status,
            "intended_status": self.intended,
            "cur_state": self.intended,
            "next_state": self.intended,
            "status_msg": self.status_msg(now),
            "start_date": self.meter.since,
            "duration": self.offer["end_date"] - now,
            "client_run_time": 1.1,
            "host_run_time": now - self.offer["start_date"],
            "uptime_mins": (now - self.ready_at) / 60 if is_up else None,
            "gpu_util": 0.0 if is_up else None,
            "gpu_temp": 34.0 if is_up else None,
            "cpu_util": 0.0,
            "mem_limit": self.offer["cpu_ram"] / 1024 if is_up else None,
            "mem_usage": 0.4 if is_up else None,
            "vmem_usage": 0.0 if is_up else None,
            "disk_usage": 1.0 if is_up else -1,
            "disk_util": 1.0 if is_up else -1,
            "rented": True,
            "rentable": False,
        }

    def _network(self, now: float) -> dict[str, Any]:
        address = self.address
        if address is None or now < self.ready_at + PORTS_LAG * self.boot_seconds:
            address = None
        ports = address.ports if address and "no_port_map" not in self.troubles else {}
        # Some hosts report their address with the end of the line that it was read from.
        is_untidy = {"some": self.machine.machine_id % 3 == 0, "all": True, "none": False}[self.quirks.untidy_addresses]
        untidy = "\n" if is_untidy else ""
        return {
            "public_ipaddr": address.ip + untidy if address else None,
            "local_ipaddrs": "172.17.0.2 \n" if address else None,
            "ports": {f"{port}/tcp": [{"HostIp": "0.0.0.0", "HostPort": str(there)}] for port, there in ports.items()}
            or None,
            # The market's SSH relay is not played: its two columns lead to the host itself.
            "ssh_host": address.ip if address else None,
            "ssh_idx": "1",
            "ssh_port": ports.get(SSH_PORT),
            "machine_dir_ssh_port": ports.get(SSH_PORT, -1),
            "direct_port_start": min(ports.values(), default=-1),
            "direct_port_end": max(ports.values(), default=-1),
        }

    def _money(self) -> dict[str, Any]:
        rates = self.meter.rates
        gpu, disk = rates.gpu_usd_per_hour, rates.disk_usd_per_hour
        return {
            "dph_base": gpu,
            "dph_total": gpu + disk,
            "storage_total_cost": disk,
            "is_bid": self.bid_usd is not None,
            "min_bid": self.floor_usd,
            "credit_balance": None,
            "credit_discount": None,
            "search": price_block(gpu, disk),
            "instance": price_block(gpu, disk),
        }
