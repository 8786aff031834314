"""What an instance costs, second by second."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

HOURS_PER_MONTH = 720
"""Storage is priced per month of 30 days."""

IMAGE_GB = 10.0
"""What pulling the image moves. A vLLM image is 10 to 12 GB compressed; hosts start without it here."""


@dataclass(frozen=True)
class Rates:
    """Prices as they were when the instance was rented."""

    gpu_usd_per_hour: float
    disk_gb: float
    storage_usd_per_gb_month: float
    download_usd_per_gb: float

    @property
    def disk_usd_per_hour(self) -> float:
        return self.disk_gb * self.storage_usd_per_gb_month / HOURS_PER_MONTH


@dataclass(frozen=True)
class Usd:
    """A sum of money by what it was for."""

    gpu: float
    disk: float
    bytes: float

    @property
    def total(self) -> float:
        return self.gpu + self.disk + self.bytes


@dataclass
class Meter:
    """Counts one instance from creation to destroy.

    Attributes:
        rates: Prices; they never change under an instance, unless its tenant changes his bid.
        since: When it was created.
        until: When it was destroyed; None while it bills.
        gpu_spans: The times in which its GPUs were on; the last one may be open.
        offline_spans: The times in which its host was offline: nothing is billed then. The last one may be open.
        downloaded_gb: Bytes moved so far.
    """

    rates: Rates
    since: float
    until: float | None = None
    gpu_spans: list[tuple[float, float | None]] = field(default_factory=list)
    offline_spans: list[tuple[float, float | None]] = field(default_factory=list)
    downloaded_gb: float = 0.0
    _former_gpu_seconds: float = 0.0
    _former_gpu_usd: float = 0.0

    def start_gpu(self, now: float) -> None:
        self.gpu_spans.append((now, None))

    def stop_gpu(self, now: float) -> None:
        _end_span(self.gpu_spans, now)

    def go_offline(self, now: float) -> None:
        self.stop_gpu(now)
        self.offline_spans.append((now, None))

    def come_back(self, now: float) -> None:
        _end_span(self.offline_spans, now)

    def change_gpu_price(self, usd_per_hour: float, now: float) -> None:
        """Charge the GPUs at another price from now on."""
        spent, seconds = self.usd(now).gpu, self.gpu_seconds(now)
        is_on = bool(self.gpu_spans) and self.gpu_spans[-1][1] is None
        self._former_gpu_usd, self._former_gpu_seconds = spent, seconds
        self.gpu_spans = [(now, None)] if is_on else []
        self.rates = replace(self.rates, gpu_usd_per_hour=usd_per_hour)

    def close(self, now: float) -> None:
        """End all billing: what is counted now is final."""
        self.stop_gpu(now)
        self.come_back(now)
        self.until = now

    def gpu_seconds(self, now: float) -> float:
        return self._former_gpu_seconds + _length(self.gpu_spans, now)

    def usd(self, now: float) -> Usd:
        """Say what has been spent."""
        end = now if self.until is None else self.until
        disk_seconds = end - self.since - _length(self.offline_spans, end)
        return Usd(
            gpu=self._former_gpu_usd + _length(self.gpu_spans, now) / 3600 * self.rates.gpu_usd_per_hour,
            disk=disk_seconds / 3600 * self.rates.disk_usd_per_hour,
            bytes=self.downloaded_gb * self.rates.download_usd_per_gb,
        )


@dataclass(frozen=True)
class Bill:
    """A meter with the names that stand on the bill."""

    instance_id: int
    label: str | None
    machine_id: int
    gpus: str
    meter: Meter

    def ledger_row(self, now: float) -> dict[str, Any]:
        """Render the row of `GET /sandbox/ledger`."""
        usd = self.meter.usd(now)
        return {
            "id": self.instance_id,
            "label": self.label,
            "machine_id": self.machine_id,
            "from": self.meter.since,
            "to": self.meter.until,
            "usd": {"gpu": usd.gpu, "disk": usd.disk, "bytes": usd.bytes},
        }

    def charge(self, now: float) -> dict[str, Any]:
        """Render the row of `GET /api/v0/charges/`."""
        usd, meter = self.meter.usd(now), self.meter
        start, end = meter.since, now if meter.until is None else meter.until
        hours = meter.gpu_seconds(now) / 3600
        items = (
            ("gpu", usd.gpu, f"{hours:.4f} hours of {self.gpus} at ${meter.rates.gpu_usd_per_hour:.4f}/hour"),
            ("disk", usd.disk, f"{meter.rates.disk_gb:g} GB at ${meter.rates.storage_usd_per_gb_month:.4f}/GB/month"),
            ("bwd", usd.bytes, f"{meter.downloaded_gb:.3f} GB at ${meter.rates.download_usd_per_gb:.4f}/GB"),
        )
        return {
            "start": start,
            "end": end,
            "type": "instance",
            "source": f"instance-{self.instance_id}",
            "description": f"Instance {self.instance_id}: {self.gpus}",
            "amount": usd.total,
            "metadata": {"label": self.label, "instance_id": self.instance_id, "machine_id": self.machine_id},
            "items": [_item(start, end, kind, amount, text) for kind, amount, text in items],
        }


def _end_span(spans: list[tuple[float, float | None]], now: float) -> None:
    if spans and spans[-1][1] is None:
        start, _ = spans.pop()
        spans.append((start, max(start, now)))


def _length(spans: Sequence[tuple[float, float | None]], now: float) -> float:
    return sum((now if end is None else end) - start for start, end in spans)


def _item(start: float, end: float, kind: str, amount: float, description: str) -> Mapping[str, Any]:
    return {
        "start": start,
        "end": end,
        "type": kind,
        "source": None,
        "description": description,
        "amount": amount,
        "metadata": {},
        "items": [],
    }
