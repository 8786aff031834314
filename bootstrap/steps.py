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
from itertools import pairwise
from pathlib import PurePosixPath

BUNDLE_VERSION = 2
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
    """This machine's own secrets. They travel over SSH only and stand in files of mode 0600.

    Args:
        instance_id: The market's.
        certificate: PEM of the leaf, the authority's behind it or not.
        private_key: PEM.
        tokens: Client name → token.
        scrape_token: Opens `/metrics/*`.
        control_token: Opens `/control/*`.
    """

    instance_id: str
    certificate: str
    private_key: str = field(repr=False)
    tokens: Mapping[str, str] = field(repr=False)
    scrape_token: str = field(repr=False)
    control_token: str = field(repr=False)

    def secrets(self) -> tuple[str, ...]:
        """Return everything that must never be printed."""
        return (self.private_key, *self.tokens.values(), self.scrape_token, self.control_token)


@dataclass(frozen=True)
class Grant:
    """The right to fetch one blob for a while: a presigned GET. The URL is a secret as long as it lives."""

    sha256: str
    size: int
    url: str = field(repr=False)


@dataclass(frozen=True)
class Gpu:
    """A GPU as the machine's own driver names it."""

    name: str
    memory_mib: int


@dataclass(frozen=True)
class Deadlines:
    """How long each phase of `apply` may take."""

    weights: timedelta
    engine: timedelta


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


_WAY_IN = "the front door is the only way in"
_OFFLINE = "the machine serves from its own disk and asks nobody"
_FOREIGN_CODE = "no foreign code runs on the machine"
_CLUSTER = "one machine serves a model; it opens no port to others"
_REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("--host", "--port", "--uds", "--grpc", "--grpc-port", "--root-path", "--headless"), _WAY_IN),
    **dict.fromkeys(("--data-parallel-supervisor-port", "--kv-events-config", "--kv-transfer-config"), _WAY_IN),
    "--api-key": "the front door checks the clients' tokens: name them under `clients`",
    **dict.fromkeys(("--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs", "--ssl-cert-reqs"), _WAY_IN),
    **dict.fromkeys(("--ssl-ciphers", "--enable-ssl-refresh"), _WAY_IN),
    "--model": "set `model.name`",
    "--served-model-name": "set `model.served_name`",
    "--max-model-len": "set `model.max_model_len`",
    **dict.fromkeys(("--tensor-parallel-size", "-tp"), "set `need.gpu_count`"),
    "--config": "a file of arguments would hide what is asked: list them here",
    "--disable-log-stats": "without its metrics nobody can tell that the engine is in use",
    "--shutdown-timeout": "how long a drain lasts is decided by the lease",
    "--hf-token": "no account's secret lies on a rented machine",
    **dict.fromkeys(("--download-dir", "--tool-server", "--otlp-traces-endpoint"), _OFFLINE),
    **dict.fromkeys(("--allowed-media-domains", "--allowed-local-media-path"), _OFFLINE),
    "--trust-remote-code": _FOREIGN_CODE,
    **dict.fromkeys(("--middleware", "--logits-processors", "--io-processor-plugin"), _FOREIGN_CODE),
    **dict.fromkeys(("--tool-parser-plugin", "--reasoning-parser-plugin"), _FOREIGN_CODE),
    **dict.fromkeys(("--worker-cls", "--worker-extension-cls", "--scheduler-cls"), _FOREIGN_CODE),
    **dict.fromkeys(("--nnodes", "-n", "--node-rank", "-r", "--master-addr", "--master-port"), _CLUSTER),
    **dict.fromkeys(("--data-parallel-address", "-dpa", "--data-parallel-rpc-port", "-dpp"), _CLUSTER),
}
"""Arguments that would undo what the machine is built on. Source: `vllm serve --help=all` of vLLM 0.32."""

_NEAR_MISSES = frozenset({"--reasoning-parser"})
"""Flags in their own right that happen to begin a refused one."""

_LOCAL_LOAD_FORMATS = frozenset(
    [
        "auto",
        "bitsandbytes",
        "dummy",
        "fastsafetensors",
        "gguf",
        "hf",
        "mistral",
        "npcache",
        "pt",
        "safetensors",
        "sharded_state",
    ]
)


def refused_args(args: Sequence[str]) -> list[str]:
    """Return why vLLM arguments are not taken, one line each; empty means that all are.

    Spelled as vLLM reads them: `_` for `-`, `--flag=value`, and argparse's unambiguous beginnings, so that
    `--trust_remote` is seen for what it is.
    """
    problems = []
    for index, arg in enumerate(args):
        if not arg.startswith("-"):
            continue
        flag, has_value, value = arg.partition("=")
        flag = flag.replace("_", "-")
        meant = _meant(flag)
        if meant:
            problems.append(f"{arg.partition('=')[0]} is not taken: {_REFUSED[meant]}")
        elif len(flag) > len("--lo") and "--load-format".startswith(flag):
            chosen = value if has_value else next(iter(args[index + 1 : index + 2]), "")
            if chosen not in _LOCAL_LOAD_FORMATS:
                problems.append(f"--load-format {chosen} is not taken: {_OFFLINE}")
    return problems


def _meant(flag: str) -> str | None:
    if flag in _REFUSED or flag in _NEAR_MISSES:
        return flag if flag in _REFUSED else None
    if not flag.startswith("--"):
        return next((short for short in _REFUSED if re.fullmatch(rf"{short}\d+", flag)), None)  # `-tp2`
    # `--kv-events-config.publisher=x` is vLLM's way into a JSON argument: the flag is what stands before the dot.
    flag = flag.partition(".")[0]
    return next((refused for refused in _REFUSED if len(flag) > len("--") and refused.startswith(flag)), None)


def asks_for_vectors(args: Sequence[str]) -> bool:
    """Tell whether vLLM, started with these arguments, answers `/v1/embeddings` and no completions, or the reverse.

    What it would find out by itself from the model's files counts as text: who wants vectors says `--runner pooling`.
    Source: vLLM 0.32, config/model.py `_get_runner_type`: `--runner` counts before `--convert`.
    """
    runner = _value_of(args, "--runner", shortest="--ru") or "auto"
    return runner == "pooling" or (runner == "auto" and _value_of(args, "--convert", shortest="--conv") == "embed")


def _value_of(args: Sequence[str], flag: str, *, shortest: str) -> str | None:
    """Return what *flag* is set to, the last one counting, in any spelling that argparse takes; None if it is not."""
    found = None
    for arg, following in pairwise([*args, ""]):
        name, has_value, value = arg.partition("=")
        name = name.replace("_", "-")
        if name.startswith(shortest) and flag.startswith(name):
            found = value if has_value else following
    return found


_HOST_FAULTS = re.compile(
    r"CUDA driver version is insufficient|no CUDA-capable device|NVML|CUDA error: (unknown|initialization|ECC|system)"
    r"|Failed to infer device type|No CUDA GPUs are available",
    re.IGNORECASE,
)
"""What vLLM and CUDA say when the machine is at fault, whatever is asked of it."""


def is_host_fault(output: str) -> bool:
    """Tell whether the engine's last words blame the machine's GPU or driver."""
    return bool(_HOST_FAULTS.search(output))


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
