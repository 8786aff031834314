"""The metrics' way out: what `vmagent` on a machine is started from.

It scrapes through the front door, as anybody with the scrape token may: it cannot dial a unix socket, and nothing of
ours listens on loopback. It writes with the machine's own certificate, so that there is nothing to hand out or revoke.
"""

import json
import shlex
from collections.abc import Mapping

from bootstrap.steps import DOOR_PORT
from dynamic_providers.lease.monitoring import WriteTarget
from dynamic_providers.lease.register import NOT_PUSHED

PAGES = {"vllm": "/metrics/vllm", "host": "/metrics/host"}
"""Job → path at the front door."""

SCRAPE_SECONDS = 15
"""How often; a series is with the receiver after this and a second or two."""

BUFFER = "64MiB"
"""What waits on the disk while the receiver is away; the oldest goes first.

Tried with vmagent 1.79.5: the 370 lines of vLLM's page take 8 kB a scrape, two hours of them 4 MB; eight GPUs and
every route in use come to a few times that. The cap counts what waits, whatever its help says of 500 MB: the file
itself shrinks only when all has been sent, and is followed by another at 512 MiB, which no lease comes near.
"""

MEMORY = "32MiB"
"""For its caches. By default it takes 60 % of the host's."""

DROPPED = "|".join((*NOT_PUSHED, ".+_created"))
"""Names that are not pushed. The settings of the engine are 40 labels: a receiver that takes no more than 30 (Mimir's
default) refuses all that comes with them. Moments of creation stand beside each counter, and nothing asks for them."""


def render_push(
    target: WriteTarget, *, labels: Mapping[str, str], scrape_token: str, ca_certificate: str, vmagent: str
) -> dict[str, str]:
    """Return the files, by name, that the program `push` is started from.

    Args:
        target: Where to write. No secret in it: it stands in a command line.
        labels: Put on every series: those of `register.PUSH_LABELS`.
        scrape_token: Opens `/metrics/*` of the machine's own front door.
        ca_certificate: PEM of the fleet's authority, which signed the front door's certificate.
        vmagent: The program, as seen from the working directory.
    """
    return {
        "run": _render_run(target, vmagent),
        "scrape.yaml": _render_scrape(labels),
        "scrape-token": scrape_token,
        "ca.pem": ca_certificate,
        "write-ca.pem": target.ca_certificate or "",  # there in any case: a file left over would tell of a change
    }


def _render_run(target: WriteTarget, vmagent: str) -> str:
    """Return the script that becomes vmagent.

    One queue, because Prometheus takes the samples of a series in their order only. The certificate is the front
    door's: vmagent reads it again when it changes (tried), and needs no restart then.
    """
    arguments = [
        "-httpListenAddr=",
        f"-memory.allowedBytes={MEMORY}",
        "-promscrape.config=../bundle/push/scrape.yaml",
        f"-remoteWrite.url={target.write_url}",
        "-remoteWrite.tlsCertFile=../bundle/door/certificate.pem",
        "-remoteWrite.tlsKeyFile=../bundle/door/key.pem",
        "-remoteWrite.queues=1",
        "-remoteWrite.tmpDataPath=../push-buffer",
        f"-remoteWrite.maxDiskUsagePerURL={BUFFER}",
    ]
    if target.ca_certificate is not None:
        arguments.append("-remoteWrite.tlsCAFile=../bundle/push/write-ca.pem")
    return f"""\
export GOMAXPROCS=1
export DOOR="${{GPU_BIND_ADDRESS:-127.0.0.1}}:{DOOR_PORT}"
exec {shlex.quote(vmagent)} {shlex.join(arguments)}
"""


def _render_scrape(labels: Mapping[str, str]) -> str:
    """Return vmagent's configuration: JSON is YAML, and quotes every label rightly. Files are named from beside it.

    The door's address is the same on every machine: `instance`, by which dashboards tell targets apart, is the
    instance's id in its place.
    """
    jobs = [
        {
            "job_name": job,
            "scheme": "https",
            "metrics_path": path,
            "static_configs": [{"targets": ["%{DOOR}"], "labels": {"instance": labels["instance_id"]}}],
            "metric_relabel_configs": [{"source_labels": ["__name__"], "regex": DROPPED, "action": "drop"}],
            "authorization": {"type": "Bearer", "credentials_file": "scrape-token"},
            "tls_config": {"ca_file": "ca.pem", "server_name": labels["uid"]},
        }
        for job, path in PAGES.items()
    ]
    settings = {"scrape_interval": f"{SCRAPE_SECONDS}s", "external_labels": dict(labels)}
    return json.dumps({"global": settings, "scrape_configs": jobs}, indent=1)
