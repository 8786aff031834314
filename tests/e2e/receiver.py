"""The far end of remote write: a real Prometheus behind a gate that lets in machines of one fleet, and only to write.

What a platform's own gateway is to be, made of a Caddy: TLS with a certificate of its own authority, a client
certificate asked for, and one request let through.
"""

import json
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import httpx

from dynamic_providers.lease.certificates import make_ca, sign_leaf
from dynamic_providers.lease.monitoring import WriteTarget
from dynamic_providers.store.binaries import CADDY, find_binary
from tests.e2e import prometheus

ADDRESS = "127.0.0.1"
SIGN = "5e" * 32
PATIENCE_SECONDS = 120.0
"""For what takes a second on a machine with nothing else to do."""

# Machines catch up after an outage one after the other: what an older sample may be older than the newest is an hour
# unless Prometheus is told otherwise, and a buffer is meant for two.
CONFIG = "storage: {tsdb: {out_of_order_time_window: 3h}}\n"

Series = frozenset[tuple[str, str]]
"""The labels of a series, its name among them."""


class Receiver:
    """A Prometheus and its gate.

    Args:
        folder: Where their files lie.
        ca_certificate: PEM of the authority whose certificates the gate lets in.

    Attributes:
        target: What a machine is told of it.
    """

    def __init__(self, folder: Path, ca_certificate: str) -> None:
        self._folder, self._ca = folder, ca_certificate
        now = datetime.now(UTC)
        own = make_ca(SIGN, now)
        self._leaf = sign_leaf(
            SIGN, own, uid="receiver", instance_id=0, address=ADDRESS, expires_at=now + timedelta(days=1)
        )
        self._port, self._gate_port = _free_ports(2)
        self.target = WriteTarget(f"https://{ADDRESS}:{self._gate_port}/api/v1/write", own)
        self._api = httpx.Client(base_url=f"http://{ADDRESS}:{self._port}", timeout=PATIENCE_SECONDS, trust_env=False)
        self._gate: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        prometheus.build()
        with ExitStack() as undo:
            undo.enter_context(self._api)
            undo.callback(self.stop_prometheus)
            self.start_prometheus()
            undo.callback(self.close_gate)
            self.open_gate()
            self._stack = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start_prometheus(self) -> None:
        """Take what is written; what was taken before is still there."""
        (self._folder / "prometheus.yml").write_text(CONFIG)
        words = ("--config.file=prometheus.yml", "--storage.tsdb.path=tsdb", "--web.enable-remote-write-receiver")
        with (self._folder / "prometheus.log").open("ab") as log:
            self._server = subprocess.Popen(
                [str(prometheus.prometheus()), *words, f"--web.listen-address={ADDRESS}:{self._port}"],
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        wait_for(self._is_ready, "Prometheus")

    def stop_prometheus(self) -> None:
        """Die behind the gate, which goes on listening."""
        if self._server:
            self._server.kill()
            self._server.wait()
            self._server = None

    def open_gate(self) -> None:
        """Let machines in."""
        files = {
            "gate.json": json.dumps(self._gate_config(), indent=1),
            "certificate.pem": self._leaf.certificate,
            "key.pem": self._leaf.private_key,
            "fleet.pem": self._ca,
        }
        for name, text in files.items():
            (self._folder / name).write_text(text)
        with (self._folder / "gate.log").open("ab") as log:
            self._gate = subprocess.Popen(
                [str(find_binary(CADDY)), "run", "--config", "gate.json"],
                cwd=self._folder,
                env={"HOME": str(self._folder)},
                stdout=log,
                stderr=log,
            )
        wait_for(lambda: _listens(self._gate_port), "the gate")

    def close_gate(self) -> None:
        """Be away: nobody listens any more, and what was open is cut."""
        if self._gate:
            self._gate.kill()
            self._gate.wait()
            self._gate = None

    def gate_log(self) -> list[dict[str, Any]]:
        """Return the requests that the gate has answered."""
        lines = (self._folder / "gate.log").read_text().splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [line for line in found if line["msg"] == "handled request"]

    def series(self) -> set[Series]:
        """Return all that has been written."""
        now = time.time()
        asked = {"match[]": '{__name__=~".+"}', "start": str(now - 3600), "end": str(now + 60)}
        return {frozenset(labels.items()) for labels in self._get("series", asked)}

    def values(self, selector: str) -> list[float]:
        """Return every value of one series, in the order of time.

        Raises:
            ValueError: There is not exactly one.
        """
        (only,) = self._get("query", {"query": f"{selector}[1h]"})["result"] or [{"values": []}]
        return [float(value) for _, value in only["values"]]

    def _get(self, what: str, asked: Mapping[str, str]) -> Any:
        answer = self._api.get(f"/api/v1/{what}", params=dict(asked))
        answer.raise_for_status()
        return answer.json()["data"]

    def _is_ready(self) -> bool:
        try:
            return self._api.get("/-/ready").is_success
        except httpx.TransportError:
            return False

    def _gate_config(self) -> dict[str, Any]:
        write = {"handler": "reverse_proxy", "upstreams": [{"dial": f"{ADDRESS}:{self._port}"}]}
        asks = {"trusted_ca_certs_pem_files": ["fleet.pem"], "mode": "require_and_verify"}
        server = {
            "listen": [f"{ADDRESS}:{self._gate_port}"],
            "automatic_https": {"disable": True},
            "strict_sni_host": False,  # a bare address sends no name
            "tls_connection_policies": [{"certificate_selection": {"any_tag": ["own"]}, "client_authentication": asks}],
            "logs": {},
            "routes": [
                {"match": [{"method": ["POST"], "path": ["/api/v1/write"]}], "handle": [write]},
                {"handle": [{"handler": "static_response", "status_code": 404}]},
            ],
        }
        own = {"certificate": "certificate.pem", "key": "key.pem", "tags": ["own"]}
        apps = {"http": {"servers": {"gate": server}}, "tls": {"certificates": {"load_files": [own]}}}
        return {"admin": {"disabled": True, "config": {"persist": False}}, "apps": apps}


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what}: nothing of it in {PATIENCE_SECONDS:.0f} s"
        time.sleep(0.1)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((ADDRESS, port)) == 0


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody has just now; each taken at once, so that no two are the same."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((ADDRESS, 0))
        return [int(probe.getsockname()[1]) for probe in probes]
