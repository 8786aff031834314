"""Counts, and shows what was counted in Prometheus' text format."""

import math
import os
import platform
import resource
import time
from collections.abc import Iterator, Mapping

from tests.sandbox.vllm_stub.families import HTTP, VLLM, Family

Labels = tuple[tuple[str, str], ...]  # sorted by name, as the real exposition has them


class Metrics:
    """All counters of one server process; like the real ones they start at zero with it.

    Args:
        model_name: The label that every engine metric carries: the first served name.
        info: The labels of `vllm:cache_config_info`.
        log_stats: False leaves the engine's own metrics out, as `--disable-log-stats` does.
    """

    def __init__(self, model_name: str, info: Mapping[str, str], *, log_stats: bool) -> None:
        self._model_name = model_name
        self._started = time.time()
        self._families: dict[str, Family] = {**(VLLM if log_stats else {}), **HTTP}
        self._series: dict[str, dict[Labels, _Series]] = {name: {} for name in self._families}
        self._info = {**self._engine_labels(), **info} if log_stats else None
        for name, family in self._families.items():
            if name in VLLM:
                for value in family.values or ("",):
                    self._find(name, value)
        self.set("vllm:engine_sleep_state", 1, "awake")

    def add(self, name: str, amount: float = 1, value: str = "", **labels: str) -> None:
        """Raise a counter or move a gauge; *value* picks the series where the family has several."""
        if series := self._find(name, value, **labels):
            series.total += amount

    def set(self, name: str, amount: float, value: str = "") -> None:
        """Set a gauge."""
        if series := self._find(name, value):
            series.total = amount

    def observe(self, name: str, amount: float, **labels: str) -> None:
        """Put one observation into a histogram or a summary."""
        if series := self._find(name, **labels):
            series.total += amount
            series.count += 1
            for place, bound in enumerate(self._families[name].buckets):
                series.below[place] += amount <= bound

    def render(self) -> str:
        """Return everything in the text format."""
        created = os.environ.get("PROMETHEUS_DISABLE_CREATED_SERIES", "").lower() not in ("1", "t", "true")
        lines = [*_process_lines(self._started)]
        for name, family in self._families.items():
            lines.extend(self._family_lines(name, family))
            if created and family.kind != "gauge":
                base = f"{name.removesuffix('_total') if family.kind == 'counter' else name}_created"
                lines.append(f"# TYPE {base} gauge")
                lines.extend(f"{base}{_braces(labels)} {s.created!r}" for labels, s in self._series[name].items())
        if self._info is not None:
            lines.append("# TYPE vllm:cache_config_info gauge")
            lines.append(f"vllm:cache_config_info{_braces(_sorted(self._info))} 1.0")
        return "\n".join(lines) + "\n"

    def _engine_labels(self) -> dict[str, str]:
        return {"engine": "0", "model_name": self._model_name}

    def _find(self, name: str, value: str = "", **labels: str) -> "_Series | None":
        family = self._families.get(name)
        if family is None:  # left out by --disable-log-stats
            return None
        if name in VLLM:
            labels |= self._engine_labels()
            if not family.per_engine:
                del labels["engine"]
            if family.label:
                labels[family.label] = value
        return self._series[name].setdefault(_sorted(labels), _Series(len(family.buckets)))

    def _family_lines(self, name: str, family: Family) -> Iterator[str]:
        yield f"# TYPE {name} {family.kind}"
        for labels, series in self._series[name].items():
            if family.kind in ("counter", "gauge"):
                yield f"{name}{_braces(labels)} {float(series.total)}"
                continue
            for bound, count in zip((*family.buckets, math.inf), (*series.below, series.count), strict=True):
                if family.kind == "histogram":
                    le = "+Inf" if bound == math.inf else str(float(bound))
                    yield f"{name}_bucket{_braces(_sorted({**dict(labels), 'le': le}))} {float(count)}"
            yield f"{name}_count{_braces(labels)} {float(series.count)}"
            yield f"{name}_sum{_braces(labels)} {float(series.total)}"


class _Series:
    def __init__(self, buckets: int) -> None:
        self.total = 0.0
        self.count = 0
        self.below = [0] * buckets
        self.created = time.time()


def _sorted(labels: Mapping[str, str]) -> Labels:
    return tuple(sorted(labels.items()))


def _braces(labels: Labels) -> str:
    def escaped(text: str) -> str:
        return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")

    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in labels) + "}" if labels else ""


def _process_lines(started: float) -> Iterator[str]:
    """Yield what every Python server shows of its process."""
    version = platform.python_version()
    major, minor, patch = platform.python_version_tuple()
    yield "# TYPE python_info gauge"
    yield (
        f'python_info{{implementation="{platform.python_implementation()}",major="{major}",minor="{minor}",'
        f'patchlevel="{patch}",version="{version}"}} 1.0'
    )
    pages = [int(field) for field in open("/proc/self/statm", encoding="ascii").read().split()]  # noqa: SIM115
    times = os.times()
    for name, kind, amount in (
        ("virtual_memory_bytes", "gauge", pages[0] * resource.getpagesize()),
        ("resident_memory_bytes", "gauge", pages[1] * resource.getpagesize()),
        ("start_time_seconds", "gauge", started),
        ("cpu_seconds_total", "counter", times.user + times.system),
        ("open_fds", "gauge", len(os.listdir("/proc/self/fd"))),
        ("max_fds", "gauge", resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    ):
        yield f"# TYPE process_{name} {kind}"
        yield f"process_{name} {float(amount)}"
