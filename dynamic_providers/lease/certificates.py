"""The fleet's certificate authority, a machine's own certificate, and its SSH key.

All keys derive from the fleet's `sign` key; signatures are deterministic (RFC 6979): bootstrapping a machine again
puts byte for byte the same files there. P-256, because the LibreSSL of macOS' curl takes no Ed25519 certificate.
"""

import hashlib
import ipaddress
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dynamic_providers.lease.keys import derive

CA_LIFE = timedelta(days=3650)
CLOCK_SKEW = timedelta(days=1)
"""A new fleet's certificates must hold on a host whose clock is behind, and until a late drain is over."""

# The order of the group of P-256 (SEC 2, section 2.4.2): a private key is a number below it.
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@dataclass(frozen=True)
class Leaf:
    """A machine's own certificate and key, PEM."""

    certificate: str
    private_key: str


def make_ca(sign: str, now: datetime) -> str:
    """Return the self-signed certificate of a new fleet, PEM."""
    key = _p256(sign, "ca")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gpu-on-demand fleet")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(_serial(sign, "ca"))
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _pem(builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True))


def fleet_id(ca_certificate: str) -> str:
    """Return the fleet's id: the first 8 hex digits of its certificate's SHA-256."""
    der = x509.load_pem_x509_certificate(ca_certificate.encode()).public_bytes(serialization.Encoding.DER)
    return hashlib.sha256(der).hexdigest()[:8]


def sign_leaf(
    sign: str, ca_certificate: str, *, uid: str, instance_id: int, address: str, expires_at: datetime
) -> Leaf:
    """Return the certificate of one machine, for TLS server and client use.

    Args:
        sign: The fleet's key, hex.
        ca_certificate: PEM of the certificate that `make_ca` gave for it.
        uid: The lease's; a DNS name in the certificate.
        instance_id: The market's.
        address: Public IP address, the other name.
        expires_at: The lease's end; the certificate outlives it by a day.
    """
    authority = x509.load_pem_x509_certificate(ca_certificate.encode())
    key = _p256(sign, "tls", uid, str(instance_id))
    until = expires_at.replace(microsecond=0) + CLOCK_SKEW
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address)), x509.DNSName(uid)])
    issuer_key = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{uid}/{instance_id}")]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(_serial(sign, "leaf", uid, str(instance_id), address, until.isoformat()))
        .not_valid_before(authority.not_valid_before_utc)
        .not_valid_after(until)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(usages, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key), critical=False)
    )
    certificate = builder.sign(_p256(sign, "ca"), hashes.SHA256(), ecdsa_deterministic=True)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Leaf(_pem(certificate), private.decode())


def ssh_keypair(sign: str, uid: str) -> tuple[str, str]:
    """Return (private, public) SSH key of a lease, in OpenSSH's formats.

    From the uid alone: it must be known before there is an instance.
    """
    key = ed25519.Ed25519PrivateKey.from_private_bytes(derive(sign, "ssh", uid))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private.decode(), f"{public.decode()} gpu-on-demand-{uid}"


def _p256(sign: str, *parts: str) -> ec.EllipticCurvePrivateKey:
    # The bias of reducing 256 bits modulo an order so close to 2**256 is below 2**-32 and of no use to anybody.
    number = int.from_bytes(derive(sign, *parts)) % (_P256_ORDER - 1) + 1
    return ec.derive_private_key(number, ec.SECP256R1())


def _serial(sign: str, *parts: str) -> int:
    return int.from_bytes(derive(sign, "serial", *parts)[:16]) >> 1 | 1  # positive, at most 20 octets (RFC 5280)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
