"""What `nvidia-smi` runs on a rented host: prints the GPUs that the host truly has.

Usage: nvidia_smi.py <file with the GPUs> [arguments of nvidia-smi]
"""

import argparse
import json
import sys
import uuid
from pathlib import Path
from typing import Any

DRIVER = "580.95.05"
Row = dict[str, tuple[str, str]]


def main(gpu_file: str, arguments: list[str]) -> int:
    """Answer as nvidia-smi does; return its exit status."""
    gpus = [_row(index, gpu) for index, gpu in enumerate(json.loads(Path(gpu_file).read_text()))]
    parser = argparse.ArgumentParser(prog="nvidia-smi", allow_abbrev=False)
    parser.add_argument("-L", "--list-gpus", action="store_true")
    parser.add_argument("--query-gpu", default="")
    parser.add_argument("--format", default="csv")
    parser.add_argument("-i", "--id", type=int)
    asked = parser.parse_args(arguments)
    chosen = [gpu for gpu in gpus if asked.id is None or gpu["index"][0] == str(asked.id)]
    if not asked.query_gpu:
        for gpu in chosen:
            print(f"GPU {gpu['index'][0]}: {gpu['name'][0]} (UUID: {gpu['uuid'][0]})")
        return 0
    fields = [field.strip() for field in asked.query_gpu.split(",")]
    for field in fields:
        if field not in gpus[0]:
            print(f'Field "{field}" is not a valid field to query.')
            return 2
    style = asked.format.split(",")
    if "noheader" not in style:
        units = {field: f" [{gpus[0][field][1]}]" if gpus[0][field][1] else "" for field in fields}
        print(", ".join(field + units[field] for field in fields))
    for gpu in chosen:
        print(", ".join(_cell(gpu[field], has_unit="nounits" not in style) for field in fields))
    return 0


def _row(index: int, gpu: dict[str, Any]) -> Row:
    """Every field that can be asked for: value and unit."""
    memory = int(gpu["memory_mib"])
    return {
        "index": (str(index), ""),
        "name": (gpu["name"], ""),
        "gpu_name": (gpu["name"], ""),
        "uuid": (f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, gpu['name'] + str(index))}", ""),
        "memory.total": (str(memory), "MiB"),
        "memory.used": ("3", "MiB"),
        "memory.free": (str(memory - 3), "MiB"),
        "utilization.gpu": ("0", "%"),
        "utilization.memory": ("0", "%"),
        "temperature.gpu": ("34", ""),
        "power.draw": ("21.30", "W"),
        "driver_version": (DRIVER, ""),
        "compute_cap": (f"{gpu['compute_capability']:.1f}", ""),
    }


def _cell(cell: tuple[str, str], *, has_unit: bool) -> str:
    value, unit = cell
    return f"{value} {unit}" if unit and has_unit else value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
