"""What stack files of every kind may hold: the store's address, and secrets in their encrypted form only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynamic_providers.errors import ConfigError
from dynamic_providers.store.address import StoreAddress
from infra import rules
from infra.fields import Section

SECRET_PAIRS = (
    ("s3_access_key_id", "s3_secret_access_key"),
    ("s3_read_access_key_id", "s3_read_secret_access_key"),  # may only read: what a machine is given is signed with it
)
SECRETS = ("vast_api_key", *(key for pair in SECRET_PAIRS for key in pair))
STORE_KEYS = ("bucket", "location", "endpoint", "profile")
BUCKET_KEYS = (*STORE_KEYS, "force_destroy", "project", "keys", "take_over")
"""Of a platform's store, which is its own to keep."""
STORE_EXAMPLE = "{bucket: <name>, location: fsn1}"


@dataclass(frozen=True)
class Encrypted:
    """Stands for a value that the stack file holds encrypted."""


def parse_store(raw: Mapping[str, Any]) -> StoreAddress | None:
    """Return only the store of a stack file of any kind, for who needs no more; None if it names none.

    Raises:
        ConfigError: What is wrong with it.
    """
    if raw.get("store") is None:
        return None
    problems: list[str] = []
    top = Section({"store": raw["store"]}, ("store",), problems)
    store = parse_address(top.section("store", BUCKET_KEYS, STORE_EXAMPLE))
    if problems:
        raise ConfigError(problems)
    return store


def parse_address(store: Section) -> StoreAddress:
    """Return where the store of a stack file is."""
    return StoreAddress(
        bucket=store.required_text("bucket", "write the bucket's name", rules.bucket_problem),
        location=store.text("location", rules.LOCATIONS[0], "write fsn1", rules.location_problem) or rules.LOCATIONS[0],
        endpoint=store.text("endpoint", None, "write a URL", rules.endpoint_problem),
        profile=store.text("profile", None, "write the name of a profile in ~/.aws/credentials"),
    )


def check_secrets(raw: Mapping[str, Any], problems: list[str]) -> None:
    """Turn away keys in clear, and half a pair; a value is never repeated. `credentials.py` reads them."""
    for key in SECRETS:
        if raw.get(key) is not None and not isinstance(raw[key], Encrypted):
            problems.append(
                f"{key}: stands in clear in the stack file; remove it there, make a new key, and use the environment "
                f"or: pulumi config set --secret {key}"
            )
    for key, other in (*SECRET_PAIRS, *(pair[::-1] for pair in SECRET_PAIRS)):
        if key in raw and other not in raw:
            problems.append(f"{other}: missing beside {key}; pulumi config set --secret {other}")
