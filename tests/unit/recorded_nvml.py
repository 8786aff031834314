"""NVML played from a recording: the names, errors and constants are the real binding's, the answers the recording's.

A recording is a JSON object: `system` and each of `gpus` say for a call what it returns. A call with a constant among
its arguments stands as `call:CONSTANT`; `{"error": "NotSupported"}` is raised. What is not there is not supported.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml  # type: ignore[import-untyped]

DATA = Path(__file__).parent / "data" / "nvml"


class RecordedNvml:
    """The module, as `gpu_reader` uses it.

    Attributes:
        hangs_in: A call that never returns.
    """

    def __init__(self, recording: str, *, hangs_in: str | None = None) -> None:
        self.said: dict[str, Any] = json.loads((DATA / f"{recording}.json").read_text(encoding="utf-8"))
        self.hangs_in = hangs_in

    def __getattr__(self, name: str) -> Any:
        real = getattr(pynvml, name)  # a name that the binding does not have is an error here too
        if not name.startswith(("nvmlDevice", "nvmlSystem", "nvmlInit")):
            return real
        if name == self.hangs_in:
            return lambda *_, **__: time.sleep(10_000)
        return self._play(name)

    def _play(self, name: str) -> Callable[..., Any]:
        if name == "nvmlDeviceGetCount":
            return lambda: len(self.said["gpus"])
        if name == "nvmlDeviceGetHandleByIndex":
            return lambda index: self.said["gpus"][index]  # a GPU's recording is its handle
        if name == "nvmlInit":
            return lambda: self._answer({name: None, **self.said["system"]}, name)
        if name.startswith("nvmlSystem"):
            return lambda: self._answer(self.said["system"], name)
        if name == "nvmlDeviceGetFieldValues":
            return lambda gpu, ids: [self._field(gpu, field_id) for field_id in ids]
        return lambda gpu, *arguments, **versions: self._answer(gpu, self._key(gpu, name, *arguments, **versions))

    def _key(self, gpu: dict[str, Any], name: str, *arguments: int, **versions: int) -> str:
        """Return what of the recording was said to this call; constants are compared by their value."""
        if versions:
            return f"{name}_v2"
        if not arguments:
            return name
        for key in gpu:
            call, *constants = key.split(":")
            if call == name and tuple(getattr(pynvml, constant) for constant in constants) == arguments:
                return key
        return name

    def _field(self, gpu: dict[str, Any], field_id: int) -> SimpleNamespace:
        said = gpu.get(self._key(gpu, "nvmlDeviceGetFieldValues", field_id))
        if said is None:
            return SimpleNamespace(nvmlReturn=pynvml.NVML_ERROR_NOT_SUPPORTED, valueType=0, value=SimpleNamespace())
        (member, number), kind = next(iter(said["value"].items())), getattr(pynvml, f"NVML_VALUE_TYPE_{said['type']}")
        return SimpleNamespace(nvmlReturn=0, valueType=kind, value=SimpleNamespace(**{member: number}))

    def _answer(self, said: dict[str, Any], key: str) -> Any:
        answer = said.get(key, {"error": "NotSupported"})
        if isinstance(answer, dict) and "error" in answer:
            raise getattr(pynvml, f"NVMLError_{answer['error']}")
        return SimpleNamespace(**answer) if isinstance(answer, dict) else answer
