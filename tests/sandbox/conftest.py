"""What the lifecycle's tests share: one bucket for all of them, and a market for each."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dynamic_providers.store.binaries import CADDY, push_binary
from dynamic_providers.store.client import Store
from dynamic_providers.store.manifest import Manifest, ModelFile
from dynamic_providers.store.transfer import push_folder
from tests.sandbox.clocks import PlayedClock, SwiftClock
from tests.sandbox.models import write_tiny_llama
from tests.sandbox.played import Played, play_bootstrap
from tests.sandbox.stage import Bucket, Stage, WatchedHosts, open_stage
from tests.sandbox.storage import Storage
from tests.sandbox.vast.hosts import FakeHosts

RELEASES = ("tiny", "other", "spoilt", "lost")


@pytest.fixture(scope="module")
def storage() -> Iterator[Storage]:
    """Return an object store of the module's own."""
    with Storage() as running:
        yield running


@pytest.fixture
def of_the_storage(storage: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let boto3 find that store and its keys, and nothing of whoever runs the test."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "PULUMI_", "S3_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    for name, value in storage.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """Return a bucket with the front door and tiny models.

    Of one a file is spoilt, of another one it is lost, and one got there without a push, which would have refused it.
    """
    with Storage() as storage, pytest.MonkeyPatch.context() as patch:
        for name, value in storage.environment.items():
            patch.setenv(name, value)
        store = Store("gpu-inference-models")
        store.ensure_bucket()
        releases = {}
        for seed, name in enumerate(RELEASES):
            folder = write_tiny_llama(tmp_path_factory.mktemp(name), positions=4096, seed=seed)
            releases[name] = push_folder(store, folder, name, lambda *_: None)
        spoilt, lost = (_weights(releases[name]) for name in ("spoilt", "lost"))
        noise = tmp_path_factory.mktemp("noise") / "noise"
        noise.write_bytes(bytes(spoilt.size))
        store.put_blob(noise, spoilt.sha256)
        store.delete_blob(lost.sha256)
        tiny = releases["tiny"].files
        releases["pickled"] = Manifest(
            "pickled", (*tiny, replace(_weights(releases["tiny"]), path="pytorch_model.bin"))
        )
        store.put_manifest(releases["pickled"])
        push_binary(store, CADDY, lambda *_: None)
        yield Bucket(storage, store, releases)


@pytest.fixture
def stage(bucket: Bucket, tmp_path: Path) -> Iterator[Stage]:
    """Return a market whose hosts are real: SSH, processes, TLS."""
    with open_stage(bucket, WatchedHosts(tmp_path / "hosts", bucket.host_environment), SwiftClock()) as opened:
        yield opened


@pytest.fixture
def played_stage(bucket: Bucket) -> Iterator[Stage]:
    """Return a market whose hosts exist in memory alone, and whose time passes at once."""
    with open_stage(bucket, FakeHosts(), PlayedClock(), boot_seconds=6.0) as opened:
        yield opened


@pytest.fixture
def played(played_stage: Stage) -> Iterator[Played]:
    """Bring every machine of `played_stage` up at once, without SSH."""
    with play_bootstrap(played_stage) as played:
        yield played


def _weights(release: Manifest) -> ModelFile:
    return next(file for file in release.files if file.path == "model.safetensors")
