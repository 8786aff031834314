"""What the GPUs say: read from recordings, and by a child that may hang, die or talk nonsense."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bootstrap.host.watching import gpu_reader
from bootstrap.host.watching.gpu import FAILED, READER, GpuWatch, parse_line
from dynamic_providers.lease.metrics import AGENT_METRICS, checked
from tests.unit.recorded_nvml import RecordedNvml

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 60
SHORT = {"patience_seconds": 1.0, "pause_seconds": 0.05}


def wait_for(is_true: Callable[[], object]) -> None:
    ends = time.monotonic() + LIMIT_SECONDS
    while not is_true():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.02)


def read(recording: str) -> dict[str, dict[str, float]]:
    """Return the figures of a recording by the GPU's UUID; all of them are checked against the register."""
    said = gpu_reader.read_gpus(RecordedNvml(recording))
    found: dict[str, dict[str, float]] = {}
    for metric, figures in checked(parse_line(json.dumps(said).encode())).items():
        for figure in figures:
            of_gpu = found.setdefault(figure.labels.get("uuid", ""), {})
            of_gpu[metric.name.removeprefix("nvidia_smi_")] = figure.value
    return found


H100 = "6e1b2c3d-0001-4f5a-9abc-0123456789ab"
RTX_4080 = "6e1b2c3d-0002-4f5a-9abc-0123456789ab"
RTX_3090 = "6e1b2c3d-0004-4f5a-9abc-0123456789ab"


def test_a_data_centre_gpu_says_what_the_exporter_says_of_it() -> None:
    # The right-hand sides are the lines of the exporter's own page for the same GPU, but for what it does not read.
    assert read("h100")[H100] == pytest.approx(
        {
            "gpu_info": 1,
            "utilization_gpu_ratio": 1,
            "utilization_memory_ratio": 0.11,
            "utilization_encoder_ratio": 0,
            "utilization_decoder_ratio": 0,
            "memory_total_bytes": 8.5520809984e10,
            "memory_used_bytes": 2.0780679168e10,
            "memory_free_bytes": 6.4238911488e10,
            "memory_reserved_bytes": 5.02267904e08,
            "power_draw_watts": 631.95,
            "power_draw_instant_watts": 625.68,
            "enforced_power_limit_watts": 700,
            "power_default_limit_watts": 700,
            "energy_joules_total": 123456789.012,
            "temperature_gpu": 59,
            "temperature_memory": 54,
            "pstate": 0,
            "clocks_current_graphics_clock_hz": 1.98e09,
            "clocks_current_sm_clock_hz": 1.98e09,
            "clocks_current_memory_clock_hz": 2.619e09,
            "clocks_current_video_clock_hz": 1.545e09,
            "clocks_max_graphics_clock_hz": 1.98e09,
            "clocks_max_sm_clock_hz": 1.98e09,
            "clocks_max_memory_clock_hz": 2.619e09,
            "clocks_event_reasons_active": 0,
            "clocks_event_reasons_gpu_idle": 0,
            "clocks_event_reasons_sw_power_cap": 0,
            "clocks_event_reasons_hw_slowdown": 0,
            "clocks_event_reasons_hw_thermal_slowdown": 0,
            "clocks_event_reasons_hw_power_brake_slowdown": 0,
            "clocks_event_reasons_sw_thermal_slowdown": 0,
            "pcie_link_gen_current": 5,
            "pcie_link_gen_max": 5,
            "pcie_link_width_current": 16,
            "pcie_link_width_max": 16,
            "ecc_mode_current": 1,
            "ecc_errors_corrected_volatile_total": 0,
            "ecc_errors_uncorrected_volatile_total": 0,
            "ecc_errors_corrected_aggregate_total": 2,
            "ecc_errors_uncorrected_aggregate_total": 0,
            "remapped_rows_correctable": 0,
            "remapped_rows_uncorrectable": 0,
            "remapped_rows_pending": 0,
            "remapped_rows_failure": 0,
            "gpu_recovery_action": 0,
            "mig_mode_current": 0,
        }
    )


def test_a_field_that_a_gpu_does_not_support_costs_only_itself() -> None:
    seen = read("rtx-4080-super")
    absent = {name.removeprefix("nvidia_smi_") for name in AGENT_METRICS if name.startswith("nvidia_smi_")}
    absent -= {*seen[RTX_4080], *seen[""]}
    assert absent == {
        "temperature_memory",
        "ecc_mode_current",
        "ecc_errors_corrected_volatile_total",
        "ecc_errors_uncorrected_volatile_total",
        "ecc_errors_corrected_aggregate_total",
        "ecc_errors_uncorrected_aggregate_total",
        "remapped_rows_correctable",
        "remapped_rows_uncorrectable",
        "remapped_rows_pending",
        "remapped_rows_failure",
        "mig_mode_current",
    }
    assert seen[""] == {"last_collect_success": 1}
    assert seen[RTX_4080]["fan_speed_ratio"] == 0
    assert seen[RTX_4080]["utilization_encoder_ratio"] == pytest.approx(0.72)


def test_between_them_the_recordings_have_every_figure_of_the_register() -> None:
    seen = {name for recording in ("h100", "rtx-4080-super") for gpu in read(recording).values() for name in gpu}
    assert {f"nvidia_smi_{name}" for name in seen} == {n for n in AGENT_METRICS if n.startswith("nvidia_smi_")}


@pytest.mark.parametrize("call", sorted(json.loads((ROOT / "tests/unit/data/nvml/h100.json").read_text())["gpus"][0]))
@pytest.mark.parametrize("error", ["NotSupported", "NoPermission", "Unknown", "FunctionNotFound", "InvalidArgument"])
def test_no_single_call_that_fails_costs_another(call: str, error: str) -> None:
    nvml = RecordedNvml("h100")
    whole = gpu_reader.read_gpus(nvml)["figures"]
    nvml.said["gpus"][0][call] = {"error": error, "type": "DOUBLE", "value": {"none": 0}}
    if "FieldValues" in call:
        del nvml.said["gpus"][0][call]
    left = gpu_reader.read_gpus(nvml)["figures"]
    if call == "nvmlDeviceGetUUID":  # nothing can be told apart without it
        assert left == []
    else:
        # The clocks' reasons and the rows come from one call each.
        assert len(whole) - len(left) <= 7


def test_the_drivers_former_names_are_understood() -> None:
    (seen,) = (gpu for uuid, gpu in read("rtx-3090-old-driver").items() if uuid == RTX_3090)
    assert seen["clocks_event_reasons_sw_power_cap"] == seen["clocks_event_reasons_hw_thermal_slowdown"] == 1
    assert seen["clocks_event_reasons_gpu_idle"] == 0
    assert seen["memory_used_bytes"] == 24117248
    assert "memory_reserved_bytes" not in seen
    assert "power_draw_instant_watts" not in seen


def test_a_gpu_that_is_lost_does_not_cost_the_others() -> None:
    seen = read("one-of-two-lost")
    assert seen.keys() == {"", H100}
    assert seen[""] == {"last_collect_success": 0}
    assert seen[H100]["utilization_gpu_ratio"] == 1


def test_a_gpu_is_described_as_the_exporter_does() -> None:
    info = gpu_reader.read_gpus(RecordedNvml("rtx-4080-super"))["figures"][0]
    assert info == [
        "nvidia_smi_gpu_info",
        1,
        {
            "uuid": RTX_4080,
            "name": "NVIDIA GeForce RTX 4080 SUPER",
            "driver_model_current": "[N/A]",
            "driver_model_pending": "[N/A]",
            "vbios_version": "95.03.44.00.B2",
            "driver_version": "595.71.05",
            "pci_bus_id": "00000000:01:00.0",
            "serial": "[N/A]",
            "compute_cap": "8.9",
            "pci_sub_device_id": "0x51101462",
            "index": "0",
            "cuda_version": "13.2",
        },
    ]


def a_reader(recording: str, *, hangs_in: str | None = None) -> list[str]:
    """Return the command of a real reader that sees a recording."""
    program = (
        "import sys\n"
        "from tests.unit.recorded_nvml import RecordedNvml\n"
        "from bootstrap.host.watching import gpu_reader\n"
        f"sys.modules['pynvml'] = RecordedNvml({recording!r}, hangs_in={hangs_in!r})\n"
        "gpu_reader.main(0.05)\n"
    )
    return [sys.executable, "-c", program]


@contextmanager
def watching(command: list[str], **options: Any) -> Iterator[GpuWatch]:
    watch = GpuWatch(command, **options)
    watch.start()
    try:
        yield watch
    finally:
        watch.close()


def is_success(watch: GpuWatch) -> bool:
    figures = watch.latest()
    return bool(figures) and figures is not None and figures[0].value == 1


def test_the_last_reading_is_at_hand() -> None:
    with watching(a_reader("h100")) as watch:
        wait_for(lambda: is_success(watch))
        figures = watch.latest()
        assert figures
        assert len(figures) == len(gpu_reader.read_gpus(RecordedNvml("h100"))["figures"]) + 1


def test_without_a_driver_there_is_nothing_and_nobody_asks_again() -> None:
    with watching(a_reader("no-library"), **SHORT) as watch:
        wait_for(lambda: not watch._thread.is_alive())
        assert watch.latest() is None


def test_the_shipped_command_reads_whatever_there_is_here() -> None:
    with watching(list(READER)) as watch:
        wait_for(lambda: watch.latest() or not watch._thread.is_alive())
        assert watch.latest() != FAILED


def test_a_driver_that_is_not_loaded_is_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    with watching(a_reader("no-driver"), **SHORT) as watch:
        wait_for(lambda: watch.latest() == FAILED)
    assert "the GPUs cannot be read: Driver Not Loaded" in capfd.readouterr().err


def test_a_call_that_hangs_is_given_up_and_tried_again(tmp_path: Path) -> None:
    # The first child hangs, as its note is not there yet; the second reads.
    note = tmp_path / "hung"
    program = (
        "import pathlib, time, json\n"
        f"note = pathlib.Path({str(note)!r})\n"
        "if not note.exists():\n"
        "    note.touch(); time.sleep(10_000)\n"
        "while True:\n"
        "    print(json.dumps({'success': True, 'figures': []}), flush=True); time.sleep(0.05)\n"
    )
    with watching([sys.executable, "-c", program], patience_seconds=3, pause_seconds=0.05) as watch:
        wait_for(lambda: watch.latest() == FAILED)
        wait_for(lambda: is_success(watch))


def test_figures_grow_old() -> None:
    program = 'import time\nprint(\'{"success": true, "figures": []}\', flush=True)\ntime.sleep(10_000)'
    with watching([sys.executable, "-c", program], patience_seconds=2, pause_seconds=0.5) as watch:
        wait_for(lambda: is_success(watch))
        wait_for(lambda: watch.latest() == FAILED)


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("print('not JSON')", id="no-json"),
        pytest.param("print('[]')", id="no-object"),
        pytest.param("print('{\"success\": 1}')", id="no-figures"),
        pytest.param("import os; os.write(1, b'x' * (2 << 20))", id="a-line-without-end"),
        pytest.param("raise SystemExit('broken')", id="it-dies"),
    ],
)
def test_a_child_that_talks_nonsense_is_a_failure(program: str) -> None:
    with watching([sys.executable, "-c", program], **SHORT) as watch:
        wait_for(lambda: watch.latest() == FAILED)


def test_a_program_that_is_not_there_is_a_failure() -> None:
    with watching(["/nonexistent/python"], **SHORT) as watch:
        wait_for(lambda: watch.latest() == FAILED)


def test_a_child_that_cannot_be_killed_is_left_and_no_other_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a process in the middle of a hung system call is: deaf to SIGKILL.
    pids = tmp_path / "pids"
    program = f"import os, time\nopen({str(pids)!r}, 'a').write(f'{{os.getpid()}} ')\ntime.sleep(10_000)"
    real_kill = subprocess.Popen.kill
    children: list[subprocess.Popen[bytes]] = []
    monkeypatch.setattr(subprocess.Popen, "kill", lambda child: children.append(child))
    with watching([sys.executable, "-c", program], **SHORT) as watch:
        try:
            wait_for(lambda: watch.latest() == FAILED)
            wait_for(pids.exists)
            time.sleep(1)  # twenty of its pauses
            assert len(pids.read_text().split()) == 1
            assert len(children) == 1
        finally:
            monkeypatch.undo()
            for child in children:
                real_kill(child)
        wait_for(lambda: len(pids.read_text().split()) == 2)  # the driver came back: so does the reading


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that is dead and not yet fetched does not."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except FileNotFoundError:
        return False


def test_a_killed_parent_leaves_no_child_behind_even_one_that_hangs(tmp_path: Path) -> None:
    note = tmp_path / "child"
    reader = a_reader("h100", hangs_in="nvmlDeviceGetCount")
    reader[-1] = f"import os\nopen({str(note)!r} + '.new', 'w').write(str(os.getpid()))\n" + (
        f"os.rename({str(note)!r} + '.new', {str(note)!r})\n" + reader[-1]
    )
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import time\nfrom bootstrap.host.watching.gpu import GpuWatch\n"
            f"GpuWatch({reader!r}).start()\ntime.sleep(10_000)",
        ],
        cwd=ROOT,
    )
    try:
        wait_for(note.exists)
        child = int(note.read_text())
        assert is_alive(child)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_for(lambda: not is_alive(child))


def test_closing_ends_the_child(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    program = f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(10_000)"
    with watching([sys.executable, "-c", program]):
        wait_for(lambda: pid.exists() and pid.read_text())
    assert not is_alive(int(pid.read_text()))
    assert os.getpid() != int(pid.read_text())
