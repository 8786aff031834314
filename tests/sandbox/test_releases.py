"""Releases in a real bucket: pushes that are killed, tags, reading back, pruning, and a platform's models."""

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dynamic_providers.errors import StoreError
from dynamic_providers.store import model as models
from dynamic_providers.store import prune as pruning
from dynamic_providers.store import tags, upload
from dynamic_providers.store.binaries import CADDY
from dynamic_providers.store.client import Store
from dynamic_providers.store.manifest import Facts, Manifest, ModelRef, blob_key
from dynamic_providers.store.model import ModelTerms
from dynamic_providers.store.transfer import push_folder
from dynamic_providers.store.verify import verify
from infra import cli
from tests.sandbox.line import Line
from tests.sandbox.models import weights, write_big_llama, write_tiny_llama
from tests.sandbox.storage import Storage

pytestmark = pytest.mark.usefixtures("of_the_storage")

ROOT = Path(__file__).parents[2]
PART = 5 * 2**20  # the least that S3 takes
# What an operator's push does, with small parts and two of them at once, so that a small file shows it.
PUSH = f"""
import sys
from pathlib import Path
from dynamic_providers.store import upload
upload.PART_BYTES, upload.PARALLEL = {PART}, 2
from dynamic_providers.store.client import Store
from dynamic_providers.store.transfer import push_folder
push_folder(Store(sys.argv[1]), Path(sys.argv[2]), "big", lambda *_: None)
"""


def no_report(phase: str, done: int, total: int) -> None:
    assert 0 <= done <= total, phase


@pytest.fixture
def store() -> Store:
    """Return the one bucket of these tests, emptied: the server has no room for one each."""
    made = Store("releases")
    made.ensure_bucket()
    made.delete_objects([listed.key for listed in made.list_objects("")])
    with made.opened() as s3:
        for begun in upload.open_uploads(s3, made.bucket, ""):
            s3.abort_multipart_upload(Bucket=made.bucket, Key=begun["Key"], UploadId=begun["UploadId"])
    return made


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama"), positions=4096)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a model of three small files, to be changed at will."""
    made = tmp_path / "tiny"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "tokenizer.json").write_text("{}")
    change(made, 0)
    return made


def change(folder: Path, number: int) -> None:
    (folder / "model.safetensors").write_bytes(weights(f"weights {number}".encode()))


def push(store: Store, folder: Path, name: str = "tiny", **words: Any) -> Manifest:
    return push_folder(store, folder, name, no_report, **words)


# --- going on after an interruption


def test_a_push_that_was_killed_goes_on_and_sends_only_the_rest(
    store: Store, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_big_llama(tmp_path / "big", size_bytes=10 * PART, shards=1)
    size = 10 * PART
    command = [sys.executable, "-c", PUSH, store.bucket, str(folder)]
    with Line(storage.endpoint, holds_after=0.6 * size) as line:
        environment = {**os.environ, "AWS_ENDPOINT_URL_S3": line.endpoint}
        killed = subprocess.Popen(command, cwd=ROOT, env=environment)
        assert line.is_holding.wait(60)
        killed.kill()
        killed.wait()
    assert store.all_releases() == {}
    monkeypatch.setattr(upload, "PART_BYTES", PART)
    with Line(storage.endpoint) as line:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", line.endpoint)
        counted: dict[str, int] = {}
        manifest = push_folder(Store(store.bucket), folder, "big", lambda phase, done, _: counted.update({phase: done}))
    assert line.sent < 0.6 * size  # 0.4 were not yet sent; of the two parts under way, all may be lost
    assert counted["upload"] > size  # what was there counts as done
    assert verify(store, manifest, no_report) == []
    with store.opened() as s3:
        assert list(upload.open_uploads(s3, store.bucket, "")) == []


def test_a_part_that_the_server_holds_with_other_bytes_is_sent_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "PART_BYTES", PART)
    path = tmp_path / "file"
    path.write_bytes(os.urandom(2 * PART + 1))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    with store.opened() as s3:
        for body in (b"x" * PART, path.read_bytes()[:PART]):
            begun = s3.create_multipart_upload(Bucket=store.bucket, Key=blob_key(sha256))
            where: Any = {"Bucket": store.bucket, "Key": blob_key(sha256), "UploadId": begun["UploadId"]}
            s3.upload_part(**where, PartNumber=1, Body=body)
        s3.upload_part(**where, PartNumber=2, Body=b"y" * PART)
        store.put_blob(path, sha256)
        assert s3.get_object(Bucket=store.bucket, Key=blob_key(sha256))["Body"].read() == path.read_bytes()
        assert list(upload.open_uploads(s3, store.bucket, "")) == []  # the twin is cleared away


def test_two_releases_that_share_a_shard_send_it_once(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = push(store, folder)
    sent: list[str] = []
    send = upload.Uploader.send

    def noted(uploader: upload.Uploader, path: Path, sha256: str, size: int) -> None:
        sent.append(path.name)
        send(uploader, path, sha256, size)

    monkeypatch.setattr(upload.Uploader, "send", noted)
    (folder / "config.json").write_text('{"a": 1}')
    second = push(store, folder, "other")
    assert sent == ["config.json"]
    assert {file.sha256 for file in first.files} & {file.sha256 for file in second.files}


def test_a_failure_of_one_file_ends_the_others_and_is_what_is_told(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "PART_BYTES", PART)
    big = tmp_path / "big"
    big.write_bytes(bytes(4 * PART))
    files = {"00" * 32: (tmp_path / "lost", 1), "11" * 32: (big, 4 * PART)}

    def send() -> None:
        with upload.Uploader(store, lambda _: None) as uploader:
            for sha256, (path, size) in files.items():
                uploader.send(path, sha256, size)

    with pytest.raises(StoreError, match="lost: No such file"):
        send()
    assert not store.has("11" * 32)


def test_an_error_beside_the_push_waits_for_no_part(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(upload.PART_BYTES + 1))

    def send() -> None:
        with upload.Uploader(store, lambda _: None) as uploader:
            uploader.send(path, "22" * 32, upload.PART_BYTES + 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        send()
    assert not store.has("22" * 32)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("upload")]


# --- what a release is


def test_the_manifest_tells_what_the_model_is_and_where_it_came_from(store: Store, llama: Path) -> None:
    manifest = store.resolve(push(store, llama, source="hf:org/tiny@main").ref)
    size = next(file.size for file in manifest.files if file.path == "model.safetensors")
    facts = manifest.facts
    assert (facts.format, facts.dtype, facts.context_length) == ("safetensors", "bfloat16", 4096)
    assert facts.gpu_bytes == 2 * (facts.parameters or 0)
    assert 0 < size - (facts.gpu_bytes or 0) < 10_000  # the header
    assert manifest.source == "hf:org/tiny@main"
    assert push(store, llama).source == "hf:org/tiny@main"  # a push that knows none keeps it


def test_the_same_files_are_the_same_release_whoever_pushes(store: Store, llama: Path) -> None:
    assert push(store, llama, source="hf:org/tiny@main").digest == push(store, llama, source="a disk").digest
    assert len(store.releases("tiny")) == 1


def test_a_release_of_the_first_format_is_read_and_noted_by_the_next_push(store: Store, folder: Path) -> None:
    manifest = push(store, folder)
    old = json.loads(manifest.to_bytes()) | {"format": 1}
    old = {key: old[key] for key in ("files", "format", "name")}
    data = json.dumps(old, separators=(",", ":"), sort_keys=True).encode()
    assert hashlib.sha256(data).hexdigest() == manifest.digest
    store._s3.put_object(Bucket=store.bucket, Key=manifest.key, Body=data)
    store._s3.delete_object(Bucket=store.bucket, Key=tags.tags_key("tiny"))
    assert store.resolve(ModelRef("tiny")).facts == Facts()  # without tags: the release pushed last
    assert push(store, folder).digest == manifest.digest
    assert store.resolve(ModelRef("tiny")).facts.format == "safetensors"


# --- tags


def test_a_push_moves_latest_and_no_other_tag(store: Store, folder: Path) -> None:
    first = push(store, folder)
    assert tags.change_tags(store, "tiny", lambda old: old | {"prod": first.digest})
    change(folder, 1)
    second = push(store, folder)
    assert store.resolve(ModelRef.parse("tiny")) == second
    assert store.resolve(ModelRef.parse("tiny:latest")) == second
    assert store.resolve(ModelRef.parse("tiny:prod")) == first


def test_a_tag_that_is_not_there_is_told_with_those_that_are(store: Store, folder: Path) -> None:
    manifest = push(store, folder)
    tags.change_tags(store, "tiny", lambda old: old | {"prod": manifest.digest})
    with pytest.raises(StoreError) as caught:
        store.resolve(ModelRef.parse("tiny:prdo"))
    said = str(caught.value)
    assert "no tag 'prdo'; did you mean 'prod'?" in said
    assert f"tiny:prod is {manifest.ref}" in said
    assert "gpu models tag tiny prdo" in said
    with pytest.raises(StoreError, match="no model 'tinny'"):
        store.resolve(ModelRef.parse("tinny:prod"))


def test_of_many_who_change_tags_at_once_none_loses(store: Store, folder: Path) -> None:
    manifest = push(store, folder)
    safe: list[bool] = []

    def tag(name: str) -> None:
        safe.append(tags.change_tags(Store(store.bucket), "tiny", lambda old: old | {name: manifest.digest}))

    threads = [threading.Thread(target=tag, args=[f"t{number}"]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert safe == [True] * 4
    assert set(tags.read_tags(store, "tiny").digests) == {"latest", "t0", "t1", "t2", "t3"}


def test_spoilt_tags_are_told_and_digests_work_without(store: Store, folder: Path) -> None:
    manifest = push(store, folder)
    store._s3.put_object(Bucket=store.bucket, Key=tags.tags_key("tiny"), Body=b"{")
    with pytest.raises(StoreError, match=r"models/tiny/tags\.json: no tags.*Remove this object"):
        store.resolve(ModelRef("tiny"))
    assert store.resolve(manifest.ref) == manifest


# --- reading back


def test_every_kind_of_damage_is_told_by_the_name_of_the_file(store: Store, llama: Path) -> None:
    manifest = push(store, llama)
    files = {file.path: file for file in manifest.files}
    assert verify(store, manifest, no_report) == []
    spoil(store, files["model.safetensors"].sha256)
    cut = b"short"
    store._s3.put_object(Bucket=store.bucket, Key=blob_key(files["tokenizer.json"].sha256), Body=cut)
    store.delete_blob(files["config.json"].sha256)
    found = {damage.file.path: damage.reason for damage in verify(store, manifest, no_report)}
    assert found["config.json"] == "is not there"
    assert found["tokenizer.json"].startswith("has 5 bytes instead of ")
    assert found["model.safetensors"].startswith("has other bytes: sha256 ")
    assert len(found) == 3


def spoil(store: Store, sha256: str) -> None:
    """Flip one byte of a blob."""
    data = bytearray(store._s3.get_object(Bucket=store.bucket, Key=blob_key(sha256))["Body"].read())
    data[len(data) // 2] ^= 1
    store._s3.put_object(Bucket=store.bucket, Key=blob_key(sha256), Body=bytes(data))


# --- pruning


@pytest.fixture
def old_blobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every blob be old enough to go: an hour from now, with no age too young."""
    now = Store.now
    monkeypatch.setattr(Store, "now", lambda store: now(store) + pruning.YOUNG + timedelta(hours=1))


def test_prune_keeps_tagged_and_newest_releases_and_what_any_model_names(
    store: Store, folder: Path, old_blobs: None
) -> None:
    pushed = []
    for number in range(5):
        change(folder, number)
        pushed.append(push(store, folder))
        wait_for_next_second()
    change(folder, 1)
    other = push(store, folder, "other")  # shares the weights of a release that goes
    tags.change_tags(store, "tiny", lambda old: old | {"prod": pushed[0].digest})
    plan = pruning.plan_prune(store, 2)
    assert set(plan.releases) == {pushed[1].ref, pushed[2].ref}
    lost = {file.sha256 for file in pushed[2].files if file.path == "model.safetensors"}
    assert set(plan.blobs) == {blob_key(sha256) for sha256 in lost}
    assert plan.freed_bytes == sum(file.size for file in pushed[2].files if file.sha256 in lost)
    pruning.prune(store, plan)
    assert {release.ref for release in store.releases("tiny")} == {pushed[0].ref, pushed[3].ref, pushed[4].ref}
    for manifest in (pushed[0], pushed[3], pushed[4], other):
        assert verify(store, manifest, no_report) == []
    assert pruning.plan_prune(store, 2).is_empty


def wait_for_next_second() -> None:
    """Let what is pushed next be younger: S3 dates objects by the second."""
    time.sleep(1.05)


def test_prune_spares_what_a_running_push_may_name_and_programs(store: Store, folder: Path, tmp_path: Path) -> None:
    push(store, folder)
    noise = tmp_path / "noise"
    noise.write_bytes(b"noise")
    store.put_blob(noise, hashlib.sha256(b"noise").hexdigest())
    with store.opened() as s3:
        s3.create_multipart_upload(Bucket=store.bucket, Key=blob_key("33" * 32))
    plan = pruning.plan_prune(store, 1)
    assert plan.is_empty
    assert plan.spared_bytes == 5


def test_prune_removes_old_unnamed_blobs_and_uploads_but_no_program(
    store: Store, folder: Path, tmp_path: Path, old_blobs: None
) -> None:
    push(store, folder)
    noise = tmp_path / "noise"
    noise.write_bytes(b"noise")
    for sha256 in (hashlib.sha256(b"noise").hexdigest(), CADDY.sha256):
        store.put_blob(noise, sha256)
    with store.opened() as s3:
        s3.create_multipart_upload(Bucket=store.bucket, Key=blob_key("33" * 32))
        plan = pruning.plan_prune(store, 1)
        assert list(plan.blobs) == [blob_key(hashlib.sha256(b"noise").hexdigest())]
        assert len(plan.uploads) == 1
        pruning.prune(store, plan)
        assert list(upload.open_uploads(s3, store.bucket, "")) == []
    assert store.has(CADDY.sha256)


def test_prune_leaves_what_has_been_named_since_it_was_planned(store: Store, folder: Path, old_blobs: None) -> None:
    first = push(store, folder)
    change(folder, 1)
    wait_for_next_second()
    push(store, folder)
    plan = pruning.plan_prune(store, 1)
    assert plan.releases == (first.ref,)
    tags.change_tags(store, "tiny", lambda old: old | {"prod": first.digest})
    pruning.prune(store, plan)
    assert verify(store, store.resolve(ModelRef.parse("tiny:prod")), no_report) == []


def test_nothing_is_pruned_while_a_release_cannot_be_read(store: Store, folder: Path) -> None:
    manifest = push(store, folder)
    store._s3.put_object(Bucket=store.bucket, Key=manifest.key, Body=b"{")
    with pytest.raises(StoreError, match=rf"{manifest.key}: not a manifest"):
        pruning.plan_prune(store, 1)


# --- a platform's models


def terms(folder: Path, *tags: str) -> ModelTerms:
    source = "../tiny"
    return ModelTerms("tiny", source, str(folder), tags, (), models.take_fingerprint(source, folder))


def bring(store: Store, asked: ModelTerms, olds: dict[str, Any] | None = None) -> dict[str, Any]:
    outs = models.bring_about(store, asked, olds, lambda _: None, lambda: None)
    return {"name": asked.name, "source": asked.source, "tags": list(asked.tags), **outs}


def test_a_models_tags_come_move_and_go_and_its_releases_stay(store: Store, folder: Path) -> None:
    first = bring(store, terms(folder, "prod", "eu"))
    assert store.resolve(ModelRef.parse("tiny:eu")).digest == first["digest"]
    change(folder, 1)
    second = bring(store, terms(folder, "prod"), first)
    assert second["digest"] != first["digest"]
    assert tags.read_tags(store, "tiny").digests == {"latest": second["digest"], "prod": second["digest"]}
    assert bring(store, terms(folder), second)["digest"] == second["digest"]
    assert tags.read_tags(store, "tiny").digests == {"latest": second["digest"]}
    assert len(store.releases("tiny")) == 2


def test_a_tag_that_somebody_moved_is_seen_put_back_and_not_taken_from_him(store: Store, folder: Path) -> None:
    first = bring(store, terms(folder, "prod"))
    change(folder, 1)
    other = push(store, folder)
    tags.change_tags(store, "tiny", lambda old: old | {"prod": other.digest})
    seen = models.read(store, terms(folder, "prod"), first["digest"])
    assert seen == {"tags": []}
    bring(store, terms(folder), first)
    assert store.resolve(ModelRef.parse("tiny:prod")) == other


def test_a_release_that_is_gone_is_told(store: Store, folder: Path) -> None:
    outs = bring(store, terms(folder))
    store.delete_objects([store.resolve(ModelRef("tiny")).key])
    assert models.read(store, terms(folder), outs["digest"]) is None


def test_only_a_changed_source_is_pushed_and_no_file_is_read_to_know(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bring(store, terms(folder))
    assert not models.is_new(first, terms(folder))
    elsewhere = ModelTerms("tiny", "../tiny")  # on a machine without the folder
    assert not models.is_new(first, elsewhere)
    monkeypatch.setattr(models, "_push", None)
    assert bring(store, elsewhere, first)["fingerprint"] == first["fingerprint"]
    change(folder, 10)
    assert models.is_new(first, terms(folder))


def test_who_is_told_to_stop_pushes_no_further(store: Store, folder: Path) -> None:
    def check() -> None:
        raise StoreError("told to stop")

    with pytest.raises(StoreError, match="told to stop"):
        models.bring_about(store, terms(folder), None, lambda _: None, check)
    assert store.all_releases() == {}


# --- the command


@pytest.fixture
def project(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a project whose stack files name the test's bucket, through a platform."""
    root = tmp_path / "project"
    (root / "stacks").mkdir(parents=True)
    (root / "Pulumi.yaml").write_text("name: gpu-on-demand\nruntime: python\nstackConfigDir: stacks\n")
    text = f"config:\n  gpu-on-demand:kind: platform\n  gpu-on-demand:store: {{bucket: {store.bucket}}}\n"
    (root / "stacks" / "Pulumi.platform.yaml").write_text(text)
    text = "config:\n  gpu-on-demand:kind: gpu\n  gpu-on-demand:platform: platform\n"
    (root / "stacks" / "Pulumi.gpu-on.yaml").write_text(text)
    monkeypatch.chdir(root)
    monkeypatch.setattr("dynamic_providers.store.binaries.push_binaries", lambda *_: [])
    return root


def run(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert cli.main(["models", *words]) == status
    said = capsys.readouterr()
    return said.err if status else said.out


def test_a_release_from_push_to_tag(
    project: Path, store: Store, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "holds no model yet" in run(capsys, "list")
    assert "tiny:prod is tiny@sha256:" in run(capsys, "push", str(folder), "--tag", "prod", "--source", "a disk")
    first = store.resolve(ModelRef("tiny"))
    change(folder, 1)
    run(capsys, "push", str(folder), "-s", "gpu-on")
    second = store.resolve(ModelRef("tiny"))
    head, row = run(capsys, "list").splitlines()
    assert head.split() == ["MODEL", "RELEASES", "LATEST", "HAS", "TAGS"]
    assert row.split()[:2] == ["tiny", "2"]
    rows = run(capsys, "list", "tiny").splitlines()
    assert {line.split()[0]: line.split()[-1] for line in rows[1:]} == {
        str(first.ref): "prod",
        str(second.ref): "latest",
    }
    shown = run(capsys, "show", "tiny:prod")
    assert f"release         {first.ref}" in shown
    assert "source          a disk" in shown
    assert first.files[0].sha256 in shown
    assert "all as pushed" in run(capsys, "verify", "tiny")
    run(capsys, "tag", str(second.ref), "prod", "blue")
    assert store.resolve(ModelRef.parse("tiny:prod")) == second
    run(capsys, "tag", "tiny", "blue", "--remove")
    assert "no tag 'blue'" in run(capsys, "show", "tiny:blue", status=1)
    assert "'latest' stays" in run(capsys, "tag", "tiny", "latest", "--remove", status=1)
    assert "no tag 'red'" in run(capsys, "tag", "tiny", "red", "--remove", status=1)
    assert "'Red' is no tag" in run(capsys, "tag", "tiny", "Red", status=1)


def test_damage_is_told_dropped_and_put_back_by_a_push(
    project: Path, store: Store, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "push", str(folder))
    manifest = store.resolve(ModelRef("tiny"))
    spoil(store, next(file.sha256 for file in manifest.files if file.path == "model.safetensors"))
    said = run(capsys, "verify", "tiny", status=1)
    assert "model.safetensors: has other bytes" in said
    assert "gpu models verify tiny --drop, then: gpu models push" in said
    assert "--drop" not in run(capsys, "verify", "tiny", "--drop", status=1)
    run(capsys, "push", str(folder))
    run(capsys, "verify", "tiny")


def test_prune_shows_asks_and_does(
    project: Path,
    store: Store,
    folder: Path,
    old_blobs: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(2):
        change(folder, number)
        run(capsys, "push", str(folder))
        wait_for_next_second()
    assert "nothing to remove" in run(capsys, "prune")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert "nobody here to ask; nothing was removed" in run(capsys, "prune", "--keep", "1", status=1)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    for answer, left in (("", 2), ("n", 2), ("y", 1)):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        assert "neither tagged nor among the newest" in run(capsys, "prune", "--keep", "1")
        assert len(store.releases("tiny")) == left


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["push", "none"], "none is no folder", id="no-folder"),
        pytest.param(["push", "hf:one-word"], "names no model of the hub", id="no-hub-model"),
        pytest.param(["push", "hf:org/repo", "--source", "x"], "leave it out", id="two-sources"),
        pytest.param(["push", ".", "--tag", "A"], "'A' is no tag", id="bad-tag"),
        pytest.param(["show", "None"], "no model's name", id="bad-name"),
        pytest.param(["list", "none"], "no model 'none'", id="no-such-model"),
        pytest.param(["verify", "none"], "no model 'none'", id="nothing-to-verify"),
        pytest.param(["tag", "none", "prod"], "no model 'none'", id="nothing-to-tag"),
    ],
)
def test_a_mistake_is_told_in_one_message(
    project: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = run(capsys, *words, status=1)
    assert shown.startswith("error: ")
    assert said in shown
