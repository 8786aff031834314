"""The account: who may call, what was paid in, and the SSH keys that new instances get."""

import re
from dataclasses import dataclass, field

from tests.sandbox.vast.errors import ApiError

_PUBLIC_KEY = re.compile(r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp\d+|sk-[a-z0-9@.-]+) [A-Za-z0-9+/]+=*( .*)?")


@dataclass
class Account:
    """One account of the market.

    Attributes:
        api_key: Its key; may do everything.
        paid_in: Money that ever came in.
        keys: Public SSH keys, by key id; copied to new instances.
        secrets: Environment variables that every new instance gets.
    """

    api_key: str
    paid_in: float
    keys: dict[int, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    _last_key: int = 500

    def next_key_id(self) -> int:
        self._last_key += 1
        return self._last_key


def parse_public_key(text: object) -> str:
    """Check a public SSH key.

    Raises:
        ApiError: It is none.
    """
    if not isinstance(text, str) or not _PUBLIC_KEY.fullmatch(text.strip()):
        raise ApiError(400, "invalid_args", "Invalid SSH key: give the text of a public key")
    return text.strip()
