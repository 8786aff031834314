"""The command line of `vllm serve`, with every flag that the real one has (`flags.json`) and its way of saying no."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLAGS = Path(__file__).with_name("flags.json")

# What a stub cannot honour it must not swallow: a test that relies on one of these would prove nothing.
UNPLAYED = ("api_key", "ssl_certfile", "ssl_keyfile", "grpc", "headless", "config", "host", "middleware")


@dataclass(frozen=True)
class Arguments:
    """What the stub acts upon; every other flag is checked and then has no effect here."""

    model: Path
    uds: str
    served_names: tuple[str, ...]
    max_model_len: int | None
    tensor_parallel: int
    quantization: str | None
    max_num_seqs: int
    gpu_memory_utilization: float
    prefix_caching: bool
    pooling: bool
    log_stats: bool
    shutdown_timeout: float


def parse(words: Sequence[str]) -> Arguments:
    """Return the arguments; ends the process with status 2 and the reason on stderr where one is wrong."""
    parser = _parser()
    # vLLM takes --max_model_len for --max-model-len; so must we.
    options = parser.parse_args([_dashed(word) for word in words])
    for name in UNPLAYED:
        if getattr(options, name) not in (None, False, []):
            parser.error(f"the stub does not play --{name.replace('_', '-')}")
    if options.uds is None:
        parser.error("the stub serves on a unix socket only: --uds PATH")
    return Arguments(
        model=Path(options.model_tag),
        uds=options.uds,
        served_names=tuple(options.served_model_name or [options.model_tag]),
        max_model_len=options.max_model_len if options.max_model_len != -1 else None,
        tensor_parallel=options.tensor_parallel_size or 1,
        quantization=options.quantization,
        max_num_seqs=options.max_num_seqs or 256,
        gpu_memory_utilization=options.gpu_memory_utilization or 0.92,
        prefix_caching=options.enable_prefix_caching is not False,
        pooling=_is_pooling(options.runner, options.convert),
        log_stats=not options.disable_log_stats,
        shutdown_timeout=float(options.shutdown_timeout or 0),
    )


def _is_pooling(runner: str | None, convert: str | None) -> bool:
    """Decide as vLLM does where nothing in the model's files speaks for pooling, as in ours nothing does."""
    return runner == "pooling" or (runner in (None, "auto") and convert in ("embed", "classify"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vllm", usage="vllm serve [model_tag] [options]", allow_abbrev=True)
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model_tag")
    for flag in json.loads(FLAGS.read_text()):
        _add(parser, flag)
    return parser


def _add(parser: argparse.ArgumentParser, flag: dict[str, Any]) -> None:
    match flag["kind"]:
        case "yes or no":
            parser.add_argument(*flag["names"], action=argparse.BooleanOptionalAction, default=None)
        case "switch":
            parser.add_argument(*flag["names"], action="store_true")
        case kind:
            parser.add_argument(
                *flag["names"], type=_TYPES[kind], nargs=flag.get("values"), choices=flag.get("choices")
            )


def _dashed(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _size(text: str) -> int:
    """Return a whole number, which may be written 8k (8,000) or 8K (8,192)."""
    units = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    if text and text[-1] in units:
        return int(float(text[:-1]) * units[text[-1]])
    return int(text)


def _size_or_auto(text: str) -> int:
    return -1 if text.lower() == "auto" else _size(text)


def _json(text: str) -> Any:
    return json.loads(text)


# argparse names the function in its message ("invalid int value: 'abc'"), so each is called as in the real parser.
_size.__name__ = "human_readable_int"
_size_or_auto.__name__ = "human_readable_int_or_auto"
_json.__name__ = "loads"

_TYPES: dict[str, Callable[[str], Any]] = {
    "text": str,
    "int": int,
    "float": float,
    "size": _size,
    "size or auto": _size_or_auto,
    "json": _json,
}
