"""What a create call asks for, checked as strictly as the market documents it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.sandbox.vast.errors import ApiError
from tests.sandbox.vast.hosts import SSH_PORT

ONSTART_LIMIT = 4048
LABEL_LIMIT = 256
MIN_DISK_GB = 8
ENV_ITEM_LIMIT = 256
ENV_LIMIT = 32_768
PORT_LIMIT = 64

_TYPES: Mapping[str, tuple[type, ...]] = {
    "client_id": (str,),
    "image": (str,),
    "env": (dict,),
    "price": (int, float),
    "disk": (int, float),
    "label": (str,),
    "extra": (str,),
    "onstart": (str,),
    "image_login": (str,),
    "python_utf8": (bool,),
    "lang_utf8": (bool,),
    "use_jupyter_lab": (bool,),
    "jupyter_dir": (str,),
    "force": (bool,),
    "cancel_unavail": (bool,),
    "template_hash_id": (str,),
    "user": (str,),
    "runtype": (str,),
    "args": (list,),
    "args_str": (str,),
    "target_state": (str,),
    "template_id": (int,),
    "volume_info": (dict,),
    "vm": (bool,),
}
_NUMBERS = ("disk", "price")
_RUNTYPES = frozenset(
    {"args", "ssh", "jupyter"}
    | {f"{kind}_{way}" for kind in ("ssh", "jupyter") for way in ("proxy", "direct", "direc")}
)
_DOCKER_FLAGS = ("-p", "-e", "-h", "-v", "-n")
_PORT = re.compile(r"-p (\d+):(\d+)(/tcp|/udp)?")


@dataclass(frozen=True)
class Order:
    """A checked create call.

    Attributes:
        image: Name of the image.
        disk_gb: Size of the disk.
        label: May be absent.
        onstart: Script for every start; empty if none.
        env: The `env` object as it came.
        variables: Its environment variables.
        tcp_ports: Container ports to publish.
        runtype: As it came, or the default.
        args: The container's arguments.
        bid_usd: Interruptible price, None for on-demand.
        cancel_unavail: Whether to rent nothing rather than something that does not start.
    """

    image: str
    disk_gb: float
    label: str | None
    onstart: str
    env: Mapping[str, str]
    variables: Mapping[str, str]
    tcp_ports: tuple[int, ...]
    runtype: str
    args: tuple[str, ...]
    bid_usd: float | None
    cancel_unavail: bool


def parse_order(body: Any, ask_id: int, *, takes_text_numbers: bool = False) -> Order:
    """Check the body of a create call.

    Args:
        body: As it came.
        ask_id: The offer, for the refusal.
        takes_text_numbers: Whether `"60"` will do for 60.

    Raises:
        ApiError: 400 `invalid_args`, with every reason.
    """
    if takes_text_numbers and isinstance(body, dict):
        body = body | {name: _number(body[name]) for name in _NUMBERS if name in body}
    problems = _find_problems(body)
    if problems:
        raise ApiError(400, "invalid_args", f"error 400/3467: Invalid args: {'; '.join(problems)}", ask_id=ask_id)
    given = {key: value for key, value in body.items() if value is not None}
    env: dict[str, str] = given.get("env", {})
    runtype = given.get("runtype") or ("args" if given.get("args") or given.get("args_str") else "ssh")
    ports = [int(match[2]) for key in env if (match := _PORT.fullmatch(key)) and match[3] != "/udp"]
    has_direct_ssh = any(word.startswith("ssh_direc") for word in runtype.split())
    return Order(
        image=given["image"],
        disk_gb=float(given.get("disk", MIN_DISK_GB)),
        label=given.get("label"),
        onstart=given.get("onstart", ""),
        env=env,
        variables={key: value for key, value in env.items() if not key.startswith("-")},
        tcp_ports=tuple(dict.fromkeys(((SSH_PORT,) if has_direct_ssh else ()) + tuple(ports))),
        runtype=runtype,
        args=tuple(given.get("args", ())),
        bid_usd=given.get("price"),
        # Unless it is said, so that who bids may wait for the price to fall. Source: OpenAPI create_instance.yaml.
        cancel_unavail=bool(given.get("cancel_unavail", given.get("price") is None)),
    )


def _find_problems(body: Any) -> list[str]:
    if not isinstance(body, dict):
        return ["the body is not an object"]
    given = {key: value for key, value in body.items() if value is not None}
    problems = [f"unknown key {key}" for key in given if key not in _TYPES]
    problems += [
        f"{key} has the wrong type"
        for key, value in given.items()
        if key in _TYPES and not _has_type(value, _TYPES[key])
    ]
    if problems:
        return problems
    return _find_bad_values(given) + _find_bad_env(given.get("env", {}))


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _has_type(value: Any, types: tuple[type, ...]) -> bool:
    # To Python a bool is an int, to the market it is not.
    return isinstance(value, types) and (bool in types or not isinstance(value, bool))


def _find_bad_values(given: Mapping[str, Any]) -> list[str]:
    image, disk = given.get("image", ""), given.get("disk", MIN_DISK_GB)
    script = len(given.get("onstart", "")) + len(given.get("args_str", "")) + sum(map(len, given.get("args", [])))
    checks = (
        ("image is missing", not image),
        ("image is longer than 1024", len(image) > 1024),
        (f"disk must be at least {MIN_DISK_GB} GB, not {disk}", disk < MIN_DISK_GB),
        (f"label is longer than {LABEL_LIMIT}", len(given.get("label", "")) > LABEL_LIMIT),
        (f"onstart is longer than {ONSTART_LIMIT}", len(given.get("onstart", "")) > ONSTART_LIMIT),
        ("args, args_str and onstart are together longer than 4096", script > 4096),
        ("price must be between 0.001 and 128", not 0.001 <= given.get("price", 1) <= 128),
        ("unknown runtype", not set(given.get("runtype", "ssh").split()) <= _RUNTYPES),
        ("args need runtype args", bool(given.get("args")) and given.get("runtype", "args") != "args"),
        ("templates are not played here", "template_hash_id" in given or "template_id" in given),
        ("volumes are not played here", "volume_info" in given),
        ("virtual machines are not played here", given.get("vm", False)),
        ("only target_state running is played here", given.get("target_state", "running") != "running"),
    )
    return [message for message, is_bad in checks if is_bad]


def _find_bad_env(env: Mapping[Any, Any]) -> list[str]:
    if any(not isinstance(part, str) for item in env.items() for part in item):
        return ["env must map strings to strings"]
    flags = [key for key in env if key.startswith("-")]
    ports = [_PORT.fullmatch(key) for key in flags if key.startswith("-p")]
    checks = (
        (
            f"an env key or value is longer than {ENV_ITEM_LIMIT}",
            max(map(len, [*env, *env.values()]), default=0) > ENV_ITEM_LIMIT,
        ),
        (f"env is longer than {ENV_LIMIT}", sum(len(key) + len(value) for key, value in env.items()) > ENV_LIMIT),
        (f"more than {PORT_LIMIT} ports", len(ports) > PORT_LIMIT),
        ("a port is not like -p 8443:8443", not all(m and 0 < int(m[2]) < 65_536 and m[1] == m[2] for m in ports)),
        ("only -p, -e, -h, -v and -n are taken from docker", any(key[:2] not in _DOCKER_FLAGS for key in flags)),
    )
    return [message for message, is_bad in checks if is_bad]
