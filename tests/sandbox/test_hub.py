"""Models of the hub, from a hub on loopback."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamic_providers.errors import StoreError
from dynamic_providers.store.hub import Download, HubRef, choose_files, download
from tests.sandbox.hub import COMMIT, Hub
from tests.sandbox.models import weights

TINY = {
    "README.md": b"---\nlicense: mit\n---\n",
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": weights(bytes(300_000)),
    "pytorch_model.bin": b"pickled",
    "modeling_tiny.py": b"print()",
    "onnx/model.onnx": b"other",
    ".gitattributes": b"x",
    "sub/note.txt": b"x",
}
MODELS = {
    "org/tiny": TINY,
    "org/gated": TINY,
    "org/own-code": TINY | {"config.json": b'{"auto_map": {"AutoModel": "modeling_tiny.Tiny"}}'},
    "org/pickled": {path: data for path, data in TINY.items() if path != "model.safetensors"},
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub(MODELS, gated=("org/gated",)) as running:
        turn_to(running.endpoint, monkeypatch)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield running


def turn_to(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what HF_ENDPOINT does when the library is imported."""
    constants = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.ENDPOINT", endpoint)
    monkeypatch.setattr(
        f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )


def fetch(name: str, *allowed: str) -> tuple[Download, list[tuple[int, int]]]:
    seen: list[tuple[int, int]] = []
    return download(HubRef.parse(name), lambda _, done, total: seen.append((done, total)), allowed), seen


def test_a_model_comes_whole_without_what_is_no_part_of_it(hub: Hub) -> None:
    found, seen = fetch("hf:org/tiny")
    assert {path: file.read_bytes() for path, file in found.folder.files.items()} == {
        path: TINY[path] for path in ("README.md", "config.json", "model.safetensors", "sub/note.txt", "tokenizer.json")
    }
    assert found.left_out == ("modeling_tiny.py", "onnx/model.onnx", "pytorch_model.bin")
    assert str(found.ref) == f"hf:org/tiny@{COMMIT}"
    assert (found.folder.allow, found.folder.facts.license) == ((), "mit")
    assert seen[-1] == (sum(map(len, map(TINY.get, found.folder.files))), seen[-1][0])  # type: ignore[arg-type]
    assert all(0 <= done <= total for done, total in seen)


def test_what_is_here_is_not_fetched_again(hub: Hub) -> None:
    first, _ = fetch("hf:org/tiny@main")
    hub.fetched.clear()
    again, seen = fetch(f"hf:org/tiny@{COMMIT}")
    assert again.folder.files == first.folder.files
    assert hub.fetched == []
    assert seen[-1][0] == seen[-1][1]


def test_a_download_that_breaks_off_goes_on(hub: Hub) -> None:
    hub.cut_after = 100_000
    found, seen = fetch("hf:org/tiny")
    assert found.folder.files["model.safetensors"].read_bytes() == TINY["model.safetensors"]
    assert hub.fetched.count("model.safetensors") == 2
    assert seen[-1][0] == seen[-1][1]


def test_code_comes_only_where_it_is_allowed(hub: Hub) -> None:
    with pytest.raises(StoreError, match=r"config\.json \(auto_map\); .*--allow-code"):
        fetch("hf:org/own-code")
    found, _ = fetch("hf:org/own-code", "code")
    assert "modeling_tiny.py" in found.folder.files
    assert found.folder.allow == ("code",)


def test_pickled_weights_come_only_where_there_are_no_others_and_they_are_allowed(hub: Hub) -> None:
    with pytest.raises(StoreError, match=r"pytorch_model\.bin; .*--allow-pickle"):
        fetch("hf:org/pickled")
    assert "pytorch_model.bin" in fetch("hf:org/pickled", "pickle")[0].folder.files


@pytest.mark.parametrize(
    ("name", "said"),
    [
        pytest.param("hf:org/gated", "Ask for access at https://huggingface.co/org/gated", id="gated"),
        pytest.param("hf:org/none", "no such model, or a private one and HF_TOKEN is not set", id="no-such-model"),
        pytest.param("hf:org/tiny@v9", "no revision 'v9'", id="no-such-revision"),
    ],
)
def test_a_refusal_says_what_to_do(name: str, said: str, hub: Hub) -> None:
    with pytest.raises(StoreError) as caught:
        fetch(name)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_the_token_of_the_environment_opens_what_is_gated(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert "config.json" in fetch("hf:org/gated")[0].folder.files


def test_a_hub_that_is_not_there_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    turn_to("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(StoreError, match=r"no answer from the hub .*check the network and HF_ENDPOINT"):
        fetch("hf:org/tiny")


@pytest.mark.parametrize("text", ["hf:", "hf:one-word", "hf:a/b/c", "hf:../x@main", "hf:org/repo@a b", "hf:org/re po"])
def test_what_names_no_model_is_told(text: str) -> None:
    with pytest.raises(StoreError, match="names no model of the hub; write hf:<org>/<repo>@<revision>"):
        HubRef.parse(text)


def test_a_repository_of_gguf_alone_keeps_them() -> None:
    wanted, left_out = choose_files(["config.json", "a.gguf", "a.png"])
    assert (wanted, left_out) == (["a.gguf", "config.json"], ["a.png"])
