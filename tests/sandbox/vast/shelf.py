"""Output that the market keeps for whoever knows its URL."""

import secrets
from dataclasses import dataclass, field

from tests.sandbox.vast.errors import ApiError

READS_TOO_EARLY = 2
"""So often a result is not there yet. The official client asks 30 times, every 0.3 s."""


@dataclass
class Shelf:
    """Output by the number in its URL, which is the only secret that protects it."""

    texts: dict[int, str] = field(default_factory=dict)
    early_reads: dict[int, int] = field(default_factory=dict)

    def keep(self, text: str) -> int:
        number = secrets.randbits(62)
        self.texts[number], self.early_reads[number] = text, READS_TOO_EARLY
        return number

    def read(self, number: int) -> str:
        """Return a text.

        Raises:
            ApiError: There is none, or not yet.
        """
        if number not in self.texts or self.early_reads[number] > 0:
            self.early_reads[number] = self.early_reads.get(number, 0) - 1
            raise ApiError(404, "NoSuchKey", "The specified key does not exist.")
        return self.texts[number]
