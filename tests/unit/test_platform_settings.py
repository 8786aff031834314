"""A platform's stack file, and what a gpu stack takes from the platform that it names."""

from typing import Any

import pytest

from dynamic_providers.errors import ConfigError
from dynamic_providers.lease import keys
from dynamic_providers.lease.monitoring import WriteTarget
from dynamic_providers.store.address import StoreAddress
from infra.membership import parse_fleet
from infra.platform_settings import BucketSettings, PlatformSettings, parse_platform
from infra.settings import parse_stack
from infra.shared_settings import Encrypted, parse_store
from tests.unit.builders import SIGN, a_fleet

STORE = {"bucket": "team-models"}
FULL = {
    **STORE,
    "location": "hel1",
    "endpoint": "https://store.example",
    "profile": "team",
    "force_destroy": True,
    "project": 1234567,
    "keys": ["AAAAAAAAAAAAAAAAAAAA", "BBBBBBBBBBBBBBBBBBBB"],
    "take_over": "0123abcd",
}


BROKEN = a_fleet().ca_certificate[:400] + "\n-----END CERTIFICATE-----\n"
WITH_KEY = f"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n{a_fleet().ca_certificate}"


def watched(**change: Any) -> dict[str, Any]:
    return {"store": STORE, "monitoring": {"write_url": "https://m.example/api/v1/write"} | change}


def test_a_platform_needs_a_bucket_and_no_more() -> None:
    settings = parse_stack({"kind": "platform", "store": STORE})
    assert settings == PlatformSettings(BucketSettings(StoreAddress("team-models", "fsn1")))


def test_all_that_can_be_said_of_the_bucket_is_taken() -> None:
    bucket = parse_platform({"kind": "platform", "store": FULL}).bucket
    assert bucket.address == StoreAddress("team-models", "hel1", "https://store.example", "team")
    assert (bucket.force_destroy, bucket.project, bucket.take_over) == (True, "1234567", "0123abcd")
    assert bucket.keys == tuple(FULL["keys"])  # type: ignore[arg-type]


@pytest.mark.parametrize("own", [{}, {"ca_certificate": a_fleet().ca_certificate}], ids=["public-ca", "own-ca"])
def test_a_receiver_of_metrics_is_taken(own: dict[str, str]) -> None:
    written = {"write_url": "https://metrics.example:8427/api/v1/write", **own}
    target = parse_platform({"kind": "platform", "store": STORE, "monitoring": written}).monitoring
    assert target == WriteTarget(written["write_url"], own.get("ca_certificate"))
    assert target.to_props() == written
    assert WriteTarget.from_props(written | {"of_a_later_version": "1"}) == target


def test_the_address_alone_can_be_read_from_a_platform_too() -> None:
    assert parse_store({"kind": "platform", "store": FULL}) == StoreAddress(
        "team-models", "hel1", "https://store.example", "team"
    )


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        pytest.param({}, "store: missing; write store: {bucket:", id="no-store"),
        pytest.param({"store": {}}, "store.bucket: missing", id="no-bucket"),
        pytest.param({"store": STORE | {"force_destory": True}}, "did you mean force_destroy?", id="misspelt"),
        pytest.param({"store": STORE | {"force_destroy": "yes"}}, "is neither true nor false", id="yes-for-true"),
        pytest.param({"store": STORE | {"project": "my-project"}}, "store.project: ", id="project-is-a-name"),
        pytest.param({"store": STORE | {"keys": "AAAAAAAA"}}, "store.keys: ", id="keys-are-no-list"),
        pytest.param({"store": STORE | {"keys": ["a b"]}}, 'store.keys: "a b" is no access key', id="bad-key"),
        pytest.param({"store": STORE | {"take_over": "fleet"}}, '"fleet" is no fleet\'s id', id="bad-fleet"),
        pytest.param(watched(write_url=None), "monitoring.write_url: missing", id="nowhere-to-write"),
        pytest.param(watched(write_url="http://m.example/write"), "is no address to write to", id="without-tls"),
        pytest.param(watched(write_url="https://m.example"), "is no address to write to", id="no-path"),
        pytest.param(watched(write_url="https://me:pw@m.example/w"), "is no address to write to", id="password"),
        pytest.param(watched(write_url="https://m.example/a,b"), "is no address to write to", id="two-addresses"),
        pytest.param(watched(ca_certificate="PEM"), "is no certificate", id="no-certificate"),
        pytest.param(watched(ca_certificate=BROKEN), "is no certificate", id="certificate-cut-short"),
        pytest.param(watched(ca_certificate=WITH_KEY), "is no certificate, or not that alone", id="key-beside-it"),
        pytest.param(watched(password="x"), "monitoring.password: ", id="what-there-is-not"),
        pytest.param({"store": STORE, "monitoring": "https://m.example/w"}, "is no object", id="monitoring-is-text"),
        pytest.param({"store": STORE, "model": {"name": "x"}}, "model: ", id="key-of-another-kind"),
        pytest.param({"store": STORE, "s3_access_key_id": "AKIA"}, "s3_access_key_id: stands in clear", id="in-clear"),
        pytest.param(
            {"store": STORE, "s3_access_key_id": Encrypted()}, "s3_secret_access_key: missing beside", id="half-a-pair"
        ),
    ],
)
def test_a_mistake_is_told_with_what_is_right(raw: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_platform({"kind": "platform", **raw})
    assert any(expected in problem for problem in caught.value.problems), caught.value.problems


# What a platform gives

FLEET = a_fleet()
GIVEN = {
    "fleet_id": FLEET.id,
    "ca_certificate": FLEET.ca_certificate,
    "sign": FLEET.sign,
    "observe": FLEET.observe,
    "store": {"bucket": "team-models", "location": "fsn1"},
}


def test_what_a_platform_gives_is_taken_as_it_is() -> None:
    given = parse_fleet({"fleet": GIVEN, "bucket": "team-models"}, "platform")
    assert (given.fleet, given.store) == (FLEET, StoreAddress("team-models", "fsn1"))
    assert given.monitoring is None, "a platform brought up by an earlier version gives none"


@pytest.mark.parametrize("own", [None, FLEET.ca_certificate], ids=["public-ca", "own-ca"])
def test_where_metrics_go_is_taken_as_it_is(own: str | None) -> None:
    target = WriteTarget("https://m.example/api/v1/write", own)
    given = parse_fleet({"fleet": GIVEN | {"monitoring": target.to_props()}}, "platform")
    assert given.monitoring == target


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        pytest.param({}, "bring it up first: pulumi up -s team", id="not-up-yet"),
        pytest.param({"endpoint": "https://x"}, "it is no platform", id="a-gpu-stack"),
        pytest.param({"fleet": {}}, "another passphrase", id="cannot-be-decrypted"),
        pytest.param({"fleet": GIVEN | {"sign": {}}}, "another passphrase", id="a-secret-cannot-be-decrypted"),
        pytest.param({"fleet": "c0ffee12"}, "is not what a platform gives", id="text"),
        pytest.param({"fleet": GIVEN | {"store": None}}, "is not what a platform gives", id="no-store"),
        pytest.param({"fleet": GIVEN | {"fleet_id": "c0ffee1"}}, "fleet_id in output", id="short-id"),
        pytest.param({"fleet": GIVEN | {"ca_certificate": "PEM"}}, "ca_certificate in output", id="no-certificate"),
        pytest.param({"fleet": GIVEN | {"sign": SIGN[:-1]}}, "sign in output", id="short-key"),
        pytest.param({"fleet": GIVEN | {"observe": None}}, "observe in output", id="no-key"),
        pytest.param(
            {"fleet": GIVEN | {"observe": keys.observe_key("00" * 32)}}, "does not derive", id="key-of-another-fleet"
        ),
        pytest.param({"fleet": GIVEN | {"store": {"bucket": "B"}}}, "store.bucket in output", id="bad-bucket"),
        pytest.param(
            {"fleet": GIVEN | {"store": {"bucket": "models", "location": "mars"}}}, "store.location", id="bad-location"
        ),
        pytest.param({"fleet": GIVEN | {"monitoring": "x"}}, "is not what a platform gives", id="monitoring-is-text"),
        pytest.param({"fleet": GIVEN | {"monitoring": {}}}, "monitoring.write_url in output", id="nowhere-to-write"),
        pytest.param(
            {"fleet": GIVEN | {"monitoring": {"write_url": "https://m.example/w", "ca_certificate": BROKEN}}},
            "monitoring.ca_certificate in output",
            id="no-certificate-of-the-receiver",
        ),
        pytest.param(
            {"fleet": GIVEN | {"store": GIVEN["store"] | {"endpoint": "http://x"}}},  # type: ignore[operator]
            "store.endpoint",
            id="endpoint-without-tls",
        ),
    ],
)
def test_what_cannot_be_used_is_told_and_no_secret_repeated(outputs: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_fleet(outputs, "team")
    assert expected in str(caught.value)
    assert all(problem.startswith("platform: ") for problem in caught.value.problems)
    assert SIGN[:-1] not in str(caught.value)
