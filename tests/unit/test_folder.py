"""What may be pushed, and what is refused with which words."""

import json
from pathlib import Path

import pytest

from dynamic_providers.errors import StoreError
from dynamic_providers.store.folder import read_folder
from tests.sandbox.models import weights

INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(weights(b"12"))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        pytest.param(
            "pytorch_model.bin", "x", "runs code when it is loaded: pytorch_model.bin; .*--allow-pickle", id="bin"
        ),
        pytest.param("sub/model.pt", "x", "sub/model.pt; .*--allow-pickle", id="pt"),
        pytest.param("model.pth", "x", "model.pth; .*--allow-pickle", id="pth"),
        pytest.param("modeling_x.py", "x", "code of its own: modeling_x.py; .*--allow-code", id="py"),
        pytest.param(
            "config.json", '{"auto_map": {"A": "m.A"}}', r"config.json \(auto_map\); .*--allow-code", id="auto-map"
        ),
        pytest.param(
            "tokenizer_config.json",
            '{"auto_map": {"A": "m.A"}}',
            r"tokenizer_config.json \(auto_map\)",
            id="tokenizer-map",
        ),
        pytest.param("config.json", None, "no config.json", id="no-config"),
        pytest.param("tokenizer.json", None, r"no tokenizer \(tokenizer.json, ", id="no-tokenizer"),
        pytest.param("model.safetensors", None, "no weights", id="no-weights"),
        pytest.param(
            "model.safetensors.index.json", INDEX, "not there: model-1.safetensors, model-2", id="lost-shards"
        ),
        pytest.param(
            "model.safetensors",
            "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
            "model.safetensors: .*git lfs pull",
            id="only-a-pointer",
        ),
        pytest.param("model.safetensors", "x" * 100, "model.safetensors: no safetensors file", id="no-safetensors"),
    ],
)
def test_what_must_not_be_pushed_is_told_with_what_to_do(
    name: str, content: str | None, said: str, folder: Path
) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(StoreError, match=f"cannot be pushed:\n  - .*{said}"):
        read_folder(folder)


def test_what_is_allowed_is_taken_and_said(folder: Path) -> None:
    (folder / "modeling_x.py").write_text("x")
    with pytest.raises(StoreError, match="--allow-code"):
        read_folder(folder, ["pickle"])
    assert read_folder(folder, ["pickle", "code"]).allow == ("code",)  # what is not there need not be allowed
    (folder / "training_args.bin").write_text("x")
    assert read_folder(folder, ["pickle", "code"]).allow == ("code", "pickle")


def test_all_problems_are_told_at_once(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "a.bin").write_text("x")
    (folder / "b.py").write_text("x")
    with pytest.raises(StoreError) as caught:
        read_folder(folder)
    assert len(str(caught.value).splitlines()) == 4


def test_other_files_beside_the_model_are_passed_over(folder: Path) -> None:
    (folder / "other.bin").write_text("x")
    only = ["config.json", "tokenizer.json", "model.safetensors"]
    assert sorted(read_folder(folder, only=only).files) == sorted(only)


def test_links_may_lead_where_it_is_said(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    blobs = tmp_path_factory.mktemp("blobs")
    (folder / "model.safetensors").rename(blobs / "00")
    (folder / "model.safetensors").symlink_to(blobs / "00")
    with pytest.raises(StoreError, match="a link out of the folder"):
        read_folder(folder)
    assert "model.safetensors" in read_folder(folder, links_within=folder.parents[1]).files
