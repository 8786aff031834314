"""The models of a platform's stack file."""

from pathlib import Path
from typing import Any

import pytest

from dynamic_providers.store.address import StoreAddress
from dynamic_providers.store.model import ModelTerms
from infra.model_settings import ModelSource, parse_models

TINY = {"name": "tiny", "source": "models/tiny"}


def test_models_are_read() -> None:
    problems: list[str] = []
    hub = {"name": "qwen", "source": "hf:Qwen/Qwen3-8B@main", "tags": ["prod"], "allow": ["code"]}
    found = parse_models([TINY, hub], problems)
    assert problems == []
    assert found == (
        ModelSource("tiny", "models/tiny"),
        ModelSource("qwen", "hf:Qwen/Qwen3-8B@main", ("prod",), ("code",)),
    )
    assert parse_models(None, problems) == ()
    assert parse_models('[{"name": "tiny", "source": "models/tiny"}]', problems) == found[:1]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        pytest.param("tiny", "models: is no list", id="no-list"),
        pytest.param(["tiny"], 'models[0]: "tiny" is no object', id="no-object"),
        pytest.param([{"source": "x"}], "models[0].name: missing", id="no-name"),
        pytest.param([{"name": "tiny"}], "models[0].source: missing", id="no-source"),
        pytest.param([TINY | {"name": "Tiny"}], "is no model's name", id="bad-name"),
        pytest.param([TINY | {"source": "hf:Qwen"}], "names no model of the hub; write hf:<org>", id="bad-hub"),
        pytest.param([TINY | {"tags": ["latest"]}], "moves with every push by itself", id="latest"),
        pytest.param([TINY | {"tags": ["A B"]}], "is no tag", id="bad-tag"),
        pytest.param([TINY | {"allow": ["pickles"]}], "cannot be allowed; did you mean", id="bad-allowance"),
        pytest.param([TINY | {"tag": "prod"}], "is under an unknown key; did you mean", id="unknown-key"),
        pytest.param([TINY, TINY], "'tiny' is there twice", id="twice"),
    ],
)
def test_a_mistake_is_told_with_what_is_right(values: Any, said: str) -> None:
    problems: list[str] = []
    parse_models(values, problems)
    assert len(problems) == 1
    assert said in problems[0]


def test_a_folder_is_found_from_the_project_on_and_known_by_its_files(tmp_path: Path) -> None:
    source = ModelSource("tiny", "models/tiny", ("prod",))
    address = StoreAddress("bucket", "fsn1")
    assert "fingerprint" not in source.to_props(address, tmp_path)  # it is not on this machine
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    props = source.to_props(address, tmp_path)
    assert props["folder"] == str(folder)
    assert ModelTerms.from_props(props) == ModelTerms(
        "tiny", "models/tiny", str(folder), ("prod",), (), props["fingerprint"]
    )
    assert source.to_props(address, tmp_path) == props
    (folder / "config.json").write_text("{ }")
    assert source.to_props(address, tmp_path)["fingerprint"] != props["fingerprint"]


def test_a_model_of_the_hub_needs_no_folder(tmp_path: Path) -> None:
    one, other = (
        ModelSource("qwen", f"hf:Qwen/Qwen3-8B@{revision}").to_props(StoreAddress("bucket", "fsn1"), tmp_path)
        for revision in ("main", "v2")
    )
    assert "folder" not in one
    assert one["fingerprint"] != other["fingerprint"]
