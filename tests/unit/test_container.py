"""What a container uses, read from trees of files such as control groups of both versions show them."""

import os
import shutil
from pathlib import Path

import pytest

from bootstrap.host.watching.container import read_container
from dynamic_providers.lease.metrics import AGENT_METRICS, checked

MEMINFO = "MemTotal:       131072 kB\nMemFree:        65536 kB\n"
NETWORK = """\
Inter-|   Receive                                       |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo: 6863413505  265347    0    0    0     0     0     0 6863413505  265347    0    0    0     0     0    0
  ifb0:       0       0    0    0    0     0        0     0        0       0    0    0    0     0       0    0
  eth0:4259267598 3000000    0    0    0     0      0     0  5061543   60000    0    0    0     0       0    0
"""
V2 = {
    "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory\n",
    "proc/self/cgroup": "0::/\n",
    "sys/fs/cgroup/cpu.stat": "usage_usec 12500000\nuser_usec 1\nsystem_usec 1\nthrottled_usec 250000\n",
    "sys/fs/cgroup/cpu.max": "50000 100000\n",
    "sys/fs/cgroup/memory.current": "50000000\n",
    "sys/fs/cgroup/memory.stat": "anon 1\nfile 2\ninactive_anon 9\ninactive_file 20000000\n",
    "sys/fs/cgroup/memory.max": "64000000\n",
    "sys/fs/cgroup/memory.events": "low 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 0\n",
    "sys/fs/cgroup/io.stat": (
        "259:0 rbytes=1000 wbytes=300 rios=1 wios=1 dbytes=5 dios=0\n8:16 rbytes=24 wbytes=5 rios=1 wios=1\n"
    ),
}
V1 = {
    "proc/self/cgroup": "9:cpuacct,cpu:/docker/abc\n5:blkio:/docker/abc\n4:memory:/docker/abc\n0::/\n",
    "sys/fs/cgroup/cpuacct/cpuacct.usage": "12500000000\n",
    "sys/fs/cgroup/cpu/cpu.stat": "nr_periods 9\nnr_throttled 1\nthrottled_time 250000000\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "50000000\n",
    "sys/fs/cgroup/memory/memory.stat": "cache 1\ninactive_file 7\ntotal_inactive_file 20000000\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "64000000\n",
    "sys/fs/cgroup/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
    "sys/fs/cgroup/blkio/blkio.throttle.io_service_bytes": (
        "259:0 Read 1000\n259:0 Write 300\n259:0 Sync 1300\n259:0 Total 1300\n8:16 Read 24\n8:16 Write 5\nTotal 1329\n"
    ),
}
USED = {
    "cpu_usage_seconds_total": 12.5,
    "cpu_throttled_seconds_total": 0.25,
    "cpu_limit_cores": 0.5,
    "memory_usage_bytes": 50_000_000,
    "memory_working_set_bytes": 30_000_000,
    "memory_limit_bytes": 64_000_000,
    "memory_oom_kills_total": 1,
    "disk_read_bytes_total": 1024,
    "disk_written_bytes_total": 305,
}
BOTH = pytest.mark.parametrize("files", [pytest.param(V2, id="v2"), pytest.param(V1, id="v1")])


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in {"proc/meminfo": MEMINFO, "proc/net/dev": NETWORK, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def read(root: Path) -> dict[str, float]:
    """Return the figures that have no label, by name; all are checked against the register."""
    figures = checked(read_container(root, root))
    return {m.name.removeprefix("gpu_host_"): f[0].value for m, f in figures.items() if not m.labels}


@BOTH
def test_both_versions_say_the_same(tmp_path: Path, files: dict[str, str]) -> None:
    write(tmp_path, files)
    assert {name: value for name, value in read(tmp_path).items() if not name.startswith("filesystem")} == USED


@BOTH
def test_every_figure_of_the_register_is_read(tmp_path: Path, files: dict[str, str]) -> None:
    write(tmp_path, files)
    registered = {name for name in AGENT_METRICS if name.startswith("gpu_host_")} - {"gpu_host_gpus"}
    assert {figure.name for figure in read_container(tmp_path, tmp_path)} == registered


@BOTH
@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(None, id="missing"),
        pytest.param("", id="empty"),
        pytest.param("what nobody expected\n", id="words"),
        pytest.param("0 0\n" * 3, id="zeros"),
    ],
)
def test_a_file_that_is_missing_or_odd_costs_its_own_figures_only(
    tmp_path: Path, files: dict[str, str], odd: str | None
) -> None:
    whole = len(USED) + 4  # disk and network
    for name in [*(n for n in files if n.startswith("sys") and "controllers" not in n), "proc/net/dev"]:
        shutil.rmtree(tmp_path)
        write(tmp_path, {**files, name: odd or ""})
        if odd is None:
            (tmp_path / name).unlink()
        there = {figure.name for figure in read_container(tmp_path, tmp_path)}
        # Two figures come from the files that have most.
        assert whole - 2 <= len(there) <= whole


@pytest.mark.parametrize(
    ("files", "name", "unlimited"),
    [
        pytest.param(V2, "sys/fs/cgroup/memory.max", "max\n", id="v2"),
        pytest.param(V1, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n", id="v1"),
        pytest.param(V2, "sys/fs/cgroup/memory.max", "999999999999999\n", id="more-than-there-is"),
    ],
)
def test_without_a_limit_the_hosts_memory_is_the_limit(
    tmp_path: Path, files: dict[str, str], name: str, unlimited: str
) -> None:
    write(tmp_path, {**files, name: unlimited})
    assert read(tmp_path)["memory_limit_bytes"] == 131072 * 1024


@pytest.mark.parametrize(
    ("files", "change"),
    [
        pytest.param(V2, {"sys/fs/cgroup/cpu.max": "max 100000\n"}, id="v2"),
        pytest.param(V1, {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}, id="v1"),
        pytest.param(V2, {"sys/fs/cgroup/cpu.max": "99900000 100000\n"}, id="more-than-there-are"),
    ],
)
def test_without_a_quota_all_cores_are_the_limit(tmp_path: Path, files: dict[str, str], change: dict[str, str]) -> None:
    write(tmp_path, {**files, **change})
    assert read(tmp_path)["cpu_limit_cores"] == len(os.sched_getaffinity(0))


def test_a_container_without_a_namespace_is_found_in_the_hosts_tree(tmp_path: Path) -> None:
    # Version 2, the host's own tree: its root has figures of the host, but no memory.current.
    inside = {
        name.replace("cgroup/", "cgroup/system.slice/docker-abc.scope/", 1): content
        for name, content in V2.items()
        if "controllers" not in name and name.startswith("sys")
    }
    write(
        tmp_path,
        {
            **inside,
            "sys/fs/cgroup/cgroup.controllers": "cpu\n",
            "sys/fs/cgroup/cpu.stat": "usage_usec 999999999999\n",
            "sys/fs/cgroup/io.stat": "8:0 rbytes=999999999999 wbytes=999999999999\n",
            "proc/self/cgroup": "0::/system.slice/docker-abc.scope\n",
        },
    )
    seen = read(tmp_path)
    assert {name: seen[name] for name in USED} == USED


def test_version_1_with_the_hosts_tree_counts_the_containers_group(tmp_path: Path) -> None:
    own = {"sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes": "123\n"}
    write(tmp_path, {**V1, **own})
    assert read(tmp_path)["memory_usage_bytes"] == 123


def test_a_disk_that_nobody_used_yet_is_zero(tmp_path: Path) -> None:
    write(tmp_path, {**V2, "sys/fs/cgroup/io.stat": ""})
    assert read(tmp_path)["disk_read_bytes_total"] == 0


def test_devices_that_carry_nothing_of_others_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, V2)
    seen = {(f.name, f.labels["device"]): f.value for f in read_container(tmp_path, tmp_path) if "network" in f.name}
    assert seen == {
        ("gpu_host_network_receive_bytes_total", "eth0"): 4259267598,
        ("gpu_host_network_transmit_bytes_total", "eth0"): 5061543,
    }


def test_the_disk_is_the_one_that_the_folder_is_on(tmp_path: Path) -> None:
    write(tmp_path, V2)
    seen, disk = read(tmp_path), shutil.disk_usage(tmp_path)
    assert seen["filesystem_size_bytes"] == disk.total
    assert 0 <= seen["filesystem_free_bytes"] <= disk.total


def test_on_this_machine_something_is_read() -> None:
    names = {figure.name for figure in read_container()}
    assert {"gpu_host_cpu_limit_cores", "gpu_host_memory_limit_bytes", "gpu_host_filesystem_free_bytes"} <= names
