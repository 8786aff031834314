"""Object storage on loopback: a real S3 server (SeaweedFS) behind TLS of its own authority."""

import ipaddress
import json
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ADDRESS = "127.0.0.1"
REGION = "fsn1"
START_LIMIT = timedelta(seconds=40)  # about 3 s on an idle machine
PORTS = ("s3", "s3.grpc", "master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc")

# Kills weed as soon as our end of its stdin closes: on stop(), and when this process is killed as well.
# Not TERM: weed then takes 25 s to end, and nothing in it is worth keeping.
KEEPER = 'exec 3<&0; "$@" 3<&- & weed=$!; { cat <&3 >/dev/null; kill -KILL $weed; } & wait $weed'


class AddressInUseError(RuntimeError):
    """A port that was free is not any more."""


class Storage:
    """An S3 server that lives as long as the `with` block, and a fresh pair of keys for it.

    Args:
        root: Folder for its data; None for a temporary one that goes with it.

    Attributes:
        endpoint: `https://127.0.0.1:<port>`.
        ca_path: PEM file of the authority that signed its certificate.
        access_key: Access key id.
        secret_key: Secret access key.
        reader: Id and secret of a key that may read objects, and nothing else.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._given_root = root
        self._stack = ExitStack()
        self.access_key = secrets.token_hex(10)
        self.secret_key = secrets.token_hex(20)
        self.reader = (secrets.token_hex(10), secrets.token_hex(20))
        self.endpoint = ""
        self.ca_path = Path()

    @property
    def environment(self) -> dict[str, str]:
        """Variables that turn every S3 client here."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_CA_BUNDLE": str(self.ca_path),
            "AWS_REGION": REGION,
        }

    def start(self) -> Self:
        """Start the server and return when it takes objects."""
        for _ in range(2):
            try:
                return self._start()
            except AddressInUseError:  # somebody took a free port before weed did
                continue
        return self._start()

    def _start(self) -> Self:
        with ExitStack() as undo:
            root = self._given_root or Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="storage-")))
            (root / "data").mkdir(parents=True, exist_ok=True)
            self.ca_path = _write_certificates(root)
            _write_identities(root / "s3.json", (self.access_key, self.secret_key), self.reader)
            ports = _free_ports()
            self.endpoint = f"https://{ADDRESS}:{ports['s3']}"
            undo.callback(_remove_sockets, ports)
            log = undo.enter_context((root / "weed.log").open("wb"))
            process = subprocess.Popen(
                ["sh", "-c", KEEPER, "sh", *_weed_command(ports)],
                cwd=root,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            undo.callback(_end, process)
            self._wait_until_ready(process, ports["master"], root / "weed.log")
            self._stack = undo.pop_all()
        return self

    def stop(self) -> None:
        """End the server at once; its data goes too if it was in a temporary folder."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_until_ready(self, process: subprocess.Popen[bytes], master_port: int, log: Path) -> None:
        deadline = time.monotonic() + START_LIMIT.total_seconds()
        context = ssl.create_default_context(cafile=str(self.ca_path))
        # A place for an object is promised only once the volume server is known; S3 listens earlier.
        for url in (f"{self.endpoint}/healthz", f"http://{ADDRESS}:{master_port}/dir/assign"):
            while not _answers(url, context):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise _start_error(log.read_text(errors="replace"))
                time.sleep(0.05)


def _start_error(log: str) -> RuntimeError:
    tail = "\n".join(log.splitlines()[-15:])
    kind = AddressInUseError if "address already in use" in log else RuntimeError
    return kind(f"object storage does not start; the end of its log:\n{tail}")


def _weed_command(ports: dict[str, int]) -> list[str]:
    beside = Path(sys.executable).with_name("weed")
    weed = str(beside) if beside.exists() else shutil.which("weed")
    if weed is None:
        raise RuntimeError("no `weed` on PATH: install the development dependencies (make setup)")
    options = {
        "dir": "data",
        "ip": ADDRESS,
        "ip.bind": ADDRESS,
        "filer": "true",
        "filer.localSocket": "filer.sock",
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": "1024",
        "s3": "true",
        "s3.autoCreateBucket": "false",  # a bucket that was not made is missing, as anywhere else
        "s3.cert.file": "server.pem",
        "s3.config": "s3.json",
        "s3.iam": "false",
        "s3.key.file": "server.key",
        "s3.localSocket": "s3.sock",
        "s3.port.iceberg": "0",
        "s3.port.lance": "0",
        "volume.max": "100",
    }
    for name in PORTS:
        role, _, kind = name.partition(".")
        options[f"{role}.port.grpc" if kind else f"{role}.port"] = str(ports[name])
    return [weed, "-logtostderr=true", "server", *(f"-{key}={value}" for key, value in options.items())]


def _free_ports() -> dict[str, int]:
    """Return ports that are free now, all different because they are held open together."""
    with ExitStack() as held:
        ports = {}
        for name in PORTS:
            listener = held.enter_context(socket.socket())
            listener.bind((ADDRESS, 0))
            ports[name] = listener.getsockname()[1]
        return ports


def _answers(url: str, context: ssl.SSLContext) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(url, timeout=2) as response:
            return b'"error"' not in response.read()
    except OSError:  # refused, not speaking yet, or an HTTP error
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait(timeout=10)


def _remove_sockets(ports: dict[str, int]) -> None:
    """Remove what a killed weed leaves: its gRPC sockets, always in /tmp whatever TMPDIR says."""
    for name, port in ports.items():
        if name.endswith(".grpc"):
            Path(f"/tmp/seaweedfs-{name.removesuffix('.grpc')}-grpc-{port}.sock").unlink(missing_ok=True)


def _write_identities(path: Path, operator: tuple[str, str], reader: tuple[str, str]) -> None:
    may = {"operator": ["Admin", "Read", "Write", "List", "Tagging"], "reader": ["Read"]}
    keys = {"operator": operator, "reader": reader}
    identities = [
        {"name": name, "credentials": [{"accessKey": keys[name][0], "secretKey": keys[name][1]}], "actions": actions}
        for name, actions in may.items()
    ]
    path.write_text(json.dumps({"identities": identities}))
    path.chmod(0o600)


def _write_certificates(root: Path) -> Path:
    """Write server.pem and server.key for the loopback address; return the authority's PEM file."""
    ca_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = _name("sandbox object storage authority")
    ca = (
        _certificate(ca_name, ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(ADDRESS)), x509.DNSName("localhost")])
    server = (
        _certificate(_name(ADDRESS), ca_name, server_key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .add_extension(names, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    ca_path = root / "ca.pem"
    ca_path.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    (root / "server.pem").write_bytes(server.public_bytes(serialization.Encoding.PEM))
    (root / "server.key").write_bytes(
        server_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    (root / "server.key").chmod(0o600)
    return ca_path.resolve()


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _certificate(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=30))
    )
