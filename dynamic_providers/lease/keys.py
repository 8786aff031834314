"""Derived secrets: everything on a machine comes from a fleet key + purpose + uid + instance id.

So the next host never shares a secret with the last one, and whoever adopts a machine derives the same again. Only
the standard library: the reaper, which has nothing else, derives the tokens that it needs.
"""

import base64
import hashlib
import hmac


def derive(secret: str, purpose: str, *parts: str) -> bytes:
    """Return 32 bytes that depend on all of the arguments (HKDF-SHA256 with one block).

    Args:
        secret: A fleet key, hex.
        purpose: What the result is for, such as `client-token`.
        parts: What it is bound to: uid, instance id, a client's name.

    Source: RFC 5869. The parts are joined with their lengths, so that ("ab", "c") and ("a", "bc") differ.
    """
    info = b"".join(len(part.encode()).to_bytes(4) + part.encode() for part in ("gpu-on-demand/1", purpose, *parts))
    key = hmac.new(bytes(32), bytes.fromhex(secret), hashlib.sha256).digest()
    return hmac.new(key, info + b"\x01", hashlib.sha256).digest()


def observe_key(sign: str) -> str:
    """Return the fleet's `observe` key: scrape and control, but no way back to `sign`."""
    return derive(sign, "observe").hex()


def client_token(sign: str, uid: str, instance_id: int, client: str) -> str:
    """Return the bearer token of one client on one machine."""
    return _token(derive(sign, "client-token", uid, str(instance_id), client))


def scrape_token(observe: str, uid: str, instance_id: int) -> str:
    """Return the token that opens `/metrics/*` on one machine."""
    return _token(derive(observe, "scrape-token", uid, str(instance_id)))


def control_token(observe: str, uid: str, instance_id: int) -> str:
    """Return the token that opens `/control/*` on one machine."""
    return _token(derive(observe, "control-token", uid, str(instance_id)))


def _token(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
