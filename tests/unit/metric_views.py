"""What an agent knows when it knows everything."""

from bootstrap.host.watching.page import EngineView, View
from dynamic_providers.lease.metrics import AGENT_METRICS, Figure

FULL = View(
    facts={"usd_per_hour": 0.41, "gpu_count": 1, "stack": "gpu-on"},
    provisioning={
        "phases": {"scheduled": 3.5, "first token": 0.4},
        "cold_start_seconds": 180.5,
        "failures": {"image": 1, "ssh": 2},
        "ssh_lost_seconds": 360,
    },
    expires_at=1_800_000_000.0,
    last_request_at=1_799_990_000.5,
    idle_seconds=12.5,
    in_flight=3,
    is_drained=True,
    is_armed=True,
    ending="idle",
    engine=EngineView("unhealthy", 5, {"cuda_out_of_memory": 6}, "cuda_out_of_memory"),
    clients={("alice", "200"): 7, ("bob", "400"): 1},
    # A value for each: what GPUs and containers really say is tried elsewhere.
    gpus=[
        Figure(name, 1, {label: label for label in metric.labels})
        for name, metric in AGENT_METRICS.items()
        if name.startswith("nvidia_smi_")
    ],
    container=[
        Figure(name, 1, {label: label for label in metric.labels})
        for name, metric in AGENT_METRICS.items()
        if name.startswith("gpu_host_") and name != "gpu_host_gpus"
    ],
)
