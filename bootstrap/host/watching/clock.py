"""The machine's clocks.

Runs on the machine: standard library only, Python 3.11.
"""

import time
from pathlib import Path

from bootstrap.host.watching.moments import Moment

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def read_moment() -> Moment:
    """Return the moment that it is."""
    return Moment(BOOT_ID.read_text().strip(), time.clock_gettime(time.CLOCK_BOOTTIME), time.time())
