"""What the container uses of its host: CPU, memory, disk, network; by its control group, of either version.

A file that is not there, or says what nobody expected, costs its own figure and no other. Runs on the machine:
standard library, and the register of metrics beside it.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from dynamic_providers.lease.metrics import Figure

UNLIMITED_BYTES = 2**60
"""Version 1 writes the largest number of pages that it can count where there is no limit."""


def read_container(root: Path = Path("/"), disk: Path = Path()) -> list[Figure]:
    """Return what can be told.

    Args:
        root: Where `/proc` and `/sys` lie.
        disk: Any path on the disk that counts.
    """
    return [*_figures(_of_group(Group(root))), *_figures(_of_disk(disk)), *_network(root / "proc/net/dev")]


Reading = Callable[[], float]


class Group:
    """The control group that stands for the container."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._base = root / "sys/fs/cgroup"
        self._own = dict(self._read_own())
        self.is_v2 = (self._base / "cgroup.controllers").exists()

    def file(self, controller: str, name: str) -> Path:
        """Return one of its files.

        In a namespace of its own a container sees its group as the root. Where it has none, what the root says is
        the host's, which has no `memory.current`, and the process's own group is the container's.
        """
        if self.is_v2:
            is_containers = (self._base / "memory.current").exists()
            return (self._base if is_containers else self._base / self._own.get("", "")) / name
        own = self._base / controller / self._own.get(controller, "")
        return (own if own.exists() else self._base / controller) / name

    def host_memory_bytes(self) -> int:
        """Return how much memory the host has."""
        return _keyed(self._root / "proc/meminfo", "MemTotal:") * 1024

    def _read_own(self) -> Iterator[tuple[str, str]]:
        with contextlib.suppress(OSError, ValueError):
            for line in (self._root / "proc/self/cgroup").read_text().splitlines():
                _, controllers, path = line.split(":", 2)
                for controller in controllers.split(","):
                    yield controller, path.lstrip("/")


def _figures(readings: dict[str, Reading]) -> Iterator[Figure]:
    for name, reading in readings.items():
        with contextlib.suppress(OSError, ValueError, LookupError, ArithmeticError):
            yield Figure(name, reading())


def _of_group(group: Group) -> dict[str, Reading]:
    shared: dict[str, Reading] = {"gpu_host_memory_limit_bytes": lambda: _memory_limit(group)}
    return shared | (_of_v2(group) if group.is_v2 else _of_v1(group))


def _of_v2(group: Group) -> dict[str, Reading]:
    cpu, memory = group.file("cpu", "cpu.stat"), group.file("memory", "memory.current")
    io = group.file("io", "io.stat")
    cached = group.file("memory", "memory.stat")
    return {
        "gpu_host_cpu_usage_seconds_total": lambda: _keyed(cpu, "usage_usec") / 1e6,
        "gpu_host_cpu_throttled_seconds_total": lambda: _keyed(cpu, "throttled_usec") / 1e6,
        "gpu_host_cpu_limit_cores": lambda: _cores(group.file("cpu", "cpu.max").read_text()),
        "gpu_host_memory_usage_bytes": lambda: _number(memory),
        "gpu_host_memory_working_set_bytes": lambda: max(0, _number(memory) - _keyed(cached, "inactive_file")),
        "gpu_host_memory_oom_kills_total": lambda: _keyed(group.file("memory", "memory.events"), "oom_kill"),
        "gpu_host_disk_read_bytes_total": lambda: _sum(io, r"\brbytes=(\d+)"),
        "gpu_host_disk_written_bytes_total": lambda: _sum(io, r"\bwbytes=(\d+)"),
    }


def _of_v1(group: Group) -> dict[str, Reading]:
    memory = group.file("memory", "memory.usage_in_bytes")
    cached = group.file("memory", "memory.stat")
    io = group.file("blkio", "blkio.throttle.io_service_bytes")
    quota, period = group.file("cpu", "cpu.cfs_quota_us"), group.file("cpu", "cpu.cfs_period_us")
    return {
        "gpu_host_cpu_usage_seconds_total": lambda: _number(group.file("cpuacct", "cpuacct.usage")) / 1e9,
        "gpu_host_cpu_throttled_seconds_total": lambda: _keyed(group.file("cpu", "cpu.stat"), "throttled_time") / 1e9,
        "gpu_host_cpu_limit_cores": lambda: _cores(f"{quota.read_text()} {period.read_text()}"),
        "gpu_host_memory_usage_bytes": lambda: _number(memory),
        "gpu_host_memory_working_set_bytes": lambda: max(0, _number(memory) - _keyed(cached, "total_inactive_file")),
        "gpu_host_memory_oom_kills_total": lambda: _keyed(group.file("memory", "memory.oom_control"), "oom_kill"),
        "gpu_host_disk_read_bytes_total": lambda: _sum(io, r"^\S+ Read (\d+)$"),
        "gpu_host_disk_written_bytes_total": lambda: _sum(io, r"^\S+ Write (\d+)$"),
    }


def _of_disk(disk: Path) -> dict[str, Reading]:
    # What root alone may use is free to nobody here.
    return {
        "gpu_host_filesystem_size_bytes": lambda: os.statvfs(disk).f_blocks * os.statvfs(disk).f_frsize,
        "gpu_host_filesystem_free_bytes": lambda: os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize,
    }


def _network(path: Path) -> Iterator[Figure]:
    """Yield what each device carried; what goes from the machine to itself is nobody's traffic."""
    with contextlib.suppress(OSError, ValueError, LookupError):
        for line in path.read_text().splitlines()[2:]:
            device, _, numbers = line.strip().partition(":")
            received, sent = int(numbers.split()[0]), int(numbers.split()[8])
            if device != "lo" and received + sent > 0:
                yield Figure("gpu_host_network_receive_bytes_total", received, {"device": device})
                yield Figure("gpu_host_network_transmit_bytes_total", sent, {"device": device})


def _memory_limit(group: Group) -> float:
    """Return the group's limit, or all that the host has where that is less."""
    name = "memory.max" if group.is_v2 else "memory.limit_in_bytes"
    try:
        said = group.file("memory", name).read_text().strip()
        limit = UNLIMITED_BYTES if said == "max" else int(said)
    except OSError:  # the root group of a host has no limit to read
        limit = UNLIMITED_BYTES
    host = group.host_memory_bytes()
    return min(limit, host)


def _cores(text: str) -> float:
    """Return how many cores a group may use, of its quota and period: at most all that the process may run on."""
    quota, period = text.split()
    cores = len(os.sched_getaffinity(0))
    return cores if quota in {"max", "-1"} else min(cores, int(quota) / int(period))


def _number(path: Path) -> int:
    return int(path.read_text())


def _keyed(path: Path, key: str) -> int:
    """Return the number behind a word at the beginning of a line."""
    lines = map(str.split, path.read_text().splitlines())
    return int({words[0]: words[1] for words in lines if len(words) > 1}[key])


def _sum(path: Path, pattern: str) -> int:
    """Return the sum over all block devices: none that was used yet is no error."""
    return sum(int(number) for number in re.findall(pattern, path.read_text(), re.MULTILINE))
