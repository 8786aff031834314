"""What the real vLLM finds wrong with a model folder before it loads a weight."""

import json
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.sandbox.vllm_stub.arguments import Arguments

# The methods that vLLM 0.32 knows and people use; any other word is an error there too.
QUANTIZATIONS = {
    "awq", "awq_marlin", "bitsandbytes", "compressed-tensors", "fp8", "gguf", "gptq", "gptq_marlin", "modelopt",
    "modelopt_fp4", "mxfp4", "torchao",
}  # fmt: skip


class ModelError(Exception):
    """This model cannot be served like this."""


@dataclass(frozen=True)
class Model:
    """A model folder that holds what it takes."""

    folder: Path
    architecture: str
    max_model_len: int
    weights_bytes: int


def check_model(arguments: Arguments) -> Model:
    """Return the model that the arguments name.

    Raises:
        ModelError: A file is missing or broken, or the model cannot do what is asked.
    """
    folder = arguments.model
    if not folder.is_dir():
        raise ModelError(f"Invalid repository ID or local directory specified: '{folder}'.")
    config = _read_json(folder / "config.json")
    if not config.get("architectures"):
        raise ModelError(f"No model architectures are specified in {folder / 'config.json'}")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise ModelError(f"Couldn't instantiate the backend tokenizer: no tokenizer in {folder}")
    if (folder / "tokenizer.json").is_file():
        _read_json(folder / "tokenizer.json")
    if arguments.quantization and arguments.quantization not in QUANTIZATIONS:
        raise ModelError(
            f"Unknown quantization method: {arguments.quantization}. Must be one of {sorted(QUANTIZATIONS)}."
        )
    _check_parallel(arguments.tensor_parallel, config)
    return Model(folder, config["architectures"][0], _max_len(arguments, config), _weights_bytes(folder))


def _max_len(arguments: Arguments, config: dict[str, Any]) -> int:
    derived = int(config.get("max_position_embeddings", 2048))
    asked = arguments.max_model_len
    if asked is not None and asked > derived:
        raise ModelError(
            f"User-specified max_model_len ({asked}) is greater than the derived max_model_len "
            f"(max_position_embeddings={derived} or model_max_length=None in model's config.json)."
        )
    return asked or derived


def _check_parallel(size: int, config: dict[str, Any]) -> None:
    heads = int(config.get("num_attention_heads", size))
    if heads % size:
        raise ModelError(
            f"Total number of attention heads ({heads}) must be divisible by tensor parallel size ({size})."
        )
    if size > 1 and (gpus := _count_gpus()) < size:
        raise ModelError(f"World size ({size}) is larger than the number of available GPUs ({gpus}) in this node.")


def _count_gpus() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return len(subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines())


def _weights_bytes(folder: Path) -> int:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"Cannot find any model weights with `{folder}`")
    for path in files:
        _check_safetensors(path)
    return sum(path.stat().st_size for path in files)


def _check_safetensors(path: Path) -> None:
    """Read a file's header and see that its tensors fill the file exactly."""
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        size = path.stat().st_size
        if not 0 < length <= size - 8:
            raise ModelError(f"Error while deserializing header of {path.name}: header too large")
        try:
            header = json.loads(file.read(length))
            ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"Error while deserializing header of {path.name}: invalid JSON") from error
    if max(ends, default=0) != size - 8 - length:
        raise ModelError(
            f"Error while deserializing header of {path.name}: incomplete metadata, file not fully covered"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"It looks like {path} is not a valid JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"It looks like {path} is not a valid JSON file: not an object")
    return content
