"""Secrets under a passphrase, in the format of the real CLI, so that either takes over the other's state.

Source: Pulumi 3.260, pkg/secrets/passphrase and sdk/go/common/resource/config/crypt.go: AES-256-GCM, the key by PBKDF2
over an 8-byte salt; `v1:<salt>:<the word pulumi, encrypted>` proves the passphrase.
"""

import base64
import hashlib
import os
import threading
from pathlib import Path
from typing import Any

from tests.sandbox.engine.errors import EngineError

ROUNDS = 1_000_000
PROOF = "pulumi"


def read_passphrase() -> str:
    """Return the passphrase of the environment; an empty one counts if it was set."""
    if (phrase := os.environ.get("PULUMI_CONFIG_PASSPHRASE")) is not None:
        return phrase
    if path := os.environ.get("PULUMI_CONFIG_PASSPHRASE_FILE"):
        try:
            return Path(path).read_text().strip()
        except OSError as err:
            raise EngineError(f"unable to read PULUMI_CONFIG_PASSPHRASE_FILE: {err}") from err
    raise EngineError(
        "passphrase must be set with PULUMI_CONFIG_PASSPHRASE or PULUMI_CONFIG_PASSPHRASE_FILE environment variables"
    )


class Vault:
    """Encrypts and decrypts for one stack.

    The key takes about half a second of PBKDF2, so a thread derives it while the rest starts.
    """

    def __init__(self, phrase: str, state: str) -> None:
        version, salt, proof = state.split(":", 2)
        if version != "v1":
            raise EngineError("unknown state value")
        self.state = state
        self._proof = proof
        self._key = b""
        self._deriving = threading.Thread(target=self._derive, args=(phrase, base64.b64decode(salt)))
        self._deriving.start()

    @classmethod
    def create(cls, phrase: str) -> "Vault":
        """Return a vault with a fresh salt; its `state` belongs into the stack file."""
        salt = base64.b64encode(os.urandom(8)).decode()
        vault = cls(phrase, f"v1:{salt}:")
        vault._proof = vault.encrypt(PROOF)
        vault.state += vault._proof
        return vault

    def check(self) -> None:
        """Raise unless the passphrase is the one that the stack was made with."""
        self.decrypt(self._proof)

    def encrypt(self, text: str) -> str:
        """Return `v1:<nonce>:<ciphertext>`."""
        nonce = os.urandom(12)
        sealed = self._cipher().encrypt(nonce, text.encode(), None)
        return f"v1:{base64.b64encode(nonce).decode()}:{base64.b64encode(sealed).decode()}"

    def decrypt(self, sealed: str) -> str:
        """Return the text, or raise when the passphrase is another one."""
        from cryptography.exceptions import InvalidTag

        _, nonce, body = sealed.split(":")
        try:
            return str(self._cipher().decrypt(base64.b64decode(nonce), base64.b64decode(body), None).decode())
        except InvalidTag as err:
            raise EngineError("incorrect passphrase") from err

    def _derive(self, phrase: str, salt: bytes) -> None:
        self._key = hashlib.pbkdf2_hmac("sha256", phrase.encode(), salt, ROUNDS, 32)

    def _cipher(self) -> Any:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # late: most commands need no secret

        self._deriving.join()
        return AESGCM(self._key)
