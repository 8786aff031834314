"""What a machine is asked to be, and the decisions about it that need no machine: pure values in, values out.

An `Engine` is what the stack asks for: the same on every machine and free of secrets. An `Identity` is what makes
one machine this machine, and nothing in it outlives it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import PurePosixPath

from bootstrap.arguments import asks_for_vectors
from dynamic_providers.lease.monitoring import WriteTarget

BUNDLE_VERSION = 3
"""Raised by whoever changes what is put on a machine, so that running machines are seen to differ."""

COMMAND_TIMEOUT = timedelta(seconds=60)
"""For a command on the machine that is not known to take longer."""

DOOR_PORT = 8443
"""The only port that listens, inside the container; the market maps it to another one outside."""

Report = Callable[[str, str], None]
"""Told (phase, text) now and then while a phase goes on: `("weights", "1.2 of 16.1 GB, 410 MB/s, 36 s left")`."""


@dataclass(frozen=True)
class ModelFile:
    """One file of a model: its path inside the model's folder, size in bytes, SHA-256 in hex."""

    path: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        if PurePosixPath(self.path).is_absolute() or ".." in PurePosixPath(self.path).parts:
            raise ValueError(f"{self.path} leads out of the model's folder")


@dataclass(frozen=True)
class Engine:
    """The model server that a stack asks for.

    Args:
        release: `name@sha256:<hex>`.
        served_name: What clients ask for.
        files: All files of the release.
        vllm_args: Further arguments, such as `--enable-prefix-caching`; see `refused_args`.
        max_model_len: Tokens of context; None leaves it to the model.
        gpu_count: GPUs of the machine; tensor parallelism follows.
        clients: Names; each has a token of its own in the `Identity`.
        allow: `pickle` and `code`, where the push of the release allowed them.
        startup_cache: Its compile caches lie where they can be packed and put back.
        monitoring: Where the machine's metrics go; None keeps them on the machine.
    """

    release: str
    served_name: str
    files: tuple[ModelFile, ...]
    vllm_args: tuple[str, ...] = ()
    max_model_len: int | None = None
    gpu_count: int = 1
    clients: tuple[str, ...] = ("default",)
    startup_cache: bool = False
    allow: tuple[str, ...] = ()
    monitoring: WriteTarget | None = None

    @property
    def digest(self) -> str:
        """The release's digest, hex."""
        return self.release.rpartition(":")[2]

    @property
    def embeds(self) -> bool:
        """Whether it answers with vectors instead of text."""
        return asks_for_vectors(self.vllm_args)

    def compile_hash(self) -> str:
        """Return the SHA-256, hex, of all this that decides what the engine compiles."""
        asked = [self.release, self.vllm_args, self.max_model_len, self.gpu_count, BUNDLE_VERSION]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def settings_hash(self) -> str:
        """Return the SHA-256, hex, of all this and of the bundle's version; a machine reports it as applied.

        Without what the manifest says: the release's digest stands for it, and who compares has not read it.
        """
        asked = {**asdict(self), "files": None, "allow": None, "bundle": BUNDLE_VERSION}
        return hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Identity:
    """What makes this machine this one. Its secrets travel over SSH only and stand in files of mode 0600.

    Args:
        instance_id: The market's.
        certificate: PEM of the leaf, the authority's behind it or not.
        private_key: PEM.
        tokens: Client name → token.
        scrape_token: Opens `/metrics/*`.
        control_token: Opens `/control/*`.
        machine_id: The market's, of the physical host.
        uid: The lease's; also a name in the certificate.
        stack: That asked for it.
        usd_per_hour: What it costs, all-in.
        ca_certificate: The fleet's, PEM.
    """

    instance_id: str
    certificate: str
    private_key: str = field(repr=False)
    tokens: Mapping[str, str] = field(repr=False)
    scrape_token: str = field(repr=False)
    control_token: str = field(repr=False)
    machine_id: str = ""
    uid: str = ""
    stack: str = ""
    usd_per_hour: float = 0.0
    ca_certificate: str = ""

    def secrets(self) -> tuple[str, ...]:
        """Return everything that must never be printed."""
        return (self.private_key, *self.tokens.values(), self.scrape_token, self.control_token)


@dataclass(frozen=True)
class Grant:
    """The right to fetch one blob for a while: a presigned GET. The URL is a secret as long as it lives."""

    sha256: str
    size: int
    url: str = field(repr=False)


FreshUrls = Callable[[Iterable[str]], Mapping[str, str]]
"""Given blobs by SHA-256, signs URLs anew: as `Presigner.urls`."""


@dataclass(frozen=True)
class Supplies:
    """Where everything that a machine fetches comes from.

    Args:
        caddy: The front door's program.
        blobs: For each file of the model, by SHA-256.
        vmagent: The program that carries metrics away; None where nobody wants them.
        fresh_urls: Asked for new URLs where those of the grants end while they are in use.
        cache: The engine's start-up cache; what is wrong with it only makes the start a cold one.
    """

    caddy: Grant
    blobs: Mapping[str, Grant]
    vmagent: Grant | None = None
    fresh_urls: FreshUrls | None = None
    cache: Grant | None = None

    @property
    def programs(self) -> dict[str, Grant]:
        """Each program by its name."""
        return {"caddy": self.caddy} | ({"vmagent": self.vmagent} if self.vmagent else {})


@dataclass(frozen=True)
class Remaining:
    """What the machine is told of its lease: all of it as time that is left, for its clock may be wrong.

    Args:
        lease: Until it must be gone.
        boot: Until it must be ready; counts as long as it is not.
        idle: Unused for so long, it goes back.
        grace: Beyond that, the reaper's turn is over and the machine ends itself.
        drain: What running requests are granted when it ends.
    """

    lease: timedelta
    boot: timedelta
    idle: timedelta
    grace: timedelta
    drain: timedelta = timedelta(minutes=2)

    def to_json(self, *, is_ready: bool) -> dict[str, float | str]:
        """Return it as `run/lease.json` has it, less the moment from which it counts."""
        return {
            "phase": "r" if is_ready else "b",
            "expires_in": self.lease.total_seconds(),
            "deadline_in": self.boot.total_seconds(),
            "idle_seconds": self.idle.total_seconds(),
            "grace_seconds": self.grace.total_seconds(),
            "drain_seconds": self.drain.total_seconds(),
        }


@dataclass(frozen=True)
class Gpu:
    """A GPU as the machine's own driver names it."""

    name: str
    memory_mib: int


@dataclass(frozen=True)
class Applied:
    """What `apply` did: seconds a phase, and whether anything on the machine is different now.

    Args:
        cache_refused: Why the engine starts cold although there was a start-up cache for it; empty if it did not.
    """

    phases: Mapping[str, float]
    changed: bool
    cache_refused: str = ""


def parse_gpus(output: str) -> tuple[Gpu, ...]:
    """Return the GPUs in `nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits`.

    Raises:
        ValueError: A line is not `name, MiB`.
    """
    gpus = []
    for line in filter(None, map(str.strip, output.splitlines())):
        name, _, memory = line.rpartition(",")
        gpus.append(Gpu(name.strip(), int(memory)))
    return tuple(gpus)


_TELLING = re.compile(r"\b\w*(Error|Exception)\b.*:|\berror: ")
_TELLING_LINES = 8
_LAST_LINES = 8
_LINE_CHARACTERS = 300
_BAR_CHARACTERS = 20


def telling_lines(lines: Sequence[str]) -> list[str]:
    """Return of a log what says why it ended: its last lines, and before them those that name an error.

    A traceback of vLLM's API server is long and says only that the engine failed; why stands far above.
    """
    errors = [line for line in lines[:-_LAST_LINES] if _TELLING.search(line)]
    told = [*dict.fromkeys(errors[-_TELLING_LINES:]), *lines[-_LAST_LINES:]]
    return [line[:_LINE_CHARACTERS] for line in told]


def redact(text: str, secrets: Iterable[str]) -> str:
    """Return *text* with every secret and every signed query string blotted out."""
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    text = re.sub(r"(https?://[^\s\"'?]+)\?[^\s\"']+", r"\1?***", text)
    # A URL in pieces, as HTTP libraries show it: what signs it must not be read either.
    return re.sub(r"((?:X-Amz-\w[\w-]*|Signature|AWSAccessKeyId)=)[^\s\"'&]+", r"\1***", text)


def render_progress(done: int, total: int, bytes_per_second: float) -> str:
    """Return one line about a download, such as `███░░░░░░░ 5.1 of 16.1 GB, 410 MB/s, 27 s left`."""
    unit, scale = ("GB", 1e9) if total >= 1e9 else ("MB", 1e6)
    filled = _BAR_CHARACTERS * done // max(total, 1)
    text = f"{'█' * filled}{'░' * (_BAR_CHARACTERS - filled)} {done / scale:.1f} of {total / scale:.1f} {unit}"
    if bytes_per_second > 0:
        text += f", {bytes_per_second / 1e6:.0f} MB/s, {(total - done) / bytes_per_second:.0f} s left"
    return text
