"""Start-up caches on hosts with real SSH and a real S3 server: to the same machine or to none, whole or not at all."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from bootstrap import cache, remote
from dynamic_providers.store.startup_cache import (
    PREFIX,
    CacheKey,
    Kept,
    SpoiltCacheError,
    drop_cache,
    find_cache,
    keep_cache,
)
from dynamic_providers.vast.lifecycle import engine_of
from dynamic_providers.vast.machine import cache_key
from tests.sandbox.stage import Bucket, Machine, Stage, WatchedHosts

FOUND, COMPILED = "Directly load AOT compilation", "torch.compile takes a while"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, bucket: Bucket) -> Iterator[None]:
    """Look more often than a real machine needs, and leave no cache behind."""
    monkeypatch.setattr(remote, "LOOK_SECONDS", 0.15)
    yield
    for key in kept(bucket):
        with bucket.store.opened() as s3:
            s3.delete_object(Bucket=bucket.store.bucket, Key=key)


def kept(bucket: Bucket) -> list[str]:
    return sorted(entry.key for entry in bucket.store.list_objects(PREFIX))


def read(bucket: Bucket, key: str) -> bytes:
    with bucket.store.opened() as s3:
        return s3.get_object(Bucket=bucket.store.bucket, Key=key)["Body"].read()


def write(bucket: Bucket, key: str, content: bytes) -> None:
    with bucket.store.opened() as s3:
        s3.put_object(Bucket=bucket.store.bucket, Key=key, Body=content)


def engine_log(machine: Machine) -> str:
    hosts = machine.stage.market.hosts
    assert isinstance(hosts, WatchedHosts)
    return (hosts.workspace(machine.id) / "log/engine.log").read_text()


def key_of(machine: Machine) -> CacheKey:
    return cache_key(machine.request, machine.instance, engine_of(machine.request))


def start(stage: Stage, **change: Any) -> tuple[Machine, str]:
    """Bring a machine up; return it and what its engine said."""
    machine = stage.create(stage.request(startup_cache=True, **change))
    return machine, engine_log(machine)


def test_a_machine_gets_back_what_it_compiled_itself_unspoilt_and_nobody_else_does(
    stage: Stage, bucket: Bucket
) -> None:
    first, log = start(stage)
    key = key_of(first)
    assert COMPILED in log
    assert kept(bucket) == [key.record, key.archive]
    assert any(line.endswith(f"MB kept for machine {key.machine_id}") for line in stage.said)

    other, log = start(stage, uid="ba9876543210")
    assert other.instance.machine_id != key.machine_id
    assert COMPILED in log
    assert FOUND not in log

    first.delete()
    again, log = start(stage)
    assert key_of(again) == key
    assert FOUND in log
    assert COMPILED not in log
    assert any(line.endswith(f"MB of machine {key.machine_id} put back") for line in stage.said)
    again.delete()

    record = json.loads(read(bucket, key.record))
    write(bucket, key.record, json.dumps(record | {"sha256": "0" * 64}).encode())
    spoilt, log = start(stage)
    assert key_of(spoilt) == key
    assert COMPILED in log
    assert f"start-up cache of machine {key.machine_id} dropped: it is not what was sent off from here" in stage.said
    assert kept(bucket) == sorted([key.record, key.archive, key_of(other).record, key_of(other).archive])
    for machine in (spoilt, other):
        machine.delete()
    assert not [line for line in stage.said if "X-Amz" in line or "Signature" in line]


def test_off_unless_asked_for_and_too_much_is_told_and_not_kept(
    stage: Stage, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = stage.create()
    assert kept(bucket) == []
    monkeypatch.setattr(cache, "MOST_BYTES", 100_000)
    request = stage.request(startup_cache=True)
    assert machine.verdict(request) == "update"
    machine.update(request)
    assert kept(bucket) == []
    assert "start-up cache not kept: it has more than 0.1 MB" in stage.said
    hosts = stage.market.hosts
    assert isinstance(hosts, WatchedHosts)
    assert not [path for path in hosts.workspace(machine.id).iterdir() if "tar" in path.name]
    machine.delete()


KEY = CacheKey(7, "vllm/vllm-openai:v0.32.0", "1 × RTX 4090", "ab" * 32)
CONTENT = b"compiled"


def put(bucket: Bucket, content: bytes = CONTENT) -> Kept:
    """Put an archive there as the machine does, and return what it announced before."""
    write(bucket, KEY.archive, content)
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    return Kept(len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), md5)


def test_what_is_kept_is_found_until_it_is_dropped(bucket: Bucket) -> None:
    assert find_cache(bucket.store, KEY) is None
    announced = put(bucket)
    assert find_cache(bucket.store, KEY) is None, "without a record of ours it is nothing"
    keep_cache(bucket.store, KEY, announced)
    assert find_cache(bucket.store, KEY) == announced
    drop_cache(bucket.store, KEY)
    assert kept(bucket) == []


@pytest.mark.parametrize("content", [b"compilex", b"compiled, and more"], ids=["other-bytes", "more-bytes"])
def test_something_else_than_announced_is_neither_kept_nor_handed_out(content: bytes, bucket: Bucket) -> None:
    announced = put(bucket, content)
    with pytest.raises(SpoiltCacheError, match="not what was announced"):
        keep_cache(bucket.store, KEY, announced)
    put(bucket)
    keep_cache(bucket.store, KEY, announced)
    put(bucket, content)
    with pytest.raises(SpoiltCacheError, match="not what was kept"):
        find_cache(bucket.store, KEY)


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"size": "8"}, {"sha256": "ab"}, {"etag": None}, {"key": {"machine_id": 8}}], ids=str
)
def test_a_record_that_we_did_not_write_so_is_not_believed(change: dict[str, Any], bucket: Bucket) -> None:
    keep_cache(bucket.store, KEY, put(bucket))
    write(bucket, KEY.record, json.dumps(json.loads(read(bucket, KEY.record)) | change).encode())
    with pytest.raises(SpoiltCacheError):
        find_cache(bucket.store, KEY)


@pytest.mark.parametrize(
    "change", [{"machine_id": 8}, {"image": "x"}, {"gpu": "2 × RTX 4090"}, {"compiled": "cd" * 32}], ids=str
)
def test_whatever_differs_is_another_cache(change: dict[str, Any]) -> None:
    assert replace(KEY, **change).path != KEY.path
