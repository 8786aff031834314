"""A whole market in memory: offers, instances and an account, behind the real client."""

import json
from typing import Any

import httpx

from dynamic_providers.vast.rent import World
from tests.unit.builders import FakeVast, a_fleet, a_label, a_request, an_instance_row, says

REQUEST = a_request()
LABEL = a_label(fleet_id=a_fleet().id)


def ours(id_: int, **change: Any) -> dict[str, Any]:
    """Return a row of the instance that an earlier run rented for `REQUEST`."""
    return an_instance_row(id=id_, label=LABEL.render()) | change


def an_offer_row(id_: int, **change: Any) -> dict[str, Any]:
    return {
        "id": id_,
        "machine_id": 500 + id_,
        "gpu_name": "RTX 4090",
        "num_gpus": 1,
        "gpu_ram": 24564,
        "gpu_frac": 1.0,
        "dph_total": 0.30 + id_ / 1000,
        "inet_down": 900,
        "inet_down_cost": 0.0,
        "disk_space": 500,
        "reliability2": 0.99,
        "geolocation": "Sweden, SE",
        "verification": "verified",
        "cuda_max_good": 13.0,
        "compute_cap": 890,
        "direct_port_count": 10,
        "duration": 1e7,
    } | change


class Town:
    """A market with a few offers; keeps what was rented and how. `on_create` says what a create answers, in turn."""

    def __init__(
        self,
        *on_create: str | httpx.Response,
        offers: tuple[int, ...] = (1, 2, 3),
        rows: list[dict[str, Any]] | None = None,
    ):
        self.on_create = list(on_create)
        self.offers = [an_offer_row(id_) for id_ in offers]
        self.rows = {row["id"]: row for row in rows or []}
        self.created: list[tuple[int, dict[str, Any]]] = []
        self.destroyed: list[int] = []
        self.said: list[str] = []
        self.credit = 10.0
        self.appears_after = 0.0
        self.vast = FakeVast(self.answer)
        self.world = World(self.vast.client, self.said.append, self.vast.clock)

    def answer(self, request: httpx.Request) -> httpx.Response:
        path, body = request.url.path, json.loads(request.content or b"{}")
        last = path.rstrip("/").rpartition("/")[2]
        if path.endswith("/users/current"):
            return says(200, {"credit": self.credit})
        if path.endswith("/bundles/"):
            return says(200, {"offers": self.offers})
        if path.endswith("/charges/"):
            return says(200, {"results": [], "next_token": None})
        if "/asks/" in path:
            return self._create(int(last), body)
        if request.method == "DELETE":
            self.destroyed.append(int(last))
            self.rows.pop(int(last), None)
        elif request.method == "PUT":
            self.rows[int(last)]["label"] = body["label"]
        elif last == "instances":
            rows = [] if self.vast.clock.slept < self.appears_after else list(self.rows.values())
            return says(200, {"instances": rows, "next_token": None})
        else:
            return says(200, {"instances": self.rows.get(int(last))})
        return says(200, {"success": True})

    def _create(self, offer_id: int, body: dict[str, Any]) -> httpx.Response:
        self.created.append((offer_id, body))
        what = self.on_create.pop(0) if self.on_create else "yes"
        if what in ("yes", "yes, reply lost"):
            self.rows[9000 + offer_id] = an_instance_row(id=9000 + offer_id, label=body["label"])
        if what in ("yes, reply lost", "nothing, reply lost"):
            raise httpx.ReadError("closed")
        if isinstance(what, httpx.Response):
            return what
        return says(200, {"success": True, "new_contract": 9000 + offer_id})
