"""What the stack asks of a machine: the resource's inputs as one value, and what a change of them means."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import ceil
from typing import Any, Self

from dynamic_providers.lease.monitoring import WriteTarget
from dynamic_providers.store.address import StoreAddress
from dynamic_providers.store.manifest import Facts
from dynamic_providers.vast.models import GpuNeed
from dynamic_providers.vast.offers import Plan

IMAGE_GB = 12.0
"""Compressed size of vllm/vllm-openai, to download. Source: vllm-project/vllm#27154 (10/2025), PR #22377."""
IMAGE_DISK_GB = 30.0
"""The same unpacked (28.6 GB at 0.12.0), rounded up."""
SPARE_DISK_GB = 8.0
"""Compile caches, logs, Caddy, and the file system's own share."""
WEIGHTS_SHARE = 0.85
"""Of a GPU's memory, for weights: vLLM takes 0.92 of it by default, and a cache without room serves nobody.
Source: vLLM 0.32, `--gpu-memory-utilization`."""
STRETCHING = "--hf-overrides"
UNKNOWN = Facts()


@dataclass(frozen=True)
class ModelRequest:
    """What is to be served.

    Attributes:
        release: `name@sha256:<hex>`.
        size_bytes: All of its files.
        clients: One token each.
        startup_cache: What a machine compiles is kept for the next time that it is rented.
    """

    release: str
    size_bytes: int
    served_name: str
    max_model_len: int | None
    vllm_args: tuple[str, ...]
    clients: tuple[str, ...]
    startup_cache: bool = False


@dataclass(frozen=True)
class LeaseTerms:
    """How long, and at what price at most. Units are in the names; `max_usd_total` None is no limit."""

    max_hours: float = 8.0
    idle_minutes: int = 15
    boot_minutes: float = 20.0
    attempts: int = 3
    max_usd_total: float | None = None


@dataclass(frozen=True)
class FleetKeys:
    """Whose machine it is. `sign` and `observe` are secret, hex."""

    id: str
    ca_certificate: str
    sign: str
    observe: str


@dataclass(frozen=True)
class MachineRequest:
    """Everything that a machine is rented for."""

    stack: str
    uid: str
    fleet: FleetKeys
    need: GpuNeed
    image: str
    model: ModelRequest
    terms: LeaseTerms
    store: StoreAddress
    monitoring: WriteTarget | None = None

    @classmethod
    def from_props(cls, props: Mapping[str, Any]) -> Self:
        """Read the inputs of a VastInstance. Pulumi carries every number as a float, lists for tuples, no None."""
        need, terms = props["need"], props["terms"]
        return cls(
            stack=props["stack"],
            uid=props["uid"],
            fleet=FleetKeys(props["fleet_id"], props["ca_certificate"], props["sign"], props["observe"]),
            need=_parse_need(need),
            image=props["image"],
            model=_parse_model(props["model"]),
            terms=LeaseTerms(
                **_known(LeaseTerms, terms)
                | {"idle_minutes": int(terms["idle_minutes"]), "attempts": int(terms["attempts"])}
            ),
            store=StoreAddress.from_props(props["store"]),
            monitoring=WriteTarget.from_props(props["monitoring"]) if props.get("monitoring") else None,
        )

    def to_props(self) -> dict[str, Any]:
        """Return the inputs that `from_props` reads."""
        props = {
            "stack": self.stack,
            "uid": self.uid,
            "fleet_id": self.fleet.id,
            "ca_certificate": self.fleet.ca_certificate,
            "sign": self.fleet.sign,
            "observe": self.fleet.observe,
            "need": _plain(self.need),
            "image": self.image,
            "model": _plain(self.model),
            "terms": _plain(self.terms),
            "store": self.store.to_props(),
        }
        return props | {"monitoring": self.monitoring.to_props()} if self.monitoring else props

    @property
    def disk_gb(self) -> float:
        """Disk to rent: as asked, else what image and weights take."""
        return self.need.disk_gb or disk_for(self.model.size_bytes)

    @property
    def plan(self) -> Plan:
        """The same as the market's offers are weighed by."""
        need = GpuNeed(**asdict(self.need) | {"disk_gb": self.disk_gb})
        load_gb = self.model.size_bytes / 1e9 + IMAGE_GB
        return Plan(need, self.terms.max_hours, load_gb, self.terms.boot_minutes, self.terms.max_usd_total)


def disk_for(size_bytes: int) -> float:
    """Return the disk that image and weights take, whole GB."""
    return float(ceil(size_bytes / 1e9 + IMAGE_DISK_GB + SPARE_DISK_GB))


def misfits(request: MachineRequest, facts: Facts = UNKNOWN) -> list[str]:
    """Say why the model cannot run on any machine of the need, a line a problem; empty means that it can.

    Args:
        request: What is asked.
        facts: Of the model. Where it is unknown what GPU memory the weights take, their files' size stands for it.
    """
    need, model = request.need, request.model
    problems = []
    weights_gib = (model.size_bytes if facts.gpu_bytes is None else facts.gpu_bytes) / 2**30
    room_gib = need.gpu_count * need.min_vram_gib * WEIGHTS_SHARE
    if weights_gib > room_gib:
        least = weights_gib / need.gpu_count / WEIGHTS_SHARE
        problems.append(
            f"need.min_vram_gib: {need.min_vram_gib:g} on {need.gpu_count} GPU(s) leaves {room_gib:.1f} GiB for "
            f"weights, but {model.release.partition('@')[0]} has {weights_gib:.1f} GiB: ask for at least {ceil(least)} "
            "GiB per GPU, for more GPUs (need.gpu_count), or for a smaller or quantised model"
        )
    if request.disk_gb < disk_for(model.size_bytes):
        problems.append(
            f"need.disk_gb: {request.disk_gb:g} is too small: image and weights take "
            f"{disk_for(model.size_bytes):.0f} GB; set that, or leave the key out"
        )
    context, wanted = facts.context_length, model.max_model_len
    if context and wanted and wanted > context and not any(arg.startswith(STRETCHING) for arg in model.vllm_args):
        problems.append(
            f"model.max_model_len: {wanted}, but {model.release.partition('@')[0]} was made for {context} tokens: "
            f"write no more than that, or leave the key out; where it can be stretched, {STRETCHING} says how"
        )
    return problems


# A machine is rented for its need and image; these it keeps until it goes back.
_REPLACES = ("uid", "fleet_id", "ca_certificate", "image")


def replaced_by(olds: Mapping[str, Any], news: Mapping[str, Any]) -> list[str]:
    """Name the inputs that ask for another machine than the one we have.

    Args:
        olds: The resource's outputs, as the last run or refresh left them.
        news: The inputs asked for now.
    """
    replaces = [key for key in _REPLACES if olds.get(key) != news.get(key)]
    # By meaning: neither another order of names nor a key that a later version adds is another need.
    if _parse_need(olds["need"]) != _parse_need(news["need"]):
        replaces.append("need")
    if olds.get("is_stopped"):
        replaces.append("is_stopped")
    if MachineRequest.from_props(news).disk_gb > float(olds.get("disk_gb") or 0):
        replaces.append("model")  # it does not fit the disk that was rented, and a disk does not grow
    return replaces


def is_updated_by(olds: Mapping[str, Any], news: Mapping[str, Any], settings_hash: str) -> bool:
    """Say whether the machine we have must be changed in place.

    Args:
        olds: The resource's outputs: `applied` is the hash that the machine itself reports; `is_ready` false means
            that a run was broken off before it said so on the label, or that somebody changed the label.
        news: The inputs asked for now.
        settings_hash: What `news` would have the machine report.
    """
    lease = ("max_hours", "idle_minutes")  # they stand in the label, and in the certificate's life
    is_applied = olds.get("applied") == settings_hash and olds.get("is_ready", False)
    # A run that is killed between the change and its record leaves the outputs of the former settings, tokens too.
    is_recorded = _parse_model(olds["model"]) == _parse_model(news["model"])
    return not (is_applied and is_recorded) or any(olds["terms"].get(key) != news["terms"].get(key) for key in lease)


def _parse_model(props: Mapping[str, Any]) -> ModelRequest:
    return ModelRequest(
        release=props["release"],
        size_bytes=int(props["size_bytes"]),
        served_name=props["served_name"],
        max_model_len=int(props["max_model_len"]) if props.get("max_model_len") else None,
        vllm_args=tuple(props.get("vllm_args", ())),
        clients=tuple(props["clients"]),
        startup_cache=bool(props.get("startup_cache", False)),
    )


def _parse_need(props: Mapping[str, Any]) -> GpuNeed:
    names = {"gpus": tuple(sorted(props["gpus"])), "regions": tuple(sorted(props.get("regions", ())))}
    return GpuNeed(**_known(GpuNeed, props) | names | {"gpu_count": int(props["gpu_count"])})


def _known(type_: type, props: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that *type_* has: a state that another version wrote must still be destroyable."""
    names = {field.name for field in fields(type_)}
    return {key: value for key, value in props.items() if key in names}


def _plain(value: Any) -> dict[str, Any]:
    """Return a dataclass as Pulumi keeps it: lists for tuples, no None."""
    items = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(value).items()}
    return {key: v for key, v in items.items() if v is not None}
