"""Read the GPUs by NVML, and print what they say, a line of JSON each time, until nobody listens any more.

A process of its own: a call into a wedged driver may never come back, and nobody who has more to do may wait for it.
Runs on the machine: standard library, and `pynvml` from the bundle.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

NOTHING_TO_READ = 3
"""Exit status where there is no NVML: a machine without an NVIDIA driver."""

NOT_SAID = "[N/A]"
"""What nvidia-smi and the exporter say where a GPU does not say."""

Nvml = Any
Handle = Any
Line = dict[str, Any]

HZ_PER_MHZ = 1e6


def read_gpus(nvml: Nvml) -> Line:
    """Return `{"success": bool, "figures": [[name, value, labels], …]}`.

    A field that a GPU does not support costs that field, a GPU that is lost costs that GPU; either way the others are
    read. Only the second is no success.
    """
    figures: list[list[Any]] = []
    success = True
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = plain_uuid(nvml.nvmlDeviceGetUUID(handle))
            figures.append(["nvidia_smi_gpu_info", 1, {"uuid": uuid, **describe(nvml, handle, index)}])
            for name, value in read_fields(nvml, handle):
                figures.append([f"nvidia_smi_{name}", value, {"uuid": uuid}])
        except nvml.NVMLError:
            success = False
    return {"success": success, "figures": figures}


def plain_uuid(uuid: str) -> str:
    """Return a GPU's UUID as the exporter writes it: in small letters and without `GPU-`."""
    return text(uuid).lower().removeprefix("gpu-")


def text(value: str | bytes) -> str:
    """Return what NVML gives as bytes or text, depending on the binding's version."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def describe(nvml: Nvml, handle: Handle, index: int) -> dict[str, str]:
    """Return the labels of `nvidia_smi_gpu_info` but the UUID. The driver models are a matter of Windows."""
    readings: dict[str, Callable[[], str]] = {
        "name": lambda: text(nvml.nvmlDeviceGetName(handle)),
        "vbios_version": lambda: text(nvml.nvmlDeviceGetVbiosVersion(handle)),
        "driver_version": lambda: text(nvml.nvmlSystemGetDriverVersion()),
        "pci_bus_id": lambda: text(nvml.nvmlDeviceGetPciInfo(handle).busId),
        "serial": lambda: text(nvml.nvmlDeviceGetSerial(handle)),
        "compute_cap": lambda: "{}.{}".format(*nvml.nvmlDeviceGetCudaComputeCapability(handle)),
        "pci_sub_device_id": lambda: f"0x{nvml.nvmlDeviceGetPciInfo(handle).pciSubSystemId:08X}",
        "cuda_version": lambda: cuda_version(nvml.nvmlSystemGetCudaDriverVersion_v2()),
    }
    said = {"driver_model_current": NOT_SAID, "driver_model_pending": NOT_SAID, "index": str(index)}
    for label, reading in readings.items():
        try:
            said[label] = reading()
        except nvml.NVMLError as error:
            raise_if_lost(nvml, error)
            said[label] = NOT_SAID
    return said


def cuda_version(number: int) -> str:
    """Return `13.1` of NVML's 13010."""
    return f"{number // 1000}.{number % 1000 // 10}"


def read_fields(nvml: Nvml, handle: Handle) -> Iterator[tuple[str, float]]:
    """Yield each field that the GPU supports, by its name in the register without `nvidia_smi_`.

    Raises:
        NVMLError: The GPU is lost: every further call would fail, or hang.
    """
    for reading in READINGS:
        try:
            yield from reading(nvml, handle).items()
        except nvml.NVMLError as error:
            raise_if_lost(nvml, error)


def raise_if_lost(nvml: Nvml, error: Exception) -> None:
    """Raise *error* again where it says that the whole GPU is gone; anything else concerns one field."""
    if isinstance(error, nvml.NVMLError_GpuIsLost | nvml.NVMLError_ResetRequired | nvml.NVMLError_Uninitialized):
        raise error


def utilization(nvml: Nvml, handle: Handle) -> dict[str, float]:
    """Return how much of the time the chip and its memory were in use."""
    rates = nvml.nvmlDeviceGetUtilizationRates(handle)
    return {"utilization_gpu_ratio": rates.gpu / 100, "utilization_memory_ratio": rates.memory / 100}


def memory(nvml: Nvml, handle: Handle) -> dict[str, float]:
    """Return the memory. Only the second version of the call tells reserved from used, as nvidia-smi does."""
    try:
        info = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        reserved = {"memory_reserved_bytes": info.reserved}
    except (nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NotSupported, nvml.NVMLError_ArgumentVersionMismatch):
        info, reserved = nvml.nvmlDeviceGetMemoryInfo(handle), {}
    return {
        "memory_total_bytes": info.total,
        "memory_used_bytes": info.used,
        "memory_free_bytes": info.free,
        **reserved,
    }


def clock_reasons(nvml: Nvml, handle: Handle) -> dict[str, float]:
    """Return why the clocks are what they are; drivers before 535 know the call by its former name."""
    try:
        bits = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except nvml.NVMLError_FunctionNotFound:
        bits = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    reasons = {
        "gpu_idle": nvml.nvmlClocksEventReasonGpuIdle,
        "sw_power_cap": nvml.nvmlClocksEventReasonSwPowerCap,
        "hw_slowdown": nvml.nvmlClocksThrottleReasonHwSlowdown,
        "hw_thermal_slowdown": nvml.nvmlClocksThrottleReasonHwThermalSlowdown,
        "hw_power_brake_slowdown": nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
        "sw_thermal_slowdown": nvml.nvmlClocksEventReasonSwThermalSlowdown,
    }
    flags = {f"clocks_event_reasons_{name}": float(bool(bits & bit)) for name, bit in reasons.items()}
    return {"clocks_event_reasons_active": bits, **flags}


def remapped_rows(nvml: Nvml, handle: Handle) -> dict[str, float]:
    """Return which rows of memory were replaced."""
    names = ("correctable", "uncorrectable", "pending", "failure")
    return {
        f"remapped_rows_{name}": value
        for name, value in zip(names, nvml.nvmlDeviceGetRemappedRows(handle), strict=True)
    }


def single(name: str, call: str, *constants: str, scale: float = 1) -> Callable[[Nvml, Handle], dict[str, float]]:
    """Return a reading of one number.

    Args:
        name: In the register.
        call: The function's name.
        constants: Names of its further arguments: looked up when it is read, a binding may lack one.
        scale: From NVML's unit to the register's.
    """

    def read(nvml: Nvml, handle: Handle) -> dict[str, float]:
        value = getattr(nvml, call)(handle, *(getattr(nvml, constant) for constant in constants))
        first = value[0] if isinstance(value, tuple | list) else value  # current and pending; use and sampling period
        return {name: first * scale}

    return read


def field(name: str, field_id: str, scale: float = 1) -> Callable[[Nvml, Handle], dict[str, float]]:
    """Return a reading of one of NVML's numbered fields, which carry their own type and their own error."""

    def read(nvml: Nvml, handle: Handle) -> dict[str, float]:
        (answer,) = nvml.nvmlDeviceGetFieldValues(handle, [getattr(nvml, field_id)])
        types: Mapping[int, str] = {
            nvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
            nvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
            nvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
            nvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
            nvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
            nvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
            nvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
        }
        if answer.nvmlReturn != nvml.NVML_SUCCESS or answer.valueType not in types:
            return {}
        return {name: getattr(answer.value, types[answer.valueType]) * scale}

    return read


CLOCKS = (("graphics", "NVML_CLOCK_GRAPHICS"), ("sm", "NVML_CLOCK_SM"), ("memory", "NVML_CLOCK_MEM"))
ERRORS = (("corrected", "NVML_MEMORY_ERROR_TYPE_CORRECTED"), ("uncorrected", "NVML_MEMORY_ERROR_TYPE_UNCORRECTED"))
SPANS = (("volatile", "NVML_VOLATILE_ECC"), ("aggregate", "NVML_AGGREGATE_ECC"))

READINGS: tuple[Callable[[Nvml, Handle], dict[str, float]], ...] = (
    utilization,
    single("utilization_encoder_ratio", "nvmlDeviceGetEncoderUtilization", scale=0.01),
    single("utilization_decoder_ratio", "nvmlDeviceGetDecoderUtilization", scale=0.01),
    memory,
    single("power_draw_watts", "nvmlDeviceGetPowerUsage", scale=1e-3),
    field("power_draw_instant_watts", "NVML_FI_DEV_POWER_INSTANT", scale=1e-3),
    single("enforced_power_limit_watts", "nvmlDeviceGetEnforcedPowerLimit", scale=1e-3),
    single("power_default_limit_watts", "nvmlDeviceGetPowerManagementDefaultLimit", scale=1e-3),
    single("energy_joules_total", "nvmlDeviceGetTotalEnergyConsumption", scale=1e-3),
    single("temperature_gpu", "nvmlDeviceGetTemperature", "NVML_TEMPERATURE_GPU"),
    field("temperature_memory", "NVML_FI_DEV_MEMORY_TEMP"),
    single("fan_speed_ratio", "nvmlDeviceGetFanSpeed", scale=0.01),
    single("pstate", "nvmlDeviceGetPerformanceState"),
    *(
        single(f"clocks_current_{name}_clock_hz", "nvmlDeviceGetClockInfo", clock, scale=HZ_PER_MHZ)
        for name, clock in (*CLOCKS, ("video", "NVML_CLOCK_VIDEO"))
    ),
    *(
        single(f"clocks_max_{name}_clock_hz", "nvmlDeviceGetMaxClockInfo", clock, scale=HZ_PER_MHZ)
        for name, clock in CLOCKS
    ),
    clock_reasons,
    single("pcie_link_gen_current", "nvmlDeviceGetCurrPcieLinkGeneration"),
    single("pcie_link_gen_max", "nvmlDeviceGetMaxPcieLinkGeneration"),
    single("pcie_link_width_current", "nvmlDeviceGetCurrPcieLinkWidth"),
    single("pcie_link_width_max", "nvmlDeviceGetMaxPcieLinkWidth"),
    single("ecc_mode_current", "nvmlDeviceGetEccMode"),
    *(
        single(f"ecc_errors_{kind}_{span}_total", "nvmlDeviceGetTotalEccErrors", error_type, counter)
        for kind, error_type in ERRORS
        for span, counter in SPANS
    ),
    remapped_rows,
    field("gpu_recovery_action", "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION"),
    single("mig_mode_current", "nvmlDeviceGetMigMode"),
)


def leave_with_parent() -> None:
    """End as soon as the parent's end of our standard input is closed, whatever the driver does meanwhile."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(0)


def main(interval_seconds: float) -> None:
    """Print a line each interval. What goes wrong with all of them ends it: a new process begins afresh."""
    # Here, so that the readings can be tried against a recording.
    import pynvml  # type: ignore[import-untyped]

    threading.Thread(target=leave_with_parent, daemon=True).start()
    try:
        pynvml.nvmlInit()
        while True:
            print(json.dumps(read_gpus(pynvml)), flush=True)
            time.sleep(interval_seconds)
    except pynvml.NVMLError_LibraryNotFound:
        raise SystemExit(NOTHING_TO_READ) from None
    except pynvml.NVMLError as error:
        raise SystemExit(f"the GPUs cannot be read: {error}") from None
    except BrokenPipeError:
        os._exit(0)  # nobody listens; Python would complain about its standard output once more


if __name__ == "__main__":
    main(float(sys.argv[1]))
