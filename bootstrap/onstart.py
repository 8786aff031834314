"""The script that a container runs at each start: what there is of ours before anybody has logged in.

It is public, for the market's API shows it: no secret is in it.
"""

import base64
import gzip
from datetime import datetime, timedelta
from importlib import resources

from bootstrap.render import ROOT

CHARACTERS = 4048
"""Source: vast-ai/docs api-reference/openapi.yaml, introduction: the limit of `onstart`."""


def render_onstart(boot: timedelta, stale: timedelta, deadline: datetime) -> str:
    """Return the script: it keeps the container's own key, arms the switch, and starts again what ran before.

    Args:
        boot: From the container's start; by then an agent must have taken over.
        stale: So long an agent may be silent.
        deadline: The end of *boot* where the container starts late.
    """
    limits = f"{boot.total_seconds():.0f} {stale.total_seconds():.0f} {deadline.timestamp():.0f}"
    # Given as an argument, so that a full disk is no reason for the switch not to be there.
    return f"""\
umask 077
root={ROOT}
mkdir -p "$root"
cd "$root"
env -0 >container.env.new && mv container.env.new container.env
setsid bash -c "$(base64 -d <<'END' | gzip -d
{_packed_switch()}
END
)" switch.sh {limits} </dev/null >>switch.log 2>&1 &
if [ -e bundle/host/start.py ]; then
  python3 bundle/host/start.py </dev/null >>onstart.log 2>&1
fi
"""


def _packed_switch() -> str:
    script = (resources.files("bootstrap.host") / "switch.sh").read_bytes()
    return base64.b64encode(gzip.compress(script, mtime=0)).decode()
