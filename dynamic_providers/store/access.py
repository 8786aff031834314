"""The keys of the bucket: where they are found, and a session of boto3 with them."""

import os
from dataclasses import dataclass
from typing import Any

from dynamic_providers.errors import StoreError


@dataclass(frozen=True)
class AccessKeys:
    """A pair of keys for the bucket, and where they came from, for messages."""

    access_key_id: str
    secret_access_key: str
    source: str = "the stack's settings"
    session_token: str | None = None


def find_keys(profile: str | None = None, keys: AccessKeys | None = None) -> AccessKeys | str:
    """Return the keys to use, or the name of the profile that holds them: environment, *profile*, *keys*.

    Raises:
        StoreError: There are none.
    """
    access, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if access and secret:
        return AccessKeys(access, secret, "AWS_ACCESS_KEY_ID", os.environ.get("AWS_SESSION_TOKEN"))
    if access or secret:
        lacking = "AWS_SECRET_ACCESS_KEY" if access else "AWS_ACCESS_KEY_ID"
        raise StoreError(f"{lacking} is not set, but the other one of the pair is: set both, or neither")
    found = profile or os.environ.get("AWS_PROFILE") or keys
    if found is None:
        raise StoreError(
            "no keys for the bucket. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (Hetzner Console: project, "
            "Security, S3 credentials),\n  or name a profile of the AWS credentials file as `store.profile`, or put "
            "them into the stack:\n  pulumi config set --secret s3_access_key_id … and s3_secret_access_key …"
        )
    return found


def open_session(keys: AccessKeys | str) -> Any:
    """Return a session with these keys, or with those of a profile."""
    import boto3
    from botocore.session import Session

    from dynamic_providers.store.loader import SlimLoader

    session = Session(profile=keys if isinstance(keys, str) else None)
    session.register_component("data_loader", SlimLoader(include_default_search_paths=True))
    if not isinstance(keys, str):
        session.set_credentials(keys.access_key_id, keys.secret_access_key, token=keys.session_token)
    return boto3.Session(botocore_session=session)
