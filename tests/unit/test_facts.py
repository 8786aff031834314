"""What a model's own files tell of it."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from dynamic_providers.store.facts import CutShortError, read_facts, read_header, weight_files
from dynamic_providers.store.manifest import Facts
from tests.sandbox.models import weights

BF16 = {"dtype": "BF16", "shape": [4, 8]}
SIZES = {"F32": 4, "I32": 4, "BF16": 2, "F16": 2, "U8": 1, "F8_E4M3": 1}


def header(tensors: dict[str, dict[str, Any]]) -> bytes:
    """Return a safetensors file of zeros with these tensors."""
    at, placed = 0, {}
    for name, tensor in tensors.items():
        size = SIZES[tensor["dtype"]]
        for side in tensor["shape"]:
            size *= side
        placed[name] = tensor | {"data_offsets": [at, at + size]}
        at += size
    head = json.dumps({"__metadata__": {"format": "pt"}, **placed}).encode()
    return struct.pack("<Q", len(head)) + head + bytes(at)


def a_model(folder: Path, config: dict[str, Any], tensors: dict[str, dict[str, Any]], **files: str) -> dict[str, Path]:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(header(tensors))
    for name, text in files.items():
        (folder / name.replace("_json", ".json").replace("_md", ".md")).write_text(text)
    return {path.name: path for path in folder.iterdir()}


def test_a_plain_model(tmp_path: Path) -> None:
    card = "---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n"
    files = a_model(
        tmp_path, {"torch_dtype": "bfloat16", "max_position_embeddings": 8192}, {"a": BF16, "b": BF16}, README_md=card
    )
    assert read_facts(files) == Facts("safetensors", "apache-2.0", 64, "bfloat16", None, 8192, 128)


def test_a_model_that_says_nothing_of_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert read_facts({path.name: path for path in tmp_path.iterdir()}) == Facts(format="pickle")


@pytest.mark.parametrize(
    ("quantization", "tensors", "expected"),
    [
        pytest.param(
            {"quant_method": "awq", "bits": 4},
            {
                "l.qweight": {"dtype": "I32", "shape": [8, 4]},
                "l.qzeros": {"dtype": "I32", "shape": [2, 4]},
                "l.scales": {"dtype": "F16", "shape": [2, 4]},
                "norm.weight": {"dtype": "F16", "shape": [8]},
            },
            Facts("safetensors", None, 256 + 8, "float16", "awq-4bit", None, 128 + 32 + 16 + 16),
            id="awq",
        ),
        pytest.param(
            {"quant_method": "fp8"},
            {"l.weight": {"dtype": "F8_E4M3", "shape": [8, 4]}, "l.weight_scale_inv": {"dtype": "F32", "shape": [1]}},
            Facts("safetensors", None, 32, "float16", "fp8", None, 36),
            id="fp8-says-its-bits-by-name",
        ),
        pytest.param(
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            {"l.weight": {"dtype": "U8", "shape": [16, 1]}, "l.weight.absmax": {"dtype": "F32", "shape": [1]}},
            Facts("safetensors", None, 32, "float16", "bitsandbytes-4bit", None, 20),
            id="bitsandbytes",
        ),
        pytest.param(
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4}}}},
            {"l.weight_packed": {"dtype": "I32", "shape": [8]}, "l.weight_shape": {"dtype": "I32", "shape": [2]}},
            Facts("safetensors", None, 64, "float16", "compressed-tensors-4bit", None, 40),
            id="compressed-tensors",
        ),
        pytest.param(
            {"quant_method": "own"},
            {"l.weight": {"dtype": "U8", "shape": [16]}},
            Facts("safetensors", None, None, "float16", "own", None, 16),
            id="packed-in-a-way-that-nobody-tells",
        ),
    ],
)
def test_quantised_weights(
    quantization: dict[str, Any], tensors: dict[str, Any], expected: Facts, tmp_path: Path
) -> None:
    files = a_model(tmp_path, {"dtype": "float16", "quantization_config": quantization}, tensors)
    assert read_facts(files) == expected


def test_weights_of_32_bits_are_served_in_16(tmp_path: Path) -> None:
    facts = read_facts(a_model(tmp_path, {}, {"a": {"dtype": "F32", "shape": [10]}}))
    assert (facts.dtype, facts.parameters, facts.gpu_bytes) == ("float32", 10, 20)


@pytest.mark.parametrize(
    ("config", "tokenizer", "expected"),
    [
        pytest.param({"text_config": {"max_position_embeddings": 128}}, {}, 128, id="of-a-model-that-sees"),
        pytest.param({"n_positions": 1024}, {}, 1024, id="gpt-2s-word"),
        pytest.param({}, {"model_max_length": 512}, 512, id="the-tokenizers"),
        pytest.param({}, {"model_max_length": 10**30}, None, id="no-limit-is-no-length"),
        pytest.param({"max_position_embeddings": "8k"}, {}, None, id="no-number"),
        pytest.param(
            {
                "max_position_embeddings": 40960,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            {},
            131072,
            id="stretched-by-yarn",
        ),
        pytest.param(
            {"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            {},
            131072,
            id="llama-3-counts-it-in",
        ),
        pytest.param(
            {"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2}}, {}, 8192, id="linear"
        ),
    ],
)
def test_context_length(
    config: dict[str, Any], tokenizer: dict[str, Any], expected: int | None, tmp_path: Path
) -> None:
    files = a_model(tmp_path, config, {"a": BF16}, tokenizer_config_json=json.dumps(tokenizer))
    assert read_facts(files).context_length == expected


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        pytest.param("---\nlicense: other\nlicense_name: llama3.1\n---\n", "llama3.1", id="by-its-own-name"),
        pytest.param("---\nlicense: other\n---\n", "other", id="other"),
        pytest.param("# no front matter\n---\nlicense: mit\n---\n", None, id="not-at-the-top"),
        pytest.param("---\nlicense: [mit\n---\n", None, id="no-yaml"),
        pytest.param("---\nlicense: !!python/object/apply:os.system [x]\n---\n", None, id="a-trap"),
        pytest.param('---\nlicense: "a\\nb"\n---\n', None, id="a-forged-line"),
        pytest.param("---\n- license\n---\n", None, id="a-list"),
    ],
)
def test_license(card: str, expected: str | None, tmp_path: Path) -> None:
    assert read_facts(a_model(tmp_path, {}, {"a": BF16}, README_md=card)).license == expected


def test_of_twins_of_the_weights_only_those_that_are_loaded_count(tmp_path: Path) -> None:
    files = a_model(tmp_path, {}, {"a": BF16})
    (tmp_path / "consolidated.safetensors").write_bytes(header({"a": BF16}))
    files["consolidated.safetensors"] = tmp_path / "consolidated.safetensors"
    assert weight_files(files) == ["model.safetensors"]
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "consolidated.safetensors"}}')
    files["model.safetensors.index.json"] = tmp_path / "model.safetensors.index.json"
    assert weight_files(files) == ["consolidated.safetensors"]
    assert read_facts(files).parameters == 32


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param(b"", "no safetensors file", id="empty"),
        pytest.param(b"PK\x03\x04" + bytes(100), "no safetensors file", id="another-format"),
        pytest.param(struct.pack("<Q", 2**63) + b"{}", "no safetensors file", id="header-without-end"),
        pytest.param(struct.pack("<Q", 2) + b"{]", "no safetensors file", id="no-json"),
        pytest.param(struct.pack("<Q", 8) + b'{"a": 1}', "no safetensors file", id="no-tensor"),
        pytest.param(weights(b"12345678")[:-1], "not downloaded to the end", id="cut-short"),
        pytest.param(weights(b"12345678") + b"x", "not downloaded to the end", id="too-long"),
    ],
)
def test_what_is_not_the_whole_file_is_told(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CutShortError, match=said):
        read_header(path)
