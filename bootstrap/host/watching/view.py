"""What the page of metrics shows, gathered when somebody asks for it: nothing in here can hold up a look.

Runs on the machine: standard library, `prometheus_client`, Python 3.11.
"""

from __future__ import annotations

from pathlib import Path

from bootstrap.host.watching.clients import ClientCounts
from bootstrap.host.watching.clock import read_moment
from bootstrap.host.watching.container import read_container
from bootstrap.host.watching.engine import name_state
from bootstrap.host.watching.files import read_object
from bootstrap.host.watching.gpu import GpuWatch
from bootstrap.host.watching.market import Market
from bootstrap.host.watching.mind import drain_seconds, is_idle_known, left_of
from bootstrap.host.watching.page import EngineView, View, render_page
from bootstrap.host.watching.watch import Watch

FACTS = Path("../bundle/agent/agent.json")
PROVISIONING = Path("provisioning.json")
ACCESS_LOG = Path("../log/access.log")
CLIENTS_NOTE = Path("clients.json")


class Page:
    """The page and whom it asks."""

    def __init__(self, watch: Watch, market: Market) -> None:
        self._watch, self._market = watch, market
        self._gpus = GpuWatch()
        self._gpus.start()
        self._clients = ClientCounts(ACCESS_LOG, CLIENTS_NOTE)

    def render(self) -> bytes:
        """Return the page."""
        memory, look, program, now = self._watch.memory, self._watch.look, self._watch.program, read_moment()
        engine, left = memory.engine, left_of(memory)
        state = name_state(engine, program, is_healthy=look.is_healthy)
        return render_page(
            View(
                facts=read_object(FACTS) or {},
                provisioning=read_object(PROVISIONING),
                expires_at=memory.at.wall + left.expires_in.total_seconds() if left else None,
                last_request_at=memory.active_at,
                idle_seconds=memory.activity.idle_for.total_seconds() if is_idle_known(memory) else None,
                in_flight=look.sample.at_door,
                is_drained=drain_seconds(memory, now) > 0,
                is_armed=self._market.is_armed,
                ending=memory.ending.end.value if memory.ending else None,
                engine=EngineView(
                    state, engine.restarts, engine.exits, engine.reason if state == "unhealthy" else None
                ),
                clients=self._clients.read(),
                gpus=self._gpus.latest(),
                container=read_container(),
            )
        )
