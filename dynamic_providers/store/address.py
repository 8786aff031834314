"""Where a bucket lies."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class StoreAddress:
    """Where the weights lie."""

    bucket: str
    location: str
    endpoint: str | None = None
    profile: str | None = None

    @classmethod
    def from_props(cls, props: Mapping[str, Any]) -> Self:
        """Read it as Pulumi keeps it; a key that another version wrote is passed over."""
        return cls(**{field.name: props[field.name] for field in fields(cls) if field.name in props})

    def to_props(self) -> dict[str, str]:
        """Return what `from_props` reads: Pulumi keeps no None."""
        return {key: value for key, value in asdict(self).items() if value is not None}
