"""Derived secrets: the standard's own function, bound to every argument."""

import itertools
import re

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dynamic_providers.lease import keys
from tests.unit.builders import SIGN, UID

OTHER_UID = "ba9876543210"


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param((), id="purpose-alone"),
        pytest.param((UID, "4242", "default"), id="token"),
        pytest.param(("", "ä" * 300), id="empty-long-and-not-ascii"),
    ],
)
def test_a_key_is_what_another_hkdf_makes_of_the_same(parts: tuple[str, ...]) -> None:
    # The derivation as documented, written out: each part behind its length in four bytes.
    info = b"".join(
        len(part.encode()).to_bytes(4, "big") + part.encode() for part in ("gpu-on-demand/1", "purpose", *parts)
    )
    expected = HKDF(hashes.SHA256(), length=32, salt=None, info=info).derive(bytes.fromhex(SIGN))
    assert keys.derive(SIGN, "purpose", *parts) == expected


def test_a_key_never_changes_from_one_release_to_the_next() -> None:
    # Or a new version of the project could not adopt, update or drain what an older one rented.
    assert keys.client_token(SIGN, UID, 4242, "default") == "zupuqq4y7Llngip_v6XSgTG3xh9yQDXc6i9g1PHOak0"
    assert keys.observe_key(SIGN) == "9b0f365755ff484df3a6e2b90bb3d3978273b924660289f9e2bcd442f3cf9192"


def test_every_argument_matters() -> None:
    tokens = [
        keys.derive(SIGN, "a", "b", "c"),
        keys.derive("5b" * 32, "a", "b", "c"),
        keys.derive(SIGN, "x", "b", "c"),
        keys.derive(SIGN, "a", "x", "c"),
        keys.derive(SIGN, "a", "b", "x"),
        keys.derive(SIGN, "a", "b"),
        keys.derive(SIGN, "a", "b", "c", ""),
        keys.derive(SIGN, "a", "bc", ""),
        keys.derive(SIGN, "a", "", "bc"),
        keys.derive(SIGN, "ab", "c"),
    ]
    assert len(set(tokens)) == len(tokens)


def test_no_two_tokens_of_a_fleet_are_alike() -> None:
    observe = keys.observe_key(SIGN)
    machines = list(itertools.product((UID, OTHER_UID), (4242, 4243)))
    tokens = [keys.client_token(SIGN, *machine, client) for machine in machines for client in ("default", "ci")]
    tokens += [keys.scrape_token(observe, *machine) for machine in machines]
    tokens += [keys.control_token(observe, *machine) for machine in machines]
    assert len(set(tokens)) == len(tokens) == 16


def test_a_token_is_text_that_fits_any_header_or_url() -> None:
    token = keys.client_token(SIGN, UID, 4242, "ein Kunde mit Ümlaut")
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", token)


def test_the_observe_key_is_a_key_of_its_own() -> None:
    observe = keys.observe_key(SIGN)
    assert re.fullmatch("[0-9a-f]{64}", observe)
    assert observe != SIGN
