"""What the emulator's own tests share: a market with a clock that they move, and its client."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tests.sandbox.vast.clock import ManualClock
from tests.sandbox.vast.server import VastEmulator

BOOT = 60.0
ORDER = {"image": "vllm/vllm-openai:v0.32.0", "disk": 60, "label": "gpu-on-demand/1/demo", "runtype": "ssh_direct"}
GOOD_OFFER = {
    "verified": {"eq": True},
    "rentable": {"eq": True},
    "gpu_name": {"in": ["RTX 4090", "RTX 3090"]},
    "num_gpus": {"eq": "1"},
    "reliability": {"gte": "0.95"},
    "inet_down": {"gte": 500},
    "cuda_max_good": {"gte": 13.0},
    "direct_port_count": {"gte": 2},
    "order": [["dph_total", "asc"]],
    "allocated_storage": 60,
}


class Market:
    """The emulator with a clock that the test moves, and a client of the account."""

    def __init__(self, emulator: VastEmulator, clock: ManualClock) -> None:
        self.emulator, self.clock = emulator, clock
        self.http = httpx.Client(base_url=emulator.url, headers={"Authorization": "Bearer sandbox-key"})

    def call(self, method: str, path: str, body: Any = None, **params: Any) -> Any:
        return self.http.request(method, path, json=body, params=params or None).raise_for_status().json()

    def search(self, **query: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("POST", "/api/v0/bundles/", query)["offers"]
        return found

    def rent(self, **order: Any) -> int:
        offer = self.search(**GOOD_OFFER)[0]
        created = self.call("PUT", f"/api/v0/asks/{offer['id']}/", ORDER | order)
        return int(created["new_contract"])

    def boot(self, **order: Any) -> int:
        instance_id = self.rent(**order)
        self.clock.advance(BOOT * 1.1)
        return instance_id

    def row(self, instance_id: int) -> Any:
        return self.call("GET", f"/api/v0/instances/{instance_id}/", owner="me")["instances"]

    def listed(self, filters: dict[str, Any], **params: Any) -> Any:
        return self.call("GET", "/api/v1/instances/", select_filters=json.dumps(filters), **params)


@contextmanager
def open_market(**options: Any) -> Iterator[Market]:
    """Open a market with the options of `VastEmulator`."""
    clock = ManualClock()
    with VastEmulator(boot_seconds=BOOT, clock=clock, **options) as emulator:
        market = Market(emulator, clock)
        with market.http:
            yield market


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]
