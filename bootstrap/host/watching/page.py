"""The agent's page of metrics: what the agent knows, in Prometheus' text format.

Runs on the machine: standard library, `prometheus_client` and the register of metrics beside it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from dynamic_providers.lease.metrics import Figure, Kind, checked

ENGINE_STATES = ("running", "starting", "stopped", "unhealthy")


@dataclass(frozen=True)
class EngineView:
    """The engine as the agent sees it.

    Attributes:
        state: One of ENGINE_STATES.
        restarts: How often the agent started it anew.
        exits: How often it ended, by the name of a Reason.
        reason: Why it is unhealthy, the name of a Reason; None if it is not.
    """

    state: str
    restarts: int = 0
    exits: Mapping[str, int] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class View:
    """All that the page shows.

    Attributes:
        facts: `agent.json`.
        provisioning: `provisioning.json`; None as long as there is none. Of its `failures` the latest reason stands
            last.
        expires_at: Unix seconds.
        last_request_at: Unix seconds; None before the first.
        idle_seconds: None where it is not known.
        in_flight: Requests that the door has handed to the engine; None where it cannot be read.
        ending: Name of the rule by which the rental is being ended: a word, not a sentence.
        clients: Answered requests by client and status code, as `ClientCounts.read` gives them.
        gpus: As `GpuWatch.latest` gives it; None where there is no GPU to be read.
        container: As `container.read_container` gives it.
    """

    facts: Mapping[str, Any]
    provisioning: Mapping[str, Any] | None
    expires_at: float | None
    last_request_at: float | None
    idle_seconds: float | None
    in_flight: int | None
    is_drained: bool
    is_armed: bool
    ending: str | None
    engine: EngineView
    clients: Mapping[tuple[str, str], int]
    gpus: Sequence[Figure] | None
    container: Sequence[Figure]


def render_page(view: View) -> bytes:
    """Return the page as Prometheus scrapes it: text format 0.0.4."""
    registry = CollectorRegistry()
    registry.register(_Page(list_figures(view)))
    return generate_latest(registry)


def list_figures(view: View) -> list[Figure]:
    """Return every figure of the page; what is not known is left out, never zero."""
    return [
        *_instance_figures(view),
        *_provisioning_figures(view.provisioning or {}),
        *_engine_figures(view.engine),
        *_door_figures(view),
        *view.container,
        *(view.gpus or ()),
    ]


class _Page(Collector):
    """Figures as `prometheus_client` wants them."""

    def __init__(self, figures: Sequence[Figure]) -> None:
        self.figures = figures

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Yield a family for each metric of the register that has a figure."""
        for metric, figures in checked(self.figures).items():
            family_type = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
            family = family_type(metric.name, metric.help, labels=metric.labels)
            for figure in figures:
                family.add_metric([figure.labels[label] for label in metric.labels], figure.value)
            yield family


def _instance_figures(view: View) -> Iterator[Figure]:
    for name, value in (
        ("vast_instance_cost_per_hour", view.facts.get("usd_per_hour")),
        ("gpu_host_gpus", view.facts.get("gpu_count")),
        ("vast_instance_expires_timestamp_seconds", view.expires_at),
        ("vast_instance_last_request_timestamp_seconds", view.last_request_at),
        ("gpu_idle_time_seconds", view.idle_seconds),
    ):
        if _is_number(value):
            yield Figure(name, value)


def _provisioning_figures(provisioning: Mapping[str, Any]) -> Iterator[Figure]:
    for phase, seconds in _numbers(provisioning.get("phases")).items():
        yield Figure("vast_instance_provisioning_duration_seconds", seconds, {"phase": phase})
    failures = _numbers(provisioning.get("failures"))
    for reason, count in failures.items():
        yield Figure("vast_instance_provision_failures_total", count, {"reason": reason})
    for reason in [*failures][-1:]:
        yield Figure("vast_instance_bootstrap_failure_reason", 1, {"reason": reason})
    for name, key in (
        ("cold_start_latency_seconds", "cold_start_seconds"),
        ("vast_instance_ssh_timeout_seconds", "ssh_lost_seconds"),
    ):
        if _is_number(provisioning.get(key)):
            yield Figure(name, provisioning[key])


def _engine_figures(engine: EngineView) -> Iterator[Figure]:
    for state in ENGINE_STATES:
        yield Figure("gpu_engine_state", state == engine.state, {"state": state})
    yield Figure("gpu_engine_restarts_total", engine.restarts)
    for reason, count in engine.exits.items():
        yield Figure("gpu_engine_exits_total", count, {"reason": reason})
    if engine.reason is not None:
        yield Figure("gpu_engine_unhealthy_reason", 1, {"reason": engine.reason})


def _door_figures(view: View) -> Iterator[Figure]:
    if view.in_flight is not None:
        yield Figure("gpu_door_requests_in_flight", view.in_flight)
    for (client, code), count in view.clients.items():
        yield Figure("gpu_door_requests_total", count, {"client": client, "code": code})
    yield Figure("gpu_agent_armed", view.is_armed)
    yield Figure("gpu_agent_drained", view.is_drained)
    if view.ending is not None:
        yield Figure("gpu_agent_ending", 1, {"reason": view.ending})


def _numbers(value: object) -> dict[str, float]:
    """Return what is a number in a mapping read from a file; a broken file costs its own figures only."""
    return {str(k): v for k, v in value.items() if _is_number(v)} if isinstance(value, Mapping) else {}


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
