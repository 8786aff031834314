"""Where a machine's metrics go."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class WriteTarget:
    """A receiver of Prometheus' remote write that knows a machine by its certificate.

    Attributes:
        write_url: Where to write, in full: `https://<host>/api/v1/write`.
        ca_certificate: PEM of the authority that signed the receiver's own certificate; None: one that everybody knows.
    """

    write_url: str
    ca_certificate: str | None = None

    @classmethod
    def from_props(cls, props: Mapping[str, Any]) -> Self:
        """Read it as Pulumi keeps it; a key that another version wrote is passed over."""
        return cls(props["write_url"], props.get("ca_certificate"))

    def to_props(self) -> dict[str, str]:
        """Return what `from_props` reads: Pulumi keeps no None."""
        known = {"write_url": self.write_url}
        return known if self.ca_certificate is None else known | {"ca_certificate": self.ca_certificate}
