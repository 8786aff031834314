"""The register of the metrics that a machine's agent emits: what is not here, it cannot emit.

`register.py` adds those that come from elsewhere, so that dashboards and alerts have one list to be held to. The
machine carries this module alone: standard library only.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

_GPU_LABELS = ("uuid",)
_GPU_INFO_LABELS = (
    "uuid",
    "name",
    "driver_model_current",
    "driver_model_pending",
    "vbios_version",
    "driver_version",
    "pci_bus_id",
    "serial",
    "compute_cap",
    "pci_sub_device_id",
    "index",
    "cuda_version",
)


class Kind(StrEnum):
    """Prometheus' types, as they stand on a page."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"
    SUMMARY = "summary"


class Emitter(StrEnum):
    """Who a metric comes from."""

    AGENT = "agent"
    VLLM = "vllm"
    VMAGENT = "vmagent"


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: As it stands on the page; a counter's with `_total`.
        unit: Prometheus' base units; empty for a plain number.
        labels: Without those that vmagent adds to everything; see `register.PUSH_LABELS`.
    """

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    emitter: Emitter = Emitter.AGENT


@dataclass(frozen=True)
class Figure:
    """One value of a metric."""

    name: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


def checked(figures: Iterable[Figure]) -> dict[Metric, list[Figure]]:
    """Return figures by metric, in the register's order; of two with the same labels the later one.

    Raises:
        ValueError: A figure is not in the register, or not with these labels.
    """
    found: dict[str, dict[tuple[str, ...], Figure]] = {}
    for figure in figures:
        metric = AGENT_METRICS.get(figure.name)
        if metric is None or set(figure.labels) != set(metric.labels):
            raise ValueError(f"not in the register: {figure.name} with labels {sorted(figure.labels)}")
        values = tuple(figure.labels[label] for label in metric.labels)
        found.setdefault(figure.name, {})[values] = figure
    return {metric: [*found[name].values()] for name, metric in AGENT_METRICS.items() if name in found}


def _gauge(name: str, unit: str, about: str, *labels: str) -> Metric:
    return Metric(name, Kind.GAUGE, unit, about, labels)


def _counter(name: str, unit: str, about: str, *labels: str) -> Metric:
    return Metric(f"{name}_total", Kind.COUNTER, unit, about, labels)


def _gpu(name: str, unit: str, about: str) -> Metric:
    return Metric(f"nvidia_smi_{name}", Kind.GAUGE, unit, about, _GPU_LABELS)


_INSTANCE = (
    _gauge("vast_instance_cost_per_hour", "usd", "What the rental costs per hour, as agreed when it was rented"),
    _gauge(
        "vast_instance_provisioning_duration_seconds",
        "seconds",
        "What each phase took until it served",
        "phase",
    ),
    _gauge(
        "cold_start_latency_seconds",
        "seconds",
        "From the start of the run until the first token, failed hosts included",
    ),
    _counter(
        "vast_instance_provision_failures", "", "Hosts that this run gave back before one was ready, by why", "reason"
    ),
    _gauge("vast_instance_bootstrap_failure_reason", "", "1 for why the last of those hosts was given back", "reason"),
    _gauge("vast_instance_ssh_timeout_seconds", "seconds", "Time lost on hosts whose SSH never answered"),
    _gauge("vast_instance_expires_timestamp_seconds", "seconds", "When the lease ends, unix time"),
    _gauge("vast_instance_last_request_timestamp_seconds", "seconds", "When the machine was last seen busy, unix time"),
    _gauge("gpu_idle_time_seconds", "seconds", "Time since the machine was last seen busy; absent where unknown"),
)
_ENGINE = (
    _gauge("gpu_engine_state", "", "1 for the state that the engine is in, 0 for the others", "state"),
    _counter("gpu_engine_restarts", "", "How often the agent started the engine anew"),
    _counter("gpu_engine_exits", "", "How often the engine ended, by the reason read from its log", "reason"),
    _gauge("gpu_engine_unhealthy_reason", "", "1 for why the engine is unhealthy; absent while it is not", "reason"),
)
_DOOR = (
    _gauge(
        "gpu_door_requests_in_flight",
        "",
        "Client requests that the engine was handed and that run; absent where unknown",
    ),
    _counter("gpu_door_requests", "", "Client requests that were answered, by HTTP status", "client", "code"),
)
_SWITCH = (
    _gauge("gpu_agent_armed", "", "1 if the machine can end its own rental: it has read its instance with its own key"),
    _gauge("gpu_agent_drained", "", "1 while the front door refuses new requests: a drain, or the end of the rental"),
    _gauge("gpu_agent_ending", "", "1 for the rule by which the machine is ending its own rental", "reason"),
)
_HOST = (
    _gauge("gpu_host_gpus", "", "GPUs that were rented; nvidia_smi_gpu_info says how many are seen"),
    _counter("gpu_host_cpu_usage_seconds", "seconds", "CPU time that the container used"),
    _counter("gpu_host_cpu_throttled_seconds", "seconds", "Time for which the container was held back by its limit"),
    _gauge("gpu_host_cpu_limit_cores", "cores", "Cores that the container may use"),
    _gauge("gpu_host_memory_usage_bytes", "bytes", "Memory that the container takes, file cache included"),
    _gauge("gpu_host_memory_working_set_bytes", "bytes", "The same without file cache that can be dropped at once"),
    _gauge("gpu_host_memory_limit_bytes", "bytes", "Memory that the container may take"),
    _counter("gpu_host_memory_oom_kills", "", "Processes that the kernel killed because the memory was used up"),
    _gauge("gpu_host_filesystem_size_bytes", "bytes", "Size of the disk that holds weights and logs"),
    _gauge("gpu_host_filesystem_free_bytes", "bytes", "What is free of it"),
    _counter("gpu_host_disk_read_bytes", "bytes", "Read from block devices by the container"),
    _counter("gpu_host_disk_written_bytes", "bytes", "Written to block devices by the container"),
    _counter("gpu_host_network_receive_bytes", "bytes", "Received by the container", "device"),
    _counter("gpu_host_network_transmit_bytes", "bytes", "Sent by the container", "device"),
)
# Source: utkuozdemir/nvidia_gpu_exporter @e656cd81, docs/METRICS.md and internal/integration/testdata: names, types,
# labels and units are theirs, so that dashboards made for that exporter work. What nvidia-smi gives as a state is a
# number there, too.
_GPU = (
    _gauge("nvidia_smi_last_collect_success", "", "Whether the last reading of the GPUs succeeded"),
    _gauge("nvidia_smi_gpu_info", "", "1 for each GPU that is seen", *_GPU_INFO_LABELS),
    _gpu("utilization_gpu_ratio", "ratio", "Part of the time in which a kernel ran"),
    _gpu("utilization_memory_ratio", "ratio", "Part of the time in which memory was read or written"),
    _gpu("utilization_encoder_ratio", "ratio", "Use of the video encoder"),
    _gpu("utilization_decoder_ratio", "ratio", "Use of the video decoder"),
    _gpu("memory_total_bytes", "bytes", "Memory of the GPU"),
    _gpu("memory_used_bytes", "bytes", "Memory that is taken"),
    _gpu("memory_free_bytes", "bytes", "Memory that is free"),
    _gpu("memory_reserved_bytes", "bytes", "Memory that driver and firmware keep"),
    _gpu("power_draw_watts", "watts", "Power; an average of the last second on newer GPUs"),
    _gpu("power_draw_instant_watts", "watts", "Power at this moment"),
    _gpu("enforced_power_limit_watts", "watts", "Power at which the GPU slows down"),
    _gpu("power_default_limit_watts", "watts", "The same as the maker set it"),
    Metric("nvidia_smi_energy_joules_total", Kind.COUNTER, "joules", "Energy since the driver was loaded", _GPU_LABELS),
    _gpu("temperature_gpu", "celsius", "Temperature of the chip"),
    _gpu("temperature_memory", "celsius", "Temperature of its memory"),
    _gpu("fan_speed_ratio", "ratio", "Speed of the fan"),
    _gpu("pstate", "", "Performance state: 0 is the quickest, 15 the slowest"),
    _gpu("clocks_current_graphics_clock_hz", "hertz", "Clock of the shaders"),
    _gpu("clocks_current_sm_clock_hz", "hertz", "Clock of the multiprocessors"),
    _gpu("clocks_current_memory_clock_hz", "hertz", "Clock of the memory"),
    _gpu("clocks_current_video_clock_hz", "hertz", "Clock of the video engines"),
    _gpu("clocks_max_graphics_clock_hz", "hertz", "The highest clock of the shaders"),
    _gpu("clocks_max_sm_clock_hz", "hertz", "The highest clock of the multiprocessors"),
    _gpu("clocks_max_memory_clock_hz", "hertz", "The highest clock of the memory"),
    _gpu("clocks_event_reasons_active", "", "Why the clocks are what they are, as NVML's bits"),
    _gpu("clocks_event_reasons_gpu_idle", "", "1 while clocks are low because there is nothing to do"),
    _gpu("clocks_event_reasons_sw_power_cap", "", "1 while the power limit slows the GPU"),
    _gpu("clocks_event_reasons_hw_slowdown", "", "1 while the board slows the GPU"),
    _gpu("clocks_event_reasons_hw_thermal_slowdown", "", "1 while the board slows it because it is hot"),
    _gpu("clocks_event_reasons_hw_power_brake_slowdown", "", "1 while the power supply slows it"),
    _gpu("clocks_event_reasons_sw_thermal_slowdown", "", "1 while the driver slows it because it is hot"),
    _gpu("pcie_link_gen_current", "", "Generation of PCIe that is in use"),
    _gpu("pcie_link_gen_max", "", "The highest that GPU and board can"),
    _gpu("pcie_link_width_current", "lanes", "Lanes of PCIe that are in use"),
    _gpu("pcie_link_width_max", "lanes", "The most that GPU and board can"),
    _gpu("ecc_mode_current", "", "1 if memory errors are corrected"),
    _gpu("ecc_errors_corrected_volatile_total", "", "Memory errors since the driver was loaded that were corrected"),
    _gpu("ecc_errors_uncorrected_volatile_total", "", "Memory errors since then that were not"),
    _gpu("ecc_errors_corrected_aggregate_total", "", "Memory errors in the GPU's life that were corrected"),
    _gpu("ecc_errors_uncorrected_aggregate_total", "", "Memory errors in its life that were not"),
    _gpu("remapped_rows_correctable", "", "Rows of memory that were replaced after correctable errors"),
    _gpu("remapped_rows_uncorrectable", "", "Rows of memory that were replaced after uncorrectable errors"),
    _gpu("remapped_rows_pending", "", "1 if a replacement waits for a reset"),
    _gpu("remapped_rows_failure", "", "1 if a replacement failed: the GPU is broken"),
    _gpu("gpu_recovery_action", "", "What the driver asks for: 0 none, 1 reset, 2 reboot, 3 drain, 4 drain and reset"),
    _gpu("mig_mode_current", "", "1 if the GPU is cut into slices"),
)

AGENT_METRICS: Mapping[str, Metric] = {
    metric.name: metric for metric in (*_INSTANCE, *_ENGINE, *_DOOR, *_SWITCH, *_HOST, *_GPU)
}
"""Every metric on the agent's page, by name."""
