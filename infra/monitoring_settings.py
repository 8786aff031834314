"""`monitoring`: where the machines' metrics are written, as a platform's stack file says it and its output gives it."""

import re

from dynamic_providers.lease.monitoring import WriteTarget
from infra.fields import Section

MONITORING_KEYS = ("write_url", "ca_certificate")
_CERTIFICATE = r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----"
MONITORING_EXAMPLE = "{write_url: https://<host>/api/v1/write}"


def parse_monitoring(top: Section) -> WriteTarget | None:
    """Return where a platform's stack file has metrics written; None where it says nothing of them."""
    if "monitoring" not in top:
        return None
    section = top.section("monitoring", MONITORING_KEYS, MONITORING_EXAMPLE)
    return WriteTarget(
        write_url=section.required_text("write_url", "write https://<host>/api/v1/write", write_url_problem),
        ca_certificate=section.text("ca_certificate", None, "write the certificate as PEM", certificate_problem),
    )


def write_url_problem(text: str) -> str:
    """Check the address of a receiver.

    No user, no query: nothing secret stands in a command line. No comma: vmagent would read two addresses. No IPv6
    address: vmagent dials IPv4 unless told otherwise, and machines on the market have nothing else.
    """
    fits = re.fullmatch(r"https://[A-Za-z0-9.-]+(:\d{1,5})?/[\w.~/-]+", text, re.ASCII)
    return "" if fits else "is no address to write to; write https://<host>/api/v1/write, with a port if need be"


def certificate_problem(text: str) -> str:
    """Check one certificate or several, PEM: who cannot read them on the machine would write nothing.

    And nothing else beside them: it goes to every machine, and a file of certificates may hold their key.
    """
    if not re.fullmatch(rf"(?:\s*{_CERTIFICATE})+\s*", text):
        return "is no certificate, or not that alone; write it as PEM, from -----BEGIN CERTIFICATE----- on, and no key"
    from cryptography import x509  # slow to import, and few write one

    try:
        x509.load_pem_x509_certificates(text.encode())
    except ValueError:
        return "is no certificate; write it as PEM, from -----BEGIN CERTIFICATE----- on"
    return ""
