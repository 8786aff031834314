"""The fleet's certificates, judged by the TLS of Python and by asyncssh, which know nothing of how they were made."""

import asyncio
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import asyncssh
import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from dynamic_providers.clock import Clock
from dynamic_providers.lease.certificates import Leaf, fleet_id, make_ca, sign_leaf, ssh_keypair
from tests.unit.builders import NOW, SIGN, UID

OTHER_SIGN = "5b" * 32
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def a_leaf(ca: str | None = None, *, sign: str = SIGN, address: str = "127.0.0.1", lease: timedelta = 8 * HOUR) -> Leaf:
    """Return a certificate of a machine rented now: the handshakes below go by the real clock."""
    now = Clock().now()
    authority = ca or make_ca(sign, now)
    return sign_leaf(sign, authority, uid=UID, instance_id=4242, address=address, expires_at=now + lease)


def test_made_twice_they_are_the_same_byte_for_byte() -> None:
    first, second = (make_ca(SIGN, NOW) for _ in range(2))
    assert first == second
    leaves = [
        sign_leaf(SIGN, first, uid=UID, instance_id=1, address="203.0.113.7", expires_at=NOW + HOUR) for _ in range(2)
    ]
    assert leaves[0] == leaves[1]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"uid": "ffffffffffff"}, id="uid"),
        pytest.param({"instance_id": 2}, id="instance"),
    ],
)
def test_no_two_machines_share_a_key(change: dict[str, object]) -> None:
    authority = make_ca(SIGN, NOW)
    one = {"uid": UID, "instance_id": 1, "address": "203.0.113.7", "expires_at": NOW + HOUR}
    first, second = (sign_leaf(SIGN, authority, **kwargs) for kwargs in (one, one | change))  # type: ignore[arg-type]
    assert first.private_key != second.private_key


def test_a_longer_lease_is_a_new_certificate_for_the_same_key() -> None:
    authority = make_ca(SIGN, NOW)
    short, long = (
        sign_leaf(SIGN, authority, uid=UID, instance_id=1, address="203.0.113.7", expires_at=NOW + life)
        for life in (HOUR, 2 * HOUR)
    )
    assert short.private_key == long.private_key
    serials = {x509.load_pem_x509_certificate(leaf.certificate.encode()).serial_number for leaf in (short, long)}
    assert len(serials) == 2


def test_a_fleets_id_is_short_and_its_own() -> None:
    ids = {fleet_id(make_ca(sign, now)) for sign in (SIGN, OTHER_SIGN) for now in (NOW, NOW + DAY)}
    assert len(ids) == 4
    assert {len(id_) for id_ in ids} == {8}


def test_a_leaf_lives_a_day_longer_than_its_lease() -> None:
    leaf = sign_leaf(SIGN, make_ca(SIGN, NOW), uid=UID, instance_id=1, address="203.0.113.7", expires_at=NOW + 8 * HOUR)
    assert x509.load_pem_x509_certificate(leaf.certificate.encode()).not_valid_after_utc == NOW + 8 * HOUR + DAY


@pytest.mark.parametrize(
    ("at", "holds"),
    [
        pytest.param(NOW - HOUR, True, id="on-a-host-whose-clock-is-behind"),
        pytest.param(NOW, True, id="at-once"),
        pytest.param(NOW + 9 * HOUR, True, id="during-a-late-drain"),
        pytest.param(NOW + 8 * HOUR + DAY + HOUR, False, id="not-two-days-later"),
        pytest.param(NOW - 2 * DAY, False, id="not-before-the-fleet"),
    ],
)
def test_the_chain_holds_for_client_use_while_the_lease_does(at: datetime, holds: bool) -> None:
    # A second judge, with a clock that can be set: metrics are pushed with the leaf as client certificate.
    authority = make_ca(SIGN, NOW)
    leaf = sign_leaf(SIGN, authority, uid=UID, instance_id=1, address="203.0.113.7", expires_at=NOW + 8 * HOUR)
    trusted = Store([x509.load_pem_x509_certificate(authority.encode())])
    verifier = PolicyBuilder().store(trusted).time(at).build_client_verifier()
    certificate = x509.load_pem_x509_certificate(leaf.certificate.encode())
    if not holds:
        with pytest.raises(VerificationError):
            verifier.verify(certificate, [])
        return
    names = verifier.verify(certificate, []).subjects
    assert names is not None
    assert x509.DNSName(UID) in names


def handshake(folder: Path, leaf: Leaf, trusted: str, *, name: str = "127.0.0.1") -> None:
    """Serve *leaf* on the loopback, connect as a client that trusts *trusted* and asks for *name*."""
    (folder / "leaf.pem").write_text(leaf.certificate + leaf.private_key)
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(folder / "leaf.pem")
    client_side = ssl.create_default_context(cadata=trusted)
    client_side.verify_flags |= ssl.VERIFY_X509_STRICT  # what Python 3.13 does by default

    async def meet() -> None:
        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_side)
        async with server:
            port = server.sockets[0].getsockname()[1]
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_side, server_hostname=name)
            writer.close()
            await writer.wait_closed()

    asyncio.run(meet())


@pytest.mark.parametrize("name", ["127.0.0.1", UID])
def test_a_client_that_knows_the_fleet_accepts_the_machine(tmp_path: Path, name: str) -> None:
    authority = make_ca(SIGN, Clock().now())
    handshake(tmp_path, a_leaf(authority), authority, name=name)


@pytest.mark.parametrize(
    ("leaf", "trusted", "reason"),
    [
        pytest.param(
            lambda: a_leaf(address="127.0.0.2"), SIGN, "IP address mismatch", id="a-certificate-of-another-address"
        ),
        pytest.param(a_leaf, OTHER_SIGN, "certificate verify failed", id="a-machine-of-another-fleet"),
        pytest.param(lambda: a_leaf(lease=-DAY - HOUR / 2), SIGN, "expired", id="a-lease-that-is-over"),
    ],
)
def test_a_client_turns_away(tmp_path: Path, leaf: Callable[[], Leaf], trusted: str, reason: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=reason):
        handshake(tmp_path, leaf(), make_ca(trusted, Clock().now()))


def test_another_key_cannot_sign_for_the_fleet(tmp_path: Path) -> None:
    authority = make_ca(SIGN, Clock().now())
    forged = a_leaf(authority, sign=OTHER_SIGN)
    with pytest.raises(ssl.SSLCertVerificationError, match="signature failure"):
        handshake(tmp_path, forged, authority)


def test_asyncssh_reads_the_ssh_key_and_both_halves_belong_together() -> None:
    private, public = ssh_keypair(SIGN, UID)
    key = asyncssh.import_private_key(private)
    assert key.export_public_key().split()[:2] == public.encode().split()[:2]
    assert public.split()[0] == "ssh-ed25519"
    assert public.split()[2] == f"gpu-on-demand-{UID}"


def test_the_ssh_key_is_the_leases_own_and_always_the_same() -> None:
    pairs = [(SIGN, UID), (SIGN, UID), (SIGN, "ffffffffffff"), (OTHER_SIGN, UID)]
    publics = [ssh_keypair(*pair)[1].split()[1] for pair in pairs]
    assert publics[0] == publics[1]
    assert len(set(publics)) == 3
