"""The arguments of `vllm serve` that a stack file may add: which are not taken, and what some of them mean. Pure."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

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
