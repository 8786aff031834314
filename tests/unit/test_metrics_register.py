"""The register of metrics: what it says is what is emitted, and its document says the same."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bootstrap.host.watching.page import View, list_figures, render_page
from dynamic_providers.lease.metrics import AGENT_METRICS, Emitter, Figure, Kind, Metric, checked
from dynamic_providers.lease.register import (
    NOT_PUSHED,
    REGISTER,
    find_metric,
    render_register,
    series_names,
)
from tests.unit.metric_views import FULL

ROOT = Path(__file__).parents[2]
VLLM_PAGE = (ROOT / "tests/sandbox/data/vllm-0.32-metrics.txt").read_text(encoding="utf-8")

BY_NAME = [pytest.param(metric, id=name) for name, metric in REGISTER.items()]


def parsed(page: str) -> dict[str, tuple[str, set[str]]]:
    """Return type and labels of each family, by the name on the page; `le` and `quantile` come with the type."""
    found = {}
    for family in text_string_to_metric_families(page):
        labels = {label for sample in family.samples for label in sample.labels} - {"le", "quantile"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = (family.type, labels)
    return found


def test_the_register_names_what_was_asked_for() -> None:
    assert {
        "vast_instance_cost_per_hour": (),
        "vast_instance_provisioning_duration_seconds": ("phase",),
        "vast_instance_last_request_timestamp_seconds": (),
        "vast_instance_provision_failures_total": ("reason",),
        "vast_instance_ssh_timeout_seconds": (),
        "vast_instance_bootstrap_failure_reason": ("reason",),
        "vast_instance_expires_timestamp_seconds": (),
        "gpu_idle_time_seconds": (),
        "cold_start_latency_seconds": (),
        "nvidia_smi_utilization_gpu_ratio": ("uuid",),
    }.items() <= {name: metric.labels for name, metric in REGISTER.items()}.items()


def test_a_page_with_everything_on_it_is_the_register_of_the_agent() -> None:
    seen = parsed(render_page(FULL).decode())
    assert seen == {metric.name: (metric.kind.value, set(metric.labels)) for metric in AGENT_METRICS.values()}


def test_vllms_own_page_is_the_register_of_vllm() -> None:
    seen = {name: said for name, said in parsed(VLLM_PAGE).items() if name not in NOT_PUSHED}
    registered = {
        metric.name: (metric.kind.value, set(metric.labels))
        for metric in REGISTER.values()
        # Those of HTTP show once something was asked, and the recorded engine was not; those of Python were left out.
        if metric.emitter is Emitter.VLLM and not metric.name.startswith(("http_", "python_"))
    }
    assert seen == registered


def test_every_series_on_vllms_page_is_found_in_the_register() -> None:
    series = {re.split(r"[ {]", line)[0] for line in VLLM_PAGE.splitlines() if line and not line.startswith("#")}
    assert len(series) > len(REGISTER) / 3
    assert {name for name in series if find_metric(name) is None} == set(NOT_PUSHED)


@pytest.mark.parametrize(
    ("series", "name"),
    [
        pytest.param("up", "up", id="as-it-is"),
        pytest.param(
            "vllm:e2e_request_latency_seconds_bucket", "vllm:e2e_request_latency_seconds", id="bucket-of-a-histogram"
        ),
        pytest.param("vllm:iteration_tokens_total_count", "vllm:iteration_tokens_total", id="histogram-named-total"),
        pytest.param("http_request_size_bytes_sum", "http_request_size_bytes", id="sum-of-a-summary"),
    ],
)
def test_a_series_belongs_to_its_metric(series: str, name: str) -> None:
    metric = find_metric(series)
    assert metric
    assert metric.name == name


@pytest.mark.parametrize(
    "series",
    [
        pytest.param("vllm:e2e_request_latency_seconds", id="a-histogram-itself-is-no-series"),
        pytest.param("up_bucket", id="a-gauge-has-no-buckets"),
        pytest.param("http_request_size_bytes_bucket", id="a-summary-has-no-buckets"),
        pytest.param("vllm:request_duration_seconds", id="a-name-that-never-was"),
    ],
)
def test_what_is_not_in_the_register_is_not_found(series: str) -> None:
    assert find_metric(series) is None


@pytest.mark.parametrize("metric", BY_NAME)
def test_a_metric_is_named_as_prometheus_wants_it(metric: Metric) -> None:
    assert re.fullmatch(r"[a-z_][a-z0-9_]*(:[a-z0-9_]+)?", metric.name)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", label) for label in metric.labels)
    assert metric.help
    assert not metric.help.endswith(".")
    if metric.kind is Kind.COUNTER:
        assert metric.name.endswith("_total")
    # Names that are others' are as they are.
    if metric.emitter is Emitter.AGENT and not metric.name.startswith("nvidia_smi_"):
        assert metric.kind is Kind.COUNTER or not metric.name.endswith("_total")
        for unit in ("seconds", "bytes"):
            assert (unit in metric.name.removesuffix("_total").split("_")[-1:]) is (metric.unit == unit)


def test_no_series_belongs_to_two_metrics() -> None:
    owners: dict[str, str] = {}
    for metric in REGISTER.values():
        for series in series_names(metric):
            assert owners.setdefault(series, metric.name) == metric.name


@pytest.mark.parametrize(
    "figure",
    [
        pytest.param(Figure("gpu_engine_mood", 1), id="unknown-name"),
        pytest.param(Figure("gpu_agent_ending", 1), id="label-missing"),
        pytest.param(Figure("gpu_agent_armed", 1, {"uuid": "x"}), id="label-too-many"),
        pytest.param(Figure("up", 1), id="somebody-elses"),
    ],
)
def test_what_is_not_in_the_register_cannot_be_emitted(figure: Figure) -> None:
    with pytest.raises(ValueError, match=f"not in the register: {figure.name}"):
        checked([figure])


def test_of_two_figures_with_the_same_labels_the_later_is_emitted() -> None:
    (figures,) = checked([Figure("gpu_agent_armed", 0), Figure("gpu_agent_armed", 1)]).values()
    assert [figure.value for figure in figures] == [1]


def test_the_document_is_the_register() -> None:
    assert (ROOT / "docs/metrics.md").read_text(encoding="utf-8") == render_register()


def test_the_document_names_every_metric_once() -> None:
    rows = re.findall(r"^\| `([a-z0-9_:]+)` \|", render_register(), flags=re.MULTILINE)
    assert sorted(rows) == sorted(REGISTER)


def without(**change: Any) -> View:
    return View(**{**vars(FULL), **change})


@pytest.mark.parametrize(
    ("view", "absent"),
    [
        pytest.param(
            without(last_request_at=None), "vast_instance_last_request_timestamp_seconds", id="no-request-yet"
        ),
        pytest.param(without(idle_seconds=None), "gpu_idle_time_seconds", id="activity-unknown"),
        pytest.param(without(in_flight=None), "gpu_door_requests_in_flight", id="door-unreadable"),
        pytest.param(without(expires_at=None), "vast_instance_expires_timestamp_seconds", id="no-lease-yet"),
        pytest.param(without(ending=None), "gpu_agent_ending", id="not-ending"),
        pytest.param(without(provisioning=None), "cold_start_latency_seconds", id="not-provisioned-yet"),
        pytest.param(without(provisioning={"failures": {}}), "vast_instance_bootstrap_failure_reason", id="no-failure"),
        pytest.param(without(gpus=None), "nvidia_smi_gpu_info", id="no-gpu"),
        pytest.param(without(facts={}), "vast_instance_cost_per_hour", id="no-facts"),
        pytest.param(without(facts={"usd_per_hour": "free"}), "vast_instance_cost_per_hour", id="facts-are-nonsense"),
        pytest.param(
            without(provisioning={"phases": ["ssh"], "cold_start_seconds": float("nan")}),
            "cold_start_latency_seconds",
            id="provisioning-is-nonsense",
        ),
    ],
)
def test_what_is_unknown_is_absent_and_the_rest_is_there(view: View, absent: str) -> None:
    names = parsed(render_page(view).decode()).keys()
    assert absent not in names
    assert "gpu_agent_armed" in names
    assert absent in parsed(render_page(FULL).decode())


def test_the_last_failure_is_the_reason() -> None:
    view = without(provisioning=json.loads('{"failures": {"ssh": 2, "image": 1}}'))
    values = {(figure.name, *figure.labels.values()): figure.value for figure in list_figures(view)}
    assert values["vast_instance_provision_failures_total", "ssh"] == 2
    assert values["vast_instance_bootstrap_failure_reason", "image"] == 1
    assert ("vast_instance_bootstrap_failure_reason", "ssh") not in values


def test_the_engine_is_in_one_state() -> None:
    states = {f.labels["state"]: f.value for f in list_figures(FULL) if f.name == "gpu_engine_state"}
    assert states == {"running": 0, "starting": 0, "stopped": 0, "unhealthy": 1}


def test_a_label_may_hold_anything() -> None:
    view = without(clients={('a"b\\c\nd', "200"): 1})
    (family,) = [f for f in text_string_to_metric_families(render_page(view).decode()) if f.name == "gpu_door_requests"]
    assert family.samples[0].labels["client"] == 'a"b\\c\nd'
