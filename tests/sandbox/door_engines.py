"""What stands behind a front door under test: the vLLM stub, or an engine that tells what it was sent."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer

import httpx

from tests.sandbox.door_world import BEARER, PATIENCE_SECONDS, Door, wait_for

STUB = Path(__file__).parent / "vllm_stub" / "vllm"


@contextmanager
def stub_engine(door: Door, model: Path, tokens_per_second: float) -> Iterator[httpx.Client]:
    """Run the vLLM stub behind the door; yield a client that asks it directly."""
    environment = {**os.environ, "STUB_START_SECONDS": "0", "STUB_TOKENS_PER_SECOND": str(tokens_per_second)}
    command = [str(STUB), "serve", str(model), "--uds", "engine.sock", "--served-model-name", "tiny"]
    with subprocess.Popen(command, cwd=door.run, env=environment, stdout=subprocess.DEVNULL) as process:
        # By the folder's number: a socket's path is short.
        folder = os.open(door.run, os.O_PATH)
        transport = httpx.HTTPTransport(uds=f"/proc/self/fd/{folder}/engine.sock")
        with httpx.Client(transport=transport, base_url="http://vllm", timeout=PATIENCE_SECONDS) as client:
            try:
                wait_for(lambda: door.ask("GET /health", BEARER).status == 200, "the engine")
                yield client
            finally:
                process.kill()
                os.close(folder)


def running(engine: httpx.Client) -> float:
    """Return how many requests the engine has in its hands, by its own gauges."""
    gauges = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
    lines = engine.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(gauges))


class Quiet(ThreadingUnixStreamServer):
    """A server that does not print what becomes of clients that go away."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing."""


class Engine:
    """An engine in the door's working directory that tells what it was sent, and counts it.

    Args:
        run: The door's.
        name: Of its socket.

    Attributes:
        go_on: Cleared, it answers nothing until it is set.
        silence_seconds: How long it is silent before each piece of its answer.
        pieces: What it streams instead of telling what it was sent.
    """

    def __init__(self, run: Path, name: str = "engine.sock") -> None:
        self.path, self.connections, self.go_on = run / name, 0, threading.Event()
        self.silence_seconds, self.pieces = 0.0, list[bytes]()
        self.go_on.set()
        self.requests: list[str] = []

    def __enter__(self) -> "Engine":
        told = self

        class Echo(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"  # a connection each

            def setup(self) -> None:
                told.connections += 1
                super().setup()

            def answer(self) -> None:
                told.requests.append(f"{self.command} {self.path}")
                self.read_body()
                told.go_on.wait()
                said = {"line": f"{self.command} {self.path}", "headers": dict(self.headers)}
                pieces = told.pieces or [json.dumps(said).encode()]
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream" if told.pieces else "application/json")
                if not told.pieces:
                    self.send_header("Content-Length", str(len(pieces[0])))
                self.end_headers()
                for piece in pieces:
                    self.wfile.flush()
                    time.sleep(told.silence_seconds)
                    self.wfile.write(piece)

            do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815  (the base class's way)

            def read_body(self) -> None:
                if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                    self.rfile.read(int(self.headers.get("Content-Length") or 0))
                    return
                while size := int(self.rfile.readline() or b"0", 16):
                    self.rfile.read(size + 2)

            def address_string(self) -> str:
                return "unix"

            def log_message(self, format: str, *args: object) -> None:
                """Print nothing."""

        folder = os.open(self.path.parent, os.O_PATH)  # a socket's path is short
        try:
            self.server = Quiet(f"/proc/self/fd/{folder}/{self.path.name}", Echo)
        finally:
            os.close(folder)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
        self.path.unlink()
