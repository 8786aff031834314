"""Releases and the names of models."""

import hashlib
import json
from typing import Any

import pytest

from dynamic_providers.errors import StoreError
from dynamic_providers.store.manifest import Facts, Manifest, ModelFile, ModelRef, digest_of_key

HEX = "ab" * 32
CONFIG = ModelFile("config.json", 2, HEX)
WEIGHTS = ModelFile("sub/weights.safetensors", 40, "cd" * 32)


# What version 0.1.0 wrote, byte for byte.
FIRST_FORMAT = f'{{"files":[{{"path":"config.json","sha256":"{HEX}","size":2}}],"format":1,"name":"tiny"}}'.encode()
NOTED = Manifest(
    "tiny",
    (WEIGHTS, CONFIG),
    ("pickle", "code"),
    "hf:org/tiny@main",
    Facts("safetensors", "apache-2.0", 40, "bfloat16", "awq-4bit", 4096, 20),
)


def a_manifest(**change: Any) -> bytes:
    """Return the bytes of a manifest whose JSON differs from a good one by *change*."""
    good: dict[str, Any] = json.loads(FIRST_FORMAT)
    return json.dumps(good | change, separators=(",", ":"), sort_keys=True).encode()


def a_noted(**change: Any) -> bytes:
    """Return the bytes of a manifest of the present format that differs from a good one by *change*."""
    return json.dumps(json.loads(NOTED.to_bytes()) | change).encode()


def a_file(**change: Any) -> list[dict[str, Any]]:
    return [{"path": "config.json", "sha256": HEX, "size": 2} | change]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("llama-3.1-8b", ModelRef("llama-3.1-8b"), id="a-name"),
        pytest.param("llama:prod", ModelRef("llama", tag="prod"), id="a-tag"),
        pytest.param(f"tiny@sha256:{HEX}", ModelRef("tiny", HEX), id="exactly-one-release"),
    ],
)
def test_a_reference_reads_and_writes_the_same(text: str, expected: ModelRef) -> None:
    assert ModelRef.parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("", "no model's name", id="nothing"),
        pytest.param("Llama", "no model's name", id="capitals"),
        pytest.param("meta/llama", "no model's name", id="a-path"),
        pytest.param("../up", "no model's name", id="out-of-the-models"),
        pytest.param("-llama", "no model's name", id="looks-like-an-option"),
        pytest.param("llama:Stable", "after `:` comes a tag", id="tag-in-capitals"),
        pytest.param("llama:", "after `:` comes a tag", id="no-tag"),
        pytest.param("llama:a/b", "after `:` comes a tag", id="tag-is-a-path"),
        pytest.param(f"llama:prod@sha256:{HEX}", "a tag and a digest", id="both"),
        pytest.param("llama@", "64 hexadecimal digits", id="no-digest"),
        pytest.param(f"llama@{HEX}", "64 hexadecimal digits", id="no-algorithm"),
        pytest.param(f"llama@sha512:{HEX}", "64 hexadecimal digits", id="other-algorithm"),
        pytest.param(f"llama@sha256:{HEX[1:]}", "64 hexadecimal digits", id="short-digest"),
        pytest.param(f"llama@sha256:{HEX.upper()}", "small letters", id="capital-digest"),
    ],
)
def test_what_names_no_model_says_why(text: str, said: str) -> None:
    with pytest.raises(StoreError) as caught:
        ModelRef.parse(text)
    assert said in str(caught.value)


def test_the_digest_is_of_the_bytes_and_names_the_object() -> None:
    manifest = Manifest("tiny", (CONFIG, WEIGHTS))
    assert manifest.key == f"models/tiny/{manifest.digest}.json"
    assert digest_of_key(manifest.key) == manifest.digest
    assert str(manifest.ref) == f"tiny@sha256:{manifest.digest}"
    assert manifest.bytes_total == 42


def test_a_release_of_the_first_format_keeps_its_digest() -> None:
    first = Manifest.parse(FIRST_FORMAT)
    assert first == Manifest("tiny", (CONFIG,))
    assert first.digest == hashlib.sha256(FIRST_FORMAT).hexdigest()
    assert Manifest.parse(first.to_bytes()) == first


def test_neither_source_nor_facts_change_the_digest_but_what_is_allowed_does() -> None:
    bare = Manifest(NOTED.name, NOTED.files, NOTED.allow)
    assert bare.digest == NOTED.digest
    assert Manifest(NOTED.name, NOTED.files, ("code",)).digest != NOTED.digest


def test_a_fact_that_only_a_later_version_knows_is_left_out() -> None:
    later = a_noted(facts={"parameters": 40, "inventor": "somebody"})
    assert Manifest.parse(later).facts == Facts(parameters=40)


def test_the_order_of_files_does_not_change_the_digest() -> None:
    assert Manifest("tiny", (CONFIG, WEIGHTS)).digest == Manifest("tiny", (WEIGHTS, CONFIG)).digest


def test_a_changed_byte_of_a_file_changes_the_digest() -> None:
    changed = ModelFile(CONFIG.path, CONFIG.size, "00" * 32)
    assert Manifest("tiny", (CONFIG,)).digest != Manifest("tiny", (changed,)).digest


def test_a_manifest_reads_back_the_same() -> None:
    manifest = Manifest("tiny", (WEIGHTS, CONFIG, ModelFile("größe.txt", 0, HEX)))
    assert Manifest.parse(manifest.to_bytes()) == manifest
    assert Manifest.parse(NOTED.to_bytes()) == NOTED


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param(b"", "no JSON", id="nothing"),
        pytest.param(b"\xff\xfe\x00", "no JSON", id="no-text"),
        pytest.param(b"[1]", "not a JSON object", id="a-list"),
        pytest.param(b"{}", "format None", id="empty"),
        pytest.param(a_manifest(format=3), "format 3: this version reads up to format 2", id="from-the-future"),
        pytest.param(a_noted(allow="code"), "`allow` is a list", id="allow-is-text"),
        pytest.param(a_noted(allow=["all"]), "'all' cannot be allowed", id="allows-what-nobody-knows"),
        pytest.param(a_noted(source=7), "`source` a text", id="source-is-a-number"),
        pytest.param(a_noted(source="x\nname  forged"), "no plain text", id="source-forges-a-line"),
        pytest.param(a_noted(facts={"parameters": "8B"}), "fact 'parameters' is '8B'", id="fact-of-another-kind"),
        pytest.param(a_noted(facts={"license": "\x1b[2J"}), "no plain text", id="fact-clears-the-screen"),
        pytest.param(a_manifest(name=None), "no `name` and `files`", id="no-name"),
        pytest.param(a_manifest(name="../x"), "no model's name", id="name-is-a-path"),
        pytest.param(a_manifest(files=[]), "no files", id="no-files"),
        pytest.param(a_manifest(files=["config.json"]), "needs `path`, `size` and `sha256`", id="file-is-text"),
        pytest.param(a_manifest(files=a_file(size=True)), "needs `path`, `size`", id="size-is-a-truth"),
        pytest.param(a_manifest(files=a_file(size=-1)), "has -1 bytes", id="negative-size"),
        pytest.param(a_manifest(files=a_file(sha256="x")), "no sha256 of 64", id="no-hash"),
        pytest.param(a_manifest(files=a_file() + a_file()), "is there twice", id="twice"),
        pytest.param(
            a_manifest(files=a_file(path="a") + a_file(path="a/b")), "both a file and a folder", id="file-is-folder"
        ),
        pytest.param(a_manifest(extra=1), "not in canonical form", id="more-than-we-write"),
        pytest.param(FIRST_FORMAT + b"\n", "not in canonical form", id="a-newline-more"),
    ],
)
def test_what_is_no_manifest_says_why(data: bytes, said: str) -> None:
    with pytest.raises(StoreError) as caught:
        Manifest.parse(data)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/", "a\\..\\b", "a\nb", "a\0b", "\x1b[2J"]
)
def test_no_path_leaves_the_models_folder(path: str) -> None:
    with pytest.raises(StoreError, match="no plain path"):
        Manifest("tiny", (ModelFile(path, 1, HEX),))


@pytest.mark.parametrize("key", ["models/tiny/tags.json", f"models/tiny/{HEX}", f"models/tiny/{HEX}.txt", ""])
def test_other_objects_are_no_releases(key: str) -> None:
    assert digest_of_key(key) is None
