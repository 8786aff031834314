"""Makes a tiny but valid Llama on the spot: real vLLM loads it, and nothing but the standard library writes it.

Two layers and some 100,000 random parameters. What it says is nonsense, yet readable and the same every time: of all
tokens only whole words have a row in the output matrix, so greedy decoding walks from word to word.
"""

import json
import math
import random
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.sandbox.words import WORDS

POSITIONS = 131_072  # as Llama 3.1: enough for any stack's `max_model_len`

NOISE_BYTES = 2**24
HIDDEN, INTERMEDIATE, LAYERS, HEADS = 64, 128, 2, 2
SPECIAL = ("<s>", "</s>", "<pad>")
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)

Tensor = tuple[str, tuple[int, ...], bytes]  # name, shape, bfloat16 values


def write_tiny_llama(folder: Path, *, positions: int = POSITIONS, seed: int = 0) -> Path:
    """Write the model's files into *folder*, making it where needed, and return it.

    Args:
        folder: Where `config.json`, the tokenizer and `model.safetensors` go.
        positions: `max_position_embeddings`; a stack's `max_model_len` must not exceed it.
        seed: Another seed makes another model, with other bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _vocabulary()
    files = {
        "config.json": _config(len(vocabulary), positions),
        "generation_config.json": {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
        "tokenizer.json": _tokenizer(vocabulary),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "model_max_length": positions,
            "chat_template": CHAT_TEMPLATE,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(_safetensors(_tensors(len(vocabulary), seed)))
    return folder


def write_big_llama(folder: Path, *, size_bytes: int, shards: int, seed: int = 0) -> Path:
    """Write a model of so many bytes in shards, with noise for weights: to be moved, and never to be served."""
    folder.mkdir(parents=True, exist_ok=True)
    dice, each = random.Random(seed), size_bytes // shards // 2 * 2
    index = {f"w{number}": f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)}
    (folder / "config.json").write_text(json.dumps(_config(len(_vocabulary()), POSITIONS)))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(_vocabulary())))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    for name, path in index.items():
        with (folder / path).open("wb") as file:
            file.write(_head({name: {"dtype": "BF16", "shape": [each // 2], "data_offsets": [0, each]}}))
            for start in range(0, each, NOISE_BYTES):
                file.write(dice.randbytes(min(NOISE_BYTES, each - start)))
    return folder


def weights(data: bytes, *, name: str = "w", dtype: str = "U8") -> bytes:
    """Return a safetensors file with one tensor of these bytes."""
    return _head({name: {"dtype": dtype, "shape": [len(data)], "data_offsets": [0, len(data)]}}) + data


def _config(vocab_size: int, positions: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HIDDEN // HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }


def _byte_symbols() -> list[str]:
    """Return the printable stand-in of each byte, as byte-level BPE writes them (GPT-2's table, by its rule)."""
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in kept else next(spare)) for byte in range(256)]


def _vocabulary() -> list[str]:
    """Return every token, its place being its id: specials, single bytes, then words with their leading space."""
    space = _byte_symbols()[ord(" ")]
    return [*SPECIAL, *_byte_symbols(), *(space + word for word in WORDS)]


def _tokenizer(vocabulary: list[str]) -> dict[str, object]:
    """Return a byte-level BPE without merges: it reads any text byte by byte, and can say whole words."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": token, **flags} for i, token in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(vocabulary)},
            "merges": [],
        },
    }


def _tensors(vocab_size: int, seed: int) -> Iterator[Tensor]:
    dice = random.Random(seed)

    def matrix(name: str, rows: int, columns: int, *, gain: float = 1.0, silent_rows: int = 0) -> Tensor:
        scale = gain / math.sqrt(columns)
        silent = bytes(2 * silent_rows * columns)
        loud = _bfloat16(dice.gauss(0, scale) for _ in range((rows - silent_rows) * columns))
        return name, (rows, columns), silent + loud

    def ones(name: str) -> Tensor:
        return name, (HIDDEN,), _bfloat16([1.0] * HIDDEN)

    yield matrix("model.embed_tokens.weight", vocab_size, HIDDEN)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        yield ones(f"{prefix}.input_layernorm.weight")
        for projection in "qkvo":
            yield matrix(f"{prefix}.self_attn.{projection}_proj.weight", HIDDEN, HIDDEN)
        yield ones(f"{prefix}.post_attention_layernorm.weight")
        yield matrix(f"{prefix}.mlp.gate_proj.weight", INTERMEDIATE, HIDDEN)
        yield matrix(f"{prefix}.mlp.up_proj.weight", INTERMEDIATE, HIDDEN)
        yield matrix(f"{prefix}.mlp.down_proj.weight", HIDDEN, INTERMEDIATE)
    yield ones("model.norm.weight")
    # A token without a row scores 0; with this gain the best words score some 20, so that sampling finds words too.
    yield matrix("lm_head.weight", vocab_size, HIDDEN, gain=8.0, silent_rows=vocab_size - len(WORDS))


def _bfloat16(values: Iterable[float]) -> bytes:
    """Return the upper halves of the values' float32 bits, which is what bfloat16 is; little-endian."""
    floats = array("f", values)
    if sys.byteorder == "big":
        floats.byteswap()
    return array("H", floats.tobytes())[1::2].tobytes()


def _safetensors(tensors: Iterable[Tensor]) -> bytes:
    """Return a safetensors file: length of the header, JSON header, then all tensors one after another."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    body = bytearray()
    for name, shape, data in tensors:
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    return _head(header) + bytes(body)


def _head(header: dict[str, Any]) -> bytes:
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head
