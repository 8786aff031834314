"""The GPUs of the machine that this runs on, by the real NVML and the real driver.

`python -m pytest -m live tests/live/test_gpu.py` on any machine with an NVIDIA GPU: it rents nothing and costs nothing.
"""

import ctypes
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from bootstrap.host.watching import gpu_reader
from bootstrap.host.watching.gpu import GpuWatch, parse_line
from dynamic_providers.lease.metrics import Figure, checked


def has_driver() -> bool:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


pytestmark = [pytest.mark.live, pytest.mark.skipif(not has_driver(), reason="no NVIDIA driver here")]
EVERY_GPU_SAYS = {
    "utilization_gpu_ratio",
    "memory_total_bytes",
    "memory_used_bytes",
    "memory_free_bytes",
    "temperature_gpu",
    "pstate",
    "clocks_current_sm_clock_hz",
    "clocks_event_reasons_active",
    "pcie_link_width_current",
}


def ask_nvidia_smi(*fields: str) -> list[list[str]]:
    """Return what nvidia-smi says, a row for each GPU."""
    output = subprocess.run(
        ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [[cell.strip() for cell in line.split(",")] for line in output.splitlines() if line.strip()]


def read() -> dict[str, dict[str, Figure]]:
    """Return the figures of each GPU by UUID, all of them in the register."""
    import pynvml  # type: ignore[import-untyped]

    pynvml.nvmlInit()
    said = gpu_reader.read_gpus(pynvml)
    assert said["success"]
    found: dict[str, dict[str, Figure]] = {}
    for metric, figures in checked(parse_line(json.dumps(said).encode())).items():
        for figure in figures:
            found.setdefault(figure.labels.get("uuid", ""), {})[metric.name.removeprefix("nvidia_smi_")] = figure
    if folder := os.environ.get("OUT"):
        (Path(folder) / "gpu-figures.json").write_text(json.dumps(said, indent=1))
    return found


def test_every_gpu_is_read_as_nvidia_smi_sees_it() -> None:
    seen = read()
    rows = ask_nvidia_smi(
        "uuid", "name", "memory.total", "pci.bus_id", "driver_version", "compute_cap", "vbios_version"
    )
    assert seen.keys() - {""} == {uuid.lower().removeprefix("gpu-") for uuid, *_ in rows}
    for uuid, name, total_mib, bus, driver, capability, vbios in rows:
        gpu = seen[uuid.lower().removeprefix("gpu-")]
        assert gpu.keys() >= EVERY_GPU_SAYS
        labels = gpu["gpu_info"].labels
        assert (labels["name"], labels["pci_bus_id"], labels["driver_version"]) == (name, bus, driver)
        assert (labels["compute_cap"], labels["vbios_version"]) == (capability, vbios)
        assert gpu["memory_total_bytes"].value // 2**20 == int(total_mib)


def test_what_it_says_is_possible() -> None:
    for uuid, gpu in read().items():
        for name, figure in gpu.items():
            if name.endswith("_ratio"):
                assert 0 <= figure.value <= 1, (uuid, name)
            if name.startswith("temperature"):
                assert 1 <= figure.value <= 120, (uuid, name)
            if name.endswith("_clock_hz"):
                assert 1e7 <= figure.value <= 3e10, (uuid, name)
            if name.endswith("_watts"):
                assert 1 <= figure.value <= 2000, (uuid, name)
        if uuid:
            total, used, free = (gpu[f"memory_{part}_bytes"].value for part in ("total", "used", "free"))
            assert 0 <= used + free <= total * 1.001


def test_the_shipped_reader_reads() -> None:
    watch = GpuWatch()
    watch.start()
    try:
        ends = time.monotonic() + 60
        while not (figures := watch.latest()):
            assert time.monotonic() < ends, "nothing was read"
            time.sleep(0.1)
        assert figures[0] == Figure("nvidia_smi_last_collect_success", 1)
    finally:
        watch.close()
