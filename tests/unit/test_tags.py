"""Changing tags by compare-and-swap, on servers of every kind."""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from dynamic_providers.errors import StoreError
from dynamic_providers.store import tags
from dynamic_providers.store.client import Store
from dynamic_providers.store.manifest import ModelRef

DIGEST, OTHER = "ab" * 32, "cd" * 32


class Body:
    def __init__(self, data: bytes) -> None:
        self.read = lambda: data


class NoSuchKey(ClientError):  # noqa: N818 - boto3's name
    pass


class Exceptions:
    ClientError = ClientError
    NoSuchKey = NoSuchKey


class FakeS3:
    """One object on a server that treats conditions in its own way.

    Args:
        kind: `ignores` takes every PUT; `unquoted` knows its ETag without quotes alone; `never` refuses every
            condition; `501` says that it has none; else as Amazon.
    """

    exceptions = Exceptions

    def __init__(self, kind: str = "") -> None:
        self.kind = kind
        self.data: bytes | None = None
        self.puts = 0
        self.others: list[bytes] = []  # what somebody else writes before our next conditional PUT that could succeed

    def get_object(self, **_: Any) -> dict[str, Any]:
        if self.data is None:
            raise NoSuchKey({"Error": {"Code": "NoSuchKey"}}, "GetObject")
        return {"Body": Body(self.data), "ETag": self.etag}

    def put_object(self, Body: bytes, **words: Any) -> None:  # noqa: N803 - boto3's names
        self.puts += 1
        conditions = {key: words[key] for key in ("IfMatch", "IfNoneMatch") if key in words}
        if conditions and conditions.get("IfMatch") != tags.NO_ETAG and self.others:
            self.data = self.others.pop(0)
        if conditions and self.kind != "ignores" and not self.holds(**conditions):
            status = 501 if self.kind == "501" else 412
            raise ClientError({"Error": {}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")  # type: ignore[typeddict-item]
        self.data = Body

    def holds(self, *, IfMatch: str = "", IfNoneMatch: str = "") -> bool:  # noqa: N803 - boto3's names
        if self.kind in ("never", "501"):
            return False
        if IfNoneMatch:
            return self.data is None
        known = self.etag.strip('"') if self.kind == "unquoted" else self.etag
        return self.data is not None and IfMatch == known

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.data or b"").hexdigest()}"'


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    return Store("bucket")


def serve(monkeypatch: pytest.MonkeyPatch, server: FakeS3) -> FakeS3:
    @contextlib.contextmanager
    def opened(_: Store) -> Iterator[FakeS3]:
        yield server

    monkeypatch.setattr(Store, "opened", opened)
    return server


def put_prod(store: Store) -> bool:
    return tags.change_tags(store, "tiny", lambda old: old | {"prod": DIGEST})


@pytest.mark.parametrize(
    ("kind", "safe"),
    [
        pytest.param("", True, id="as-amazon"),
        pytest.param("unquoted", True, id="etag-without-quotes"),
        pytest.param("ignores", False, id="ignores-conditions"),
        pytest.param("never", False, id="no-condition-ever-holds"),
        pytest.param("501", False, id="not-implemented"),
    ],
)
def test_whatever_the_server_does_the_change_is_made_and_its_safety_is_told(
    kind: str, safe: bool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(monkeypatch, FakeS3(kind))
    assert put_prod(store) is safe
    assert tags.change_tags(store, "tiny", lambda old: old | {"latest": OTHER}) is safe
    assert tags.read_tags(store, "tiny").digests == {"prod": DIGEST, "latest": OTHER}
    puts = server.puts
    assert put_prod(store)  # it stands there already
    assert server.puts == puts


@pytest.mark.parametrize("kind", ["", "unquoted"])
@pytest.mark.parametrize("there", [False, True], ids=["first-tags", "later-tags"])
def test_somebody_elses_change_in_the_same_moment_is_kept(
    there: bool, kind: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(monkeypatch, FakeS3(kind))
    if there:
        server.data = tags.render_tags({"latest": DIGEST})
    server.others = [tags.render_tags({"latest": OTHER, "eu": OTHER})]
    assert put_prod(store)
    assert tags.read_tags(store, "tiny").digests == {"latest": OTHER, "eu": OTHER, "prod": DIGEST}


def test_who_is_always_too_late_gives_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(monkeypatch, FakeS3())
    server.others = [tags.render_tags({f"t{number}": OTHER}) for number in range(100)]
    with pytest.raises(StoreError, match="somebody else all the time"):
        put_prod(store)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"format": 2, "tags": {}}',
        b'{"format": 1, "tags": []}',
        b'{"format": 1, "tags": {"A": "00"}}',
        b'{"format": 1, "tags": {"prod": "../../x"}}',
    ],
)
def test_what_are_no_tags_is_told(data: bytes) -> None:
    with pytest.raises(StoreError, match="here: no tags"):
        tags.parse_tags(data, "here")


def test_tags_read_back_the_same_and_are_told_latest_first() -> None:
    found = {"blue": DIGEST, "latest": DIGEST, "old": OTHER}
    assert tags.parse_tags(tags.render_tags(found), "here") == found
    assert tags.Tags(found).of(DIGEST) == ["latest", "blue"]


def test_a_tags_name_reads_as_the_reference_says() -> None:
    assert ModelRef.parse("tiny:v1.2_a-b").tag == "v1.2_a-b"
