"""What a model is, read from its own files: configuration, headers of its weights, card. All of it may be missing."""

import json
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from dynamic_providers.store.manifest import Facts

HEADER_LIMIT_BYTES = 100_000_000
"""Of a safetensors file. Source: huggingface/safetensors, safetensors/src/tensor.rs, MAX_HEADER_SIZE."""
JSON_LIMIT_BYTES = 50_000_000  # a shard's index of the biggest models has some MB
CARD_LIMIT_BYTES = 1_000_000
INDEX = "model.safetensors.index.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENS_AT_MOST = 10**9  # transformers writes 10^30 into `model_max_length` where there is no limit
DTYPE_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16}
DTYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "n_ctx")
IN_THE_LENGTH = (None, "default", "mrope", "su", "longrope", "llama3")
"""Kinds of position scaling that a model's length has in it already."""
STRETCH_AT_MOST = 1024
# What a quantised model keeps beside its weights; they are no parameters.
BOOKKEEPING = re.compile(
    r"(scales?|scale_inv|scale_2|zeros?|zero_point|g_idx|_shape|absmax|quant_map|bitsandbytes__\w+)$"
)
SERVED_BITS = 16
"""vLLM serves weights of 32 bits in 16, whatever is not quantised. Source: vLLM 0.32, `--dtype auto`."""


class CutShortError(ValueError):
    """A file of weights ends too early, or is none."""


@dataclass(frozen=True)
class Tensor:
    """One tensor, by the header of the file that holds it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


def read_facts(files: Mapping[str, Path]) -> Facts:
    """Return what is known of the model in *files* (path in the model → file)."""
    config = read_json(files.get("config.json"))
    text = {**config, **_object(config.get("text_config")), **_object(config.get("llm_config"))}
    quantization, bits = _quantization(config, text)
    tensors = [tensor for path in weight_files(files) for tensor in read_header(files[path])]
    counted = Counter(tensor.dtype for tensor in tensors)
    stored = DTYPE_NAMES.get(counted.most_common(1)[0][0]) if counted else None
    dtype = text.get("dtype") or text.get("torch_dtype") or config.get("dtype") or config.get("torch_dtype")
    return Facts(
        format=_format(files),
        license=_license(files.get("README.md")),
        parameters=_parameters(tensors, quantization, bits),
        dtype=_plain_text(dtype) or stored,
        quantization=quantization,
        context_length=_context_length(text, read_json(files.get(TOKENIZER_CONFIG))),
        gpu_bytes=sum(_gpu_bytes(tensor, quantization) for tensor in tensors) or None,
    )


def read_json(path: Path | None) -> dict[str, Any]:
    """Return the object in a file; empty if there is no file, or no object in it."""
    if path is None or path.stat().st_size > JSON_LIMIT_BYTES:
        return {}
    try:
        return _object(json.loads(path.read_bytes()))
    except (ValueError, RecursionError):
        return {}


def weight_files(files: Mapping[str, Path]) -> list[str]:
    """Return the safetensors files that are loaded: those of the index, else those beside the configuration."""
    if INDEX in files:
        return [path for path in shards(files) if path in files]
    # Mistral's own form of the same weights, which stands beside the one that is loaded.
    twins = [path for path in files if path.endswith(".safetensors") and "/" not in path]
    return [path for path in twins if not path.startswith("consolidated")] or twins


def shards(files: Mapping[str, Path]) -> list[str]:
    """Return the files that the model's index names, there or not."""
    return sorted({str(name) for name in _object(read_json(files.get(INDEX)).get("weight_map")).values()})


def read_header(path: Path) -> list[Tensor]:
    """Return the tensors that a safetensors file holds.

    Raises:
        CutShortError: It does not hold them, or is no such file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(HEADER_LIMIT_BYTES, size - 8):
            raise CutShortError("no safetensors file")
        try:
            header = _object(json.loads(file.read(length)))
            tensors = [_tensor(name, value) for name, value in header.items() if name != "__metadata__"]
            end = max(
                (int(value["data_offsets"][1]) for name, value in header.items() if name != "__metadata__"), default=0
            )
        except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            raise CutShortError("no safetensors file") from error
    if 8 + length + end != size:
        raise CutShortError(f"{size} bytes, but its header names {8 + length + end}: not downloaded to the end")
    return tensors


def _tensor(name: str, value: Mapping[str, Any]) -> Tensor:
    start, end = value["data_offsets"]
    return Tensor(name, str(value["dtype"]), tuple(int(side) for side in value["shape"]), int(end) - int(start))


def _format(files: Iterable[str]) -> str | None:
    endings = {path.rpartition(".")[2] for path in files}
    if "safetensors" in endings:
        return "safetensors"
    if "gguf" in endings:
        return "gguf"
    return "pickle" if endings & {"bin", "pt", "pth"} else None


def _quantization(config: Mapping[str, Any], text: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """Return how the weights are packed, and in how many bits."""
    found = _object(config.get("quantization_config")) or _object(text.get("quantization_config"))
    method = _plain_text(found.get("quant_method") or found.get("quant_algo"))
    if method is None:
        return None, None
    bits = found.get("bits") or (4 if found.get("load_in_4bit") else 8 if found.get("load_in_8bit") else None)
    for group in _object(found.get("config_groups")).values():
        bits = bits or _object(_object(group).get("weights")).get("num_bits")
    named = re.search(r"(?:fp|int|nvfp|mxfp)(\d+)", f"{method} {found.get('quant_algo')}".lower())
    if bits is None and named:
        bits = int(named[1])
    if type(bits) is not int or not 1 <= bits <= 32:
        return method, None
    return (method if named and method == named[0] else f"{method}-{bits}bit"), bits


def _parameters(tensors: Iterable[Tensor], quantization: str | None, bits: int | None) -> int | None:
    """Return how many numbers the model has learned; None where they are packed and nobody says how."""
    total = 0
    for tensor in tensors:
        numbers = prod(tensor.shape)
        if quantization and tensor.dtype[0] in "IU":
            if BOOKKEEPING.search(tensor.name):
                continue
            if bits is None:
                return None
            numbers = tensor.bytes * 8 // bits
        elif quantization and BOOKKEEPING.search(tensor.name):
            continue
        total += numbers
    return total or None


def _gpu_bytes(tensor: Tensor, quantization: str | None) -> int:
    if quantization is None and tensor.dtype in ("F64", "F32"):
        return tensor.bytes * SERVED_BITS // DTYPE_BITS[tensor.dtype]
    return tensor.bytes


def _context_length(text: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> int | None:
    for value in (*(text.get(key) for key in LENGTHS), tokenizer.get("model_max_length")):
        if type(value) is int and 0 < value < TOKENS_AT_MOST:
            return _stretched(value, _object(text.get("rope_parameters") or text.get("rope_scaling")))
    return None


def _stretched(length: int, rope: Mapping[str, Any]) -> int:
    """Return how far position scaling stretches a context. Source: vLLM 0.32, `_get_and_verify_max_len`."""
    kind, factor = rope.get("rope_type") or rope.get("type"), rope.get("factor")
    if kind in IN_THE_LENGTH or not isinstance(factor, int | float) or not 1 <= factor <= STRETCH_AT_MOST:
        return length
    original = rope.get("original_max_position_embeddings")
    return int((original if kind == "yarn" and type(original) is int else length) * factor)


def _license(card: Path | None) -> str | None:
    """Return what the front matter of a model's card names."""
    if card is None or card.stat().st_size > CARD_LIMIT_BYTES:
        return None
    import yaml

    parts = re.split(r"^---\s*$", card.read_text(encoding="utf-8", errors="replace"), maxsplit=2, flags=re.MULTILINE)
    if len(parts) != 3 or parts[0].strip("\ufeff \n"):
        return None
    try:
        front = _object(yaml.safe_load(parts[1]))
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    found = _plain_text(front.get("license"))
    return (_plain_text(front.get("license_name")) or found) if found == "other" else found


def _plain_text(value: object) -> str | None:
    """Return a text that may stand in a manifest; None if it is none."""
    return (
        value.strip()
        if isinstance(value, str) and value.strip().isprintable() and 0 < len(value.strip()) <= 100
        else None
    )


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
