"""Values for the tests of the core: each builder shows only what matters to the case at hand."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import httpx

from dynamic_providers.clock import Clock
from dynamic_providers.lease import keys
from dynamic_providers.lease.certificates import fleet_id, make_ca
from dynamic_providers.lease.label import Label, Phase
from dynamic_providers.store.address import StoreAddress
from dynamic_providers.vast.client import VastClient
from dynamic_providers.vast.models import GpuNeed, Instance, Offer
from dynamic_providers.vast.offers import Plan
from dynamic_providers.vast.request import FleetKeys, LeaseTerms, MachineRequest, ModelRequest

NOW = datetime(2026, 3, 14, 15, 9, 26, tzinfo=UTC)
SIGN = "5a" * 32
UID = "0123456789ab"
API_KEY = "key-of-the-account"


class FakeClock(Clock):
    """Time passes only where the code under test sleeps, and then at once."""

    def __init__(self, now: datetime = NOW) -> None:
        self.started_at = now
        self.slept = 0.0

    def now(self) -> datetime:
        return self.started_at + timedelta(seconds=self.slept)

    def monotonic(self) -> float:
        return self.slept

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept += seconds


class FakeVast:
    """Answers the client's requests one after the other, and keeps them.

    The last answer is given again to whoever asks more often; an exception is raised instead.
    """

    def __init__(self, *answers: httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.clock = FakeClock()
        self.client = VastClient(API_KEY, clock=self.clock, transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if not isinstance(answer, httpx.Response):
            return answer(request)
        # A fresh one: a response that was given once is closed.
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    @property
    def lines(self) -> list[str]:
        """The requests as `METHOD path`."""
        return [f"{request.method} {request.url.path}" for request in self.requests]


def says(status: int = 200, body: Any = None, **headers: str) -> httpx.Response:
    """Return an answer of the market; a text body is sent as text."""
    if isinstance(body, str):
        return httpx.Response(status, text=body, headers=headers)
    return httpx.Response(status, json={} if body is None else body, headers=headers)


def a_need(**change: Any) -> GpuNeed:
    return replace(
        GpuNeed(
            gpus=("RTX 4090",),
            max_usd_per_hour=0.50,
            min_vram_gib=24.0,
            regions=("EU",),
            disk_gb=60.0,
        ),
        **change,
    )


def an_offer(**change: Any) -> Offer:
    """Return an offer that `a_plan()` takes; each of its numbers has room to spare."""
    return replace(
        Offer(
            id=1000,
            machine_id=500,
            gpu="RTX 4090",
            gpu_count=1,
            vram_gib=23.99,
            usd_per_hour=0.40,
            usd_per_gb_down=0.002,
            down_mbps=800.0,
            available_disk_gb=500.0,
            reliability=0.99,
            country="SE",
            is_verified=True,
            is_datacenter=False,
            gpu_fraction=0.5,
            cuda=13.0,
            compute_capability=8.9,
            direct_ports=20,
            hours_left=500.0,
        ),
        **change,
    )


def a_plan(*, need: GpuNeed | None = None, **change: Any) -> Plan:
    return replace(Plan(need or a_need(), hours=8.0, load_gb=20.0), **change)


def a_label(**change: Any) -> Label:
    return replace(
        Label(
            expires_at=datetime(2026, 3, 14, 23, 9, 26, tzinfo=UTC),
            phase=Phase.BOOTING,
            deadline=datetime(2026, 3, 14, 15, 29, 26, tzinfo=UTC),
            idle_minutes=15,
            fleet_id="c0ffee12",
            uid=UID,
            run="tbwzg1",
            stack="gpu-on",
        ),
        **change,
    )


def an_instance_row(**change: Any) -> dict[str, Any]:
    """Return one row of the market's list of instances, of a machine that runs."""
    return {
        "id": 4242,
        "label": a_label().render(),
        "machine_id": 500,
        "start_date": NOW.timestamp(),
        "actual_status": "running",
        "intended_status": "running",
        "cur_state": "running",
        "status_msg": "success, running vllm/vllm-openai_v0.32.0/ssh",
        "gpu_name": "RTX 4090",
        "num_gpus": 1,
        "gpu_ram": 24564,
        "disk_space": 60.0,
        "dph_total": 0.40,
        "geolocation": "Sweden, SE",
        "public_ipaddr": "203.0.113.7",
        "ports": {
            "22/tcp": [{"HostIp": "0.0.0.0", "HostPort": "40022"}],
            "8443/tcp": [{"HostIp": "0.0.0.0", "HostPort": "40443"}],
        },
    } | change


def an_instance(**change: Any) -> Instance:
    return Instance.from_api(an_instance_row(**change))


def a_model(**change: Any) -> ModelRequest:
    return replace(
        ModelRequest(
            release=f"llama@sha256:{'ab' * 32}",
            size_bytes=8_000_000_000,
            served_name="llama",
            max_model_len=8192,
            vllm_args=("--enable-prefix-caching",),
            clients=("default", "ci"),
        ),
        **change,
    )


@cache
def a_fleet() -> FleetKeys:
    authority = make_ca(SIGN, NOW)
    return FleetKeys(fleet_id(authority), authority, SIGN, keys.observe_key(SIGN))


def a_request(**change: Any) -> MachineRequest:
    return replace(
        MachineRequest(
            stack="gpu-on",
            uid=UID,
            fleet=a_fleet(),
            need=a_need(),
            image="vllm/vllm-openai:v0.32.0",
            model=a_model(),
            terms=LeaseTerms(),
            store=StoreAddress("gpu-inference-models", "fsn1"),
        ),
        **change,
    )
