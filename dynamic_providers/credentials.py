"""The operator's secrets: from the environment first, else from the stack's encrypted config.

The environment first, because plain `pulumi destroy` hands a provider the *old* config: after a key is turned, only
the environment is current (pulumi/pulumi#18756).
"""

import os
from collections.abc import Callable

from dynamic_providers.clock import Clock
from dynamic_providers.errors import ConfigError, StoreError
from dynamic_providers.store.access import AccessKeys
from dynamic_providers.store.address import StoreAddress
from dynamic_providers.store.client import Store
from dynamic_providers.vast.client import URL, VastClient

ReadConfig = Callable[[str], str | None]
"""Returns the stack's config value of a key, decrypted; None where there is none."""


def vast_client(read_config: ReadConfig, clock: Clock | None = None) -> VastClient:
    """Return a client for the account whose key is at hand; `VAST_URL` turns it to another market.

    Raises:
        ConfigError: There is no key.
    """
    key = os.environ.get("VAST_API_KEY") or read_config("vast_api_key")
    if not key:
        raise ConfigError(
            [
                "vast_api_key is not set: export VAST_API_KEY=… (https://cloud.vast.ai/manage-keys/), "
                "or store it encrypted: pulumi config set --secret vast_api_key"
            ]
        )
    return VastClient(key, os.environ.get("VAST_URL") or URL, clock=clock)


def open_store(address: StoreAddress, read_config: ReadConfig) -> Store:
    """Return the bucket at *address*, with the keys that are at hand.

    Raises:
        StoreError: There are none.
    """
    access, secret = read_config("s3_access_key_id"), read_config("s3_secret_access_key")
    keys = AccessKeys(access, secret, "the stack's config") if access and secret else None
    return Store(
        address.bucket,
        location=address.location,
        endpoint=address.endpoint,
        profile=address.profile,
        keys=keys,
        reader=_reader(read_config),
    )


def _reader(read_config: ReadConfig) -> AccessKeys | None:
    """Return the keys that may only read, if there are some."""
    names = ("s3_read_access_key_id", "s3_read_secret_access_key")
    for source, read in (("the environment", _read_environment), ("the stack's config", read_config)):
        access, secret = (read(name) for name in names)
        if access and secret:
            return AccessKeys(access, secret, source)
        if access or secret:
            lacking = names[1] if access else names[0]
            raise StoreError(
                f"{lacking} is not set in {source}, but the other one of the pair is: set both, or neither"
            )
    return None


def _read_environment(key: str) -> str | None:
    return os.environ.get(key.upper())
