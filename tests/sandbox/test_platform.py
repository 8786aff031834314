"""A platform by `pulumi` commands, its bucket on a real S3 server: made, adopted, put right, kept, deleted."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dynamic_providers.clock import Clock
from dynamic_providers.errors import StoreError
from dynamic_providers.store import bucket, policy
from dynamic_providers.store.bucket import BucketTerms
from dynamic_providers.store.client import Store
from dynamic_providers.store.tags import read_tags
from tests.sandbox.engine_world import STAND_IN
from tests.sandbox.models import write_tiny_llama
from tests.sandbox.vast.server import VastEmulator
from tests.sandbox.world import ROOT

pytestmark = pytest.mark.usefixtures("of_the_storage")

TERMS = BucketTerms("c0ffee12", "platform")
LIMIT_SECONDS = 60
GIVEN = {
    "fleet_id": '"[0-9a-f]{8}"',
    "ca_certificate": '"-----BEGIN CERTIFICATE-----',
    "sign": r"\[secret\]",
    "observe": r"\[secret\]",
    "store": "{",
    "bucket": '"gpu-inference-models"',
}


def disturb(store: Store) -> None:
    """Change by hand all that can be changed."""
    rules: Any = [{"ID": "x", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}}]
    with store.s3() as s3:
        s3.delete_bucket_policy(Bucket=store.bucket)
        s3.put_bucket_versioning(Bucket=store.bucket, VersioningConfiguration={"Status": "Suspended"})
        s3.put_bucket_lifecycle_configuration(Bucket=store.bucket, LifecycleConfiguration={"Rules": rules})


def fill(store: Store, *keys: str) -> None:
    with store.s3() as s3:
        for key in keys:
            s3.put_object(Bucket=store.bucket, Key=key, Body=b"{}")


# The bucket alone


def test_a_bucket_is_made_seen_drifting_and_put_right() -> None:
    store, clock = Store("made"), Clock()
    outs = bucket.bring_about(store, TERMS, clock)
    assert bucket.read(store, outs, clock) == outs
    assert bucket.drift(store, TERMS, outs) == []
    assert [line.partition(":")[0] for line in outs["unsupported"]] == ["keys"]
    disturb(store)
    seen = bucket.read(store, outs, clock)
    assert seen is not None
    assert bucket.drift(store, TERMS, seen) == ["lifecycle", "versioning", "policy"]
    assert bucket.bring_about(store, TERMS, clock) == outs
    bucket.remove(store, TERMS, clock)
    assert bucket.read(Store("made"), outs, clock) is None


def test_a_policy_that_this_server_cannot_read_becomes_the_lesser_one_and_is_told() -> None:
    outs = bucket.bring_about(Store("lesser"), BucketTerms("c0ffee12", "platform", project="1234567"), Clock())
    assert outs["unsupported"] == ["keys: refused, InvalidPolicyDocument"]
    assert outs["policy"] == policy.canonical(policy.tls_policy("lesser"))


def test_a_bucket_that_a_push_has_made_is_adopted_and_another_ones_is_not() -> None:
    pushed, foreign = Store("pushed"), Store("foreign")
    for store in (pushed, foreign):
        store.ensure_bucket()
    fill(pushed, "blobs/sha256/aa", "models/tiny/tags.json")
    fill(foreign, "models/tiny/tags.json", "holiday.jpg")
    assert bucket.bring_about(pushed, TERMS, Clock())["owner"] == TERMS.fleet_id
    with pytest.raises(StoreError, match=r"holds what is not ours: holiday\.jpg"):
        bucket.bring_about(foreign, TERMS, Clock())


def test_every_version_goes_with_the_bucket_and_broken_pushes_too() -> None:
    store, clock = Store("versions"), Clock()
    bucket.bring_about(store, TERMS, clock)
    fill(store, *["models/tiny/tags.json"] * 3, "blobs/sha256/aa")
    with store.s3() as s3:
        s3.delete_object(Bucket=store.bucket, Key="blobs/sha256/aa")
        s3.create_multipart_upload(Bucket=store.bucket, Key="blobs/sha256/bb")
    with pytest.raises(StoreError, match="still holds model tiny"):
        bucket.remove(store, TERMS, clock)
    bucket.remove(store, BucketTerms("c0ffee12", "platform", force_destroy=True), clock)
    assert bucket.read(Store("versions"), {}, clock) is None


# By `pulumi` commands


class Team:
    """A project with a platform's stack file, and the engine to run it."""

    def __init__(self, folder: Path, market: VastEmulator) -> None:
        self.stack_file = folder / "project" / "stacks" / "Pulumi.platform.yaml"
        self.stack_file.parent.mkdir(parents=True)
        (folder / "state").mkdir()
        shutil.copy(ROOT / "Pulumi.yaml", folder / "project")
        shutil.copy(ROOT / "stacks" / "Pulumi.platform.yaml", self.stack_file)
        for name in ("infra", ".venv"):
            (folder / "project" / name).symlink_to(ROOT / name)
        self.environment = {
            "VAST_URL": market.url,
            "VAST_API_KEY": market.api_key,
            "PULUMI_BACKEND_URL": f"file://{folder / 'state'}",
            "PULUMI_CONFIG_PASSPHRASE": "x",
            "PULUMI_HOME": str(folder / "home"),
            "PULUMI_OPTION_CWD": str(folder / "project"),
            # No package manager and nothing fetched before: what comes from Debian cannot be had.
            "PATH": str(Path(sys.executable).parent),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }

    def run(self, *words: str) -> tuple[int, str]:
        done = subprocess.run(
            [*STAND_IN, *words, "-s", "platform"],
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        return done.returncode, done.stdout

    def ok(self, *words: str) -> str:
        code, said = self.run(*words)
        assert code == 0, said
        return said

    def edit(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change what the stack file says; keys without the project's name."""
        document = yaml.safe_load(self.stack_file.read_text())
        config = {key.rpartition(":")[2]: value for key, value in document["config"].items()}
        change(config)
        kept = {key: value for key, value in document.items() if key != "config"}
        kept["config"] = {f"gpu-on-demand:{key}": value for key, value in config.items()}
        self.stack_file.write_text(yaml.safe_dump(kept))


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    with VastEmulator() as market:
        yield Team(tmp_path, market)


@pytest.mark.real
def test_a_platform_from_first_up_to_its_end(team: Team) -> None:
    team.ok("stack", "init", "--no-select", "platform")
    up, destroy = ("up", "-y", "--skip-preview"), ("destroy", "-y", "--skip-preview")
    said = team.ok(*up)
    assert "3 created" in said
    assert "warning: bucket gpu-inference-models: any key of the same project opens it" in said
    assert "a program that machines fetch from it is missing; programs: cannot fetch victoria-metrics" in said
    assert all(re.search(rf"\b{key} *: {value}", said) for key, value in GIVEN.items()), said

    store = Store("gpu-inference-models")
    disturb(store)
    fill(store, "models/tiny/tags.json")
    code, said = team.run(*destroy)
    assert code == 1
    assert "still holds model tiny: nothing was deleted" in said
    assert "Fleet fleet deleted" not in said

    team.edit(lambda config: config["store"].update(force_destroy=True))
    said = team.ok(*up)
    assert "not as it should be: lifecycle, versioning, policy" in said
    assert "1 updated" in said
    team.ok(*destroy)
    assert bucket.read(Store("gpu-inference-models"), {}, Clock()) is None


@pytest.mark.real
def test_a_declared_model_is_pushed_changed_and_let_go(team: Team, tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "tiny", positions=64)
    model = {"name": "tiny", "source": "../tiny", "tags": ["prod"]}

    def declare(config: dict[str, Any]) -> None:
        config["store"] |= {"bucket": "declared", "force_destroy": True}
        config["models"] = [model]

    team.edit(declare)
    team.ok("stack", "init", "--no-select", "platform")
    up = ("up", "-y", "--skip-preview")
    assert "Model tiny created" in team.ok(*up)
    store = Store("declared")
    first = read_tags(store, "tiny").digests
    assert first.keys() == {"latest", "prod"}
    assert "4 unchanged" in team.ok(*up)

    (folder / "generation_config.json").write_text("{}")
    assert "Model tiny updated" in team.ok(*up)
    second = read_tags(store, "tiny").digests
    assert second["prod"] == second["latest"] != first["prod"]

    team.edit(lambda config: config.pop("models"))
    assert "Model tiny deleted" in team.ok(*up)
    assert read_tags(store, "tiny").digests == second
    assert len(store.releases("tiny")) == 2
    team.ok("destroy", "-y", "--skip-preview")
    assert bucket.read(Store("declared"), {}, Clock()) is None
