"""A platform's bucket against a server that is late, refuses, forgets, or locks everybody out."""

import json
from typing import Any

import pytest

from dynamic_providers.errors import StoreError
from dynamic_providers.store import bucket, policy
from dynamic_providers.store.access import AccessKeys
from dynamic_providers.store.bucket import MARKER, BucketTerms
from dynamic_providers.store.client import Store
from dynamic_providers.store.failures import AccessError
from tests.unit.builders import FakeClock
from tests.unit.fake_s3 import BUCKET, KEY, PROJECT, FakeS3

FLEET, OTHER = "c0ffee12", "deadbeef"
TERMS = BucketTerms(FLEET, "platform")
OTHER_KEY, READ_KEY = "B" * 20, "R" * 20


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> FakeS3:
    """Return a server with an empty bucket, which every Store meets."""
    server = FakeS3()
    monkeypatch.setattr(Store, "_connect", lambda *_, **__: server)
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    return server


def bring_about(terms: BucketTerms = TERMS, *, reader: str | None = None) -> dict[str, Any]:
    keys = AccessKeys(reader, "secret") if reader else None
    return bucket.bring_about(Store(BUCKET, reader=keys), terms, FakeClock())


def drift(outs: dict[str, Any], terms: BucketTerms = TERMS) -> list[str]:
    return bucket.drift(Store(BUCKET), terms, outs)


def read(outs: dict[str, Any]) -> dict[str, Any] | None:
    return bucket.read(Store(BUCKET), outs, FakeClock())


def remove(terms: BucketTerms = TERMS) -> None:
    bucket.remove(Store(BUCKET), terms, FakeClock())


def put(s3: FakeS3, *keys: str) -> None:
    s3.versions += [(key, f"v{at}", b"{}") for at, key in enumerate(keys)]


# Made or adopted


def test_a_missing_bucket_is_made_and_set_up(s3: FakeS3) -> None:
    s3.exists = False
    outs = bring_about()
    assert (outs["owner"], outs["versioning"], outs["unsupported"]) == (FLEET, "Enabled", [])
    assert drift(outs) == []
    assert s3.settings["lifecycle"] == policy.lifecycle_rules()
    assert {statement["Sid"] for statement in s3.policy["Statement"]} == {"OnlyOverTls", "OnlyTheseKeys"}


@pytest.mark.parametrize("requests", [1, 4, 12])
def test_a_bucket_that_appears_late_is_waited_for(s3: FakeS3, requests: int) -> None:
    s3.exists, s3.appears_after = False, requests
    assert bring_about()["unsupported"] == []


def test_what_stands_as_it_should_is_not_written_again(s3: FakeS3) -> None:
    first = bring_about()
    s3.asked.clear()
    assert bring_about() == first
    assert [deed for deed in s3.asked if deed.startswith(("s3:Put", "s3:Delete", "create"))] == []


def test_a_bucket_with_our_things_alone_is_adopted(s3: FakeS3) -> None:
    put(s3, "blobs/sha256/aa", "models/tiny/tags.json", "ledger/2026.json")
    assert bring_about()["owner"] == FLEET
    assert json.loads(next(body for key, _, body in s3.versions if key == MARKER) or b"") == {
        "fleet": FLEET,
        "stack": "platform",
    }


@pytest.mark.parametrize("key", ["holiday.jpg", "backups/1.tar", "models.txt", "blobs"])
def test_a_bucket_with_somebody_elses_things_is_left_alone(s3: FakeS3, key: str) -> None:
    put(s3, "models/tiny/tags.json", key)
    with pytest.raises(StoreError, match=r"holds what is not ours: .*\n.*name an empty one") as caught:
        bring_about()
    assert key.partition("/")[0] in str(caught.value)
    assert s3.settings == {}
    assert MARKER not in s3.keys


def test_the_bucket_of_another_fleet_is_left_alone_unless_it_is_named(s3: FakeS3) -> None:
    bring_about(BucketTerms(OTHER, "platform"))
    with pytest.raises(StoreError, match=rf"another fleet, {OTHER}.*\n.*take_over: \"{OTHER}\""):
        bring_about()
    with pytest.raises(StoreError, match="another fleet"):
        bring_about(BucketTerms(FLEET, "platform", take_over="00000000"))
    assert bring_about(BucketTerms(FLEET, "platform", take_over=OTHER))["owner"] == FLEET


def test_a_marker_that_says_nothing_is_not_overwritten(s3: FakeS3) -> None:
    s3.versions.append((MARKER, "1", b"hello"))
    with pytest.raises(StoreError, match=f"{MARKER} is not ours"):
        bring_about()


# What the server refuses


@pytest.mark.parametrize(
    ("feature", "answer", "told"),
    [
        pytest.param("versioning", ("NotImplemented", 501), ["versioning: refused, NotImplemented"], id="versioning"),
        pytest.param(
            "lifecycle",
            ("NotImplemented", 501),
            ["lifecycle: refused, NotImplemented", "versioning: left as it is"],
            id="lifecycle-and-so-no-versions-that-nothing-ends",
        ),
        pytest.param(
            "policy",
            ("ServiceUnavailable", 503),
            ["keys: refused, ServiceUnavailable", "policy: refused, ServiceUnavailable"],
            id="policy-as-hetzner-refuses-one",
        ),
        pytest.param(
            "policy", ("MethodNotAllowed", 405), ["keys: refused, MethodNotAllowed", "policy: refused"], id="policy"
        ),
    ],
)
def test_what_the_server_refuses_is_told_and_is_no_drift(
    s3: FakeS3, feature: str, answer: tuple[str, int], told: list[str]
) -> None:
    s3.refuses[feature] = answer
    outs = bring_about()
    assert len(outs["unsupported"]) == len(told)
    assert all(line.startswith(text) for line, text in zip(outs["unsupported"], told, strict=True))
    assert drift(outs) == []
    assert read(outs) == outs


@pytest.mark.parametrize("feature", ["versioning", "lifecycle", "policy"])
def test_what_the_server_takes_but_does_not_keep_is_told(s3: FakeS3, feature: str) -> None:
    s3.forgets.add(feature)
    told = "\n".join(bring_about()["unsupported"])
    assert "it was taken, but what stands there is nothing" in told


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "RequestTimeTooSkewed"])
def test_wrong_keys_are_no_missing_feature(s3: FakeS3, code: str) -> None:
    s3.refuses["versioning"] = (code, 403)
    with pytest.raises(AccessError):
        bring_about()


# The policy


def test_a_policy_that_locks_us_out_is_taken_back(s3: FakeS3) -> None:
    outs = bring_about(BucketTerms(FLEET, "platform", project="7654321"))  # not the one that the keys belong to
    assert outs["unsupported"] == ["keys: it locked us out, and was taken back"]
    assert [statement["Sid"] for statement in s3.policy["Statement"]] == ["OnlyOverTls"]
    assert read(outs) == outs


def test_a_server_that_does_not_see_its_own_tls_gets_no_policy(s3: FakeS3) -> None:
    s3.sees_tls = False
    outs = bring_about()
    assert [line.partition(":")[0] for line in outs["unsupported"]] == ["keys", "policy"]
    assert s3.policy == {}
    assert outs["policy"] == ""


def test_the_policy_that_was_there_comes_back(s3: FakeS3) -> None:
    before = json.dumps({"Version": "2012-10-17", "Statement": [{"Sid": "x", "Principal": "*", "Action": []}]})
    s3.settings["policy"] = before
    s3.sees_tls = False
    bring_about()
    assert s3.settings["policy"] == before


def test_a_policy_that_cannot_be_taken_back_is_an_error_that_says_what_to_do(s3: FakeS3) -> None:
    s3.sees_tls, s3.keeps_policy = False, True
    with pytest.raises(StoreError, match=r"cannot be taken back.*\n.*Remove the bucket's policy"):
        bring_about()


def test_a_try_that_was_broken_off_is_found_and_taken_back(s3: FakeS3) -> None:
    s3.sees_tls = False
    s3.settings["policy"] = policy.tls_policy(BUCKET)  # set, and then killed before the probe
    outs = bring_about()
    assert (outs["owner"], outs["policy"]) == (FLEET, "")


def test_other_keys_of_the_project_are_kept_out(s3: FakeS3) -> None:
    bring_about()
    s3.key = OTHER_KEY
    with pytest.raises(AccessError):
        Store(BUCKET).list_models()


def test_without_a_project_only_tls_is_asked_for_and_that_is_told(s3: FakeS3) -> None:
    s3.owner = "operator"
    outs = bring_about()
    assert [line.partition(":")[0] for line in outs["unsupported"]] == ["keys"]
    assert "set store.project" in outs["unsupported"][0]
    assert drift(outs) == []


def test_a_new_key_lets_itself_in_and_the_former_stays(s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    outs = bring_about()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", OTHER_KEY)
    s3.key = OTHER_KEY
    seen = read(outs)
    assert seen is not None
    assert drift(seen) == ["policy"]
    assert drift(bring_about()) == []
    assert policy.keys_in(s3.settings["policy"]) == {KEY, OTHER_KEY}


def test_keys_that_are_listed_are_all_that_get_in(s3: FakeS3) -> None:
    bring_about(BucketTerms(FLEET, "platform", keys=(KEY, OTHER_KEY)))
    only = BucketTerms(FLEET, "platform", keys=(KEY,))
    assert drift(bring_about(only), only) == []
    assert policy.keys_in(s3.settings["policy"]) == {KEY}


def test_a_list_without_the_key_in_use_is_refused_before_anything_is_done(s3: FakeS3) -> None:
    with pytest.raises(StoreError, match=f"{KEY}, is not among store.keys"):
        bring_about(BucketTerms(FLEET, "platform", keys=(OTHER_KEY,)))
    assert s3.asked == []


def test_the_key_that_signs_for_machines_may_read_and_nothing_else(s3: FakeS3) -> None:
    bring_about(reader=READ_KEY)
    s3.key = READ_KEY
    s3.list_objects_v2(Bucket=BUCKET)
    with pytest.raises(AccessError), Store(BUCKET).s3() as client:
        client.put_object(Bucket=BUCKET, Key="blobs/x", Body=b"")
    assert policy.readers_in(s3.settings["policy"]) == {READ_KEY}
    assert READ_KEY not in policy.keys_in(s3.settings["policy"])
    s3.key = KEY
    bring_about()  # by somebody who has no such key
    assert policy.readers_in(s3.settings["policy"]) == {READ_KEY}


# Drift


@pytest.mark.parametrize("feature", ["versioning", "lifecycle", "policy"])
def test_what_is_changed_by_hand_is_seen_and_put_right(s3: FakeS3, feature: str) -> None:
    outs = bring_about()
    hand: dict[str, Any] = {
        "versioning": "Suspended",
        "lifecycle": [{"ID": "x", "Status": "Enabled", "Prefix": "", "Expiration": {"Days": 1}}],
        "policy": json.dumps({"Statement": [{"Sid": "x", "Principal": "*", "Action": []}]}),
    }
    s3.settings[feature] = hand[feature]
    seen = read(outs)
    assert seen is not None
    assert drift(seen) == [feature]
    assert drift(bring_about()) == []


def test_our_rule_for_only_a_part_of_the_bucket_is_drift(s3: FakeS3) -> None:
    outs = bring_about()
    rule = {key: value for key, value in policy.lifecycle_rules()[0].items() if key != "Filter"}
    for part in ({"Prefix": "blobs/"}, {"Filter": {"Prefix": "blobs/"}}, {"Filter": {"Tag": {"Key": "a"}}}):
        s3.settings["lifecycle"] = [{**rule, **part}]
        seen = read(outs)
        assert seen is not None
        assert drift(seen) == ["lifecycle"]


def test_a_marker_that_is_lost_is_put_back(s3: FakeS3) -> None:
    outs = bring_about()
    s3.versions.clear()
    seen = read(outs)
    assert seen is not None
    assert drift(seen) == ["owner"]
    assert drift(bring_about()) == []


def test_what_a_server_words_otherwise_is_no_drift(s3: FakeS3) -> None:
    outs = bring_about()
    rule = {key: value for key, value in policy.lifecycle_rules()[0].items() if key != "Filter"}
    s3.settings["lifecycle"] = [{**rule, "Prefix": "", "ID": "renamed"}]
    shuffled = dict(reversed(s3.policy.items())) | {"Statement": s3.policy["Statement"][::-1]}
    s3.settings["policy"] = json.dumps(shuffled, indent=1)
    assert read(outs) == outs


def test_a_bucket_that_is_gone_is_gone(s3: FakeS3) -> None:
    outs = bring_about()
    s3.exists = False
    assert read(outs) is None
    remove()


# Its end


def test_a_bucket_with_a_model_is_not_deleted_unless_that_is_asked_for(s3: FakeS3) -> None:
    bring_about()
    put(s3, "models/tiny/tags.json", "blobs/sha256/aa")
    s3.versions.append(("blobs/sha256/bb", "9", None))
    s3.uploads.append(("blobs/sha256/cc", "1"))
    with pytest.raises(StoreError, match=r"still holds model tiny: nothing was deleted(.|\n)*force_destroy"):
        remove()
    assert "models/tiny/tags.json" in s3.keys
    remove(BucketTerms(FLEET, "platform", force_destroy=True))
    assert not s3.exists
    assert [deed for deed in s3.asked if deed.startswith("delete ")][-1] == f"delete {MARKER}"


def test_a_ledger_is_not_deleted_either(s3: FakeS3) -> None:
    bring_about()
    put(s3, "ledger/2026.json")
    with pytest.raises(StoreError, match="still holds the ledger"):
        remove()


def test_what_no_release_names_does_not_keep_a_bucket(s3: FakeS3) -> None:
    bring_about()
    put(s3, "blobs/sha256/aa")
    remove()
    assert not s3.exists


@pytest.mark.parametrize("key", ["holiday.jpg", None], ids=["with-foreign-things", "of-another-fleet"])
def test_what_is_not_ours_is_never_deleted(s3: FakeS3, key: str | None) -> None:
    bring_about(TERMS if key else BucketTerms(OTHER, "platform"))
    put(s3, *([key] if key else []))
    with pytest.raises(StoreError, match="not ours"):
        remove(BucketTerms(FLEET, "platform", force_destroy=True))
    assert s3.exists
    assert MARKER in s3.keys


def test_the_project_is_known_by_the_owners_name() -> None:
    assert policy.project_of(f"p{PROJECT}") == PROJECT
    assert [policy.project_of(owner) for owner in ("operator", "p12x", "", "12")] == [None] * 4
