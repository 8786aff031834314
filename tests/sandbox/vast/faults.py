"""Faults on demand: each is armed a number of times and used up by what it hits.

There are three kinds: those of a call strike the next calls that `on` names, those of the market strike where their
text says, and those of an instance befall the next instances that are rented.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.sandbox.vast.errors import ApiError


@dataclass(frozen=True)
class Kind:
    """What a fault does, and what can be said about it.

    Attributes:
        text: For people.
        on: The call that is hit; for faults of a call: unless told otherwise.
        options: What else may be set: name -> the values it may have, the first one by default.
        seconds: How long, of the market's time, unless told otherwise; None where it does not apply.
    """

    text: str
    on: str = ""
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    seconds: float | None = None


BEFORE_OR_AFTER = {"where": ("before", "after")}

OF_A_CALL: Mapping[str, Kind] = {
    "reply_lost": Kind("the call named by `on` succeeds, then the connection closes without a reply", on="create"),
    "request_lost": Kind("the connection closes without a reply, and the call named by `on` does nothing", on="create"),
    "unavailable": Kind("the call named by `on` answers 502 and does nothing", on="list"),
    "server_error": Kind(
        "the call named by `on` answers `status`, before or after it is done, as `where` says",
        on="list",
        options={**BEFORE_OR_AFTER, "status": (500, 502, 503, 504)},
    ),
    "rate_limited": Kind(
        "the call named by `on` answers 429 and does nothing, in the market's forms; `retry_after` adds a header",
        on="list",
        options={"form": ("text", "detail", "json")},
    ),
    "slow": Kind(
        "the reply comes so many real seconds late; `where`: whether the call is done before or after them",
        on="list",
        options={"where": ("after", "before")},
        seconds=1.0,
    ),
    "list_lags": Kind(
        "`list` (or `show`, as `on` says) knows only the instances that were there so many seconds ago",
        on="list",
        seconds=30.0,
    ),
}
OF_THE_MARKET: Mapping[str, Kind] = {
    "search_quota": Kind("search answers 429 search_quota_exceeded, which lasts until midnight UTC", on="search"),
    "offer_taken": Kind("create answers no_such_ask, and the offer is gone", on="create"),
    "refused_but_rented": Kind("create answers an error, and the instance exists all the same, stopped", on="create"),
    "insufficient_credit": Kind("create answers insufficient_credit", on="create"),
    "spend_rate_limit": Kind("create answers spend_rate_limit, as new accounts see it", on="create"),
    "page_missing": Kind(
        "list answers without the rows of one page; its counts and its next_token tell of them", on="list"
    ),
    "destroy_fails": Kind("destroy answers 500 and does nothing", on="destroy"),
    "destroy_lies": Kind("destroy answers success and does nothing", on="destroy"),
    "no_resources": Kind(
        "start answers 200, success false, resources_unavailable; it starts by itself after so long",
        on="state",
        seconds=60.0,
    ),
}
OF_AN_INSTANCE: Mapping[str, Kind] = {
    "boot_hangs": Kind("it never leaves loading"),
    "image_pull_error": Kind("it stays loading, and status_msg is docker's about an image that it cannot pull"),
    "oci_error": Kind("it stays created, and status_msg is docker's about a container that it cannot start"),
    "wrong_gpu": Kind(
        "it has a smaller GPU: in its row or on the machine, as `where` says", options={"where": ("row", "machine")}
    ),
    "no_port_map": Kind("it runs, and no port of it is ever published"),
    "ssh_refused": Kind("it runs, and its SSH port refuses connections"),
    "ssh_late": Kind("its SSH port refuses connections until so long after it runs", seconds=20.0),
    "ssh_other_host_key": Kind("after `after` logins its SSH server has another host key"),
    "ssh_dropped": Kind("after `after` commands its SSH connection drops in the middle of the next one"),
    "outbid": Kind("if it is interruptible: so long after it runs, another bid stops it", seconds=0.0),
    "stopped_by_credit": Kind(
        "so long after it runs the account's credit is used up, and everything stops", seconds=0.0
    ),
    "host_offline": Kind("as soon as it runs its host is offline; for so long, or for ever if 0", seconds=0.0),
}
KINDS: Mapping[str, Kind] = {**OF_A_CALL, **OF_THE_MARKET, **OF_AN_INSTANCE}


@dataclass
class Fault:
    """A fault that waits for its moment, or that has befallen an instance."""

    kind: str
    on: str = ""
    times: int = 1
    where: str = ""
    status: int = 500
    form: str = "text"
    seconds: float = 0.0
    after: int = 0
    retry_after: float | None = None


@dataclass
class Faults:
    """The faults that are armed."""

    armed: list[Fault] = field(default_factory=list)

    def arm(self, kind: str, **options: Any) -> None:
        """Arm a fault.

        Args:
            kind: A key of `KINDS`.
            **options: Fields of `Fault`. `times` says how many calls or instances it hits.

        Raises:
            ApiError: There is no such fault, or the options do not fit it.
        """
        self.armed.append(make_fault(kind, **options))

    def take(self, kind: str, *, on: Collection[str] = (), where: str = "") -> Fault | None:
        """Use up one turn of a fault; None if none was armed.

        Args:
            kind: A key of `KINDS`.
            on: The names of the call that is being made.
            where: Only one that is armed for there.
        """
        for fault in self.armed:
            is_aimed = kind not in OF_A_CALL or fault.on in on
            if fault.kind == kind and is_aimed and (not where or fault.where == where):
                fault.times -= 1
                if fault.times == 0:
                    self.armed.remove(fault)
                return fault
        return None

    def take_for_instance(self) -> list[Fault]:
        """Use up one turn of everything that is to befall the next instance."""
        both = [("wrong_gpu", "row"), ("wrong_gpu", "machine")]
        wanted = [*((kind, "") for kind in OF_AN_INSTANCE if kind != "wrong_gpu"), *both]
        return [fault for kind, where in wanted if (fault := self.take(kind, where=where))]

    def rows(self) -> list[dict[str, Any]]:
        """Render what is still armed."""
        return [vars(fault).copy() for fault in self.armed]


def make_fault(kind: str, **options: Any) -> Fault:
    """Check and complete a fault.

    Raises:
        ApiError: There is no such fault, or the options do not fit it.
    """
    if kind not in KINDS:
        raise ApiError(400, "invalid_args", f"no fault {kind!r}; there are {', '.join(sorted(KINDS))}")
    known = KINDS[kind]
    defaults = {"on": known.on, **{name: values[0] for name, values in known.options.items()}}
    if known.seconds is not None:
        defaults["seconds"] = known.seconds
    given = {
        name: value for name, value in options.items() if not (name == "on" and value in ("", known.on or "create"))
    }
    for name, value in given.items():
        if name not in _allowed(kind):
            raise ApiError(400, "invalid_args", f"{kind} has no {name}; it has {', '.join(sorted(_allowed(kind)))}")
        if value not in known.options.get(name, (value,)):
            raise ApiError(400, "invalid_args", f"{name} is one of {known.options[name]}, not {value!r}")
    fault = Fault(kind, **{**defaults, **given})
    if not isinstance(fault.times, int) or fault.times < 1:
        raise ApiError(400, "invalid_args", f"times is a whole number from 1, not {fault.times!r}")
    for value in (fault.seconds, fault.after, fault.retry_after):
        if not isinstance(value, int | float | None) or (value or 0) < 0:
            raise ApiError(400, "invalid_args", f"seconds, after and retry_after are numbers from 0, not {value!r}")
    return fault


def _allowed(kind: str) -> set[str]:
    known = KINDS[kind]
    allowed = {"times", *known.options}
    allowed |= {"on"} if kind in OF_A_CALL else set()
    allowed |= {"seconds"} if known.seconds is not None else set()
    allowed |= {"after"} if kind in ("ssh_dropped", "ssh_other_host_key") else set()
    return allowed | ({"retry_after"} if kind == "rate_limited" else set())
