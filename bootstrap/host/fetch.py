"""Fetch the files named in a job by their presigned URLs: in parallel, resumable, checked by SHA-256.

Runs on the machine: standard library only, Python 3.10. The job (`fetch.json`, mode 0600) holds the URLs, which are
secrets as long as they live: none is printed, none becomes a process argument.

A file grows as `<name>.part`, in segments fetched side by side; `<name>.part.done` lists those that are there, so that
a second run goes on where the first one ended. Under its own name stands only what was checked.
"""

import contextlib
import hashlib
import http.client
import json
import os
import queue
import ssl
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SEGMENT_BYTES = 32 * 2**20
"""Large enough that a request's round trip does not count, small enough to lose little."""
CONNECTIONS = 12
"""One stream of an object store gives 50 to 100 MB/s; it takes about twelve to fill 10 Gbit/s."""
HASHERS = 4
"""A core without SHA instructions checks 400 MB/s: several files are checked side by side."""
CHUNK_BYTES = 2**20
RETRIES = 8
BACKOFF_SECONDS = 0.2
BACKOFF_MOST_SECONDS = 10
TIMEOUT_SECONDS = 20
TICK_SECONDS = 0.25
RATE_SECONDS = 5
"""Long enough for a steady number, short enough to see a stall."""

Connections = dict[str, http.client.HTTPConnection]


class FetchError(Exception):
    """A file cannot be had. Kinds: expired, missing, corrupt, network, disk."""

    def __init__(self, kind: str, path: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.path = path


class Part:
    """One file on its way. `done` holds the indexes of the segments that are on the disk."""

    def __init__(self, root: Path, item: dict[str, Any]) -> None:
        self.name: str = item["name"]
        self.url = urllib.parse.urlsplit(item["url"])
        self.sha256: str = item["sha256"]
        self.size: int = item["size"]
        self.mode: int = item.get("mode", 0o600)
        self.path = root / item["path"]
        self.partial = self.path.with_name(self.path.name + ".part")
        self.journal = self.path.with_name(self.path.name + ".part.done")
        self.segments = range(-(-self.size // SEGMENT_BYTES))
        self.done: set[int] = set()
        self.head = f"{self.sha256} {SEGMENT_BYTES}\n"
        self.fd = -1

    def open(self) -> None:
        """Take up what an earlier run left."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.journal.exists() and self.partial.exists():
            first, *rest = self.journal.read_text().split("\n")
            if first == self.head.strip():
                self.done = {int(line) for line in rest if line.isdigit() and int(line) in self.segments}
        if not self.done:
            self.forget()
        self.fd = os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self.fd, self.size)

    def note(self, segment: int) -> None:
        """Write down that a segment is there."""
        with self.journal.open("a") as journal:
            journal.write(f"{segment}\n")
        self.done.add(segment)

    def bytes_done(self) -> int:
        """Return how many bytes are there in whole segments."""
        return sum(self.length(segment) for segment in tuple(self.done))

    def length(self, segment: int) -> int:
        """Return the bytes of a segment; the last one is shorter."""
        return min(SEGMENT_BYTES, self.size - segment * SEGMENT_BYTES)

    def forget(self) -> None:
        """Count nothing of it as there."""
        self.done.clear()
        self.journal.write_text(self.head)

    def close(self) -> None:
        """Let go of the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def keep(self) -> None:
        """Give the checked file its name."""
        self.close()
        os.chmod(self.partial, self.mode)
        os.replace(self.partial, self.path)
        self.journal.unlink()


class Fetch:
    """The threads of one job: connections that fetch segments, hashers that follow them."""

    def __init__(self, parts: list[Part], context: ssl.SSLContext) -> None:
        self.parts = parts
        self.context = context
        self.todo: queue.SimpleQueue[tuple[Part, int] | None] = queue.SimpleQueue()
        self.moved = threading.Condition()
        self.bytes = 0
        self.failure: FetchError | None = None
        self.is_complete = False

    def run(self) -> None:
        """Fetch and check every part, or set `failure`; what is there stays for the next run."""
        workers = [threading.Thread(target=self.work, daemon=True) for _ in range(CONNECTIONS)]
        for worker in workers:
            worker.start()
        for part in self.parts:
            with self.judging(part):
                part.open()
                self.bytes += part.bytes_done()
                self.enqueue(part)
        with ThreadPoolExecutor(HASHERS) as hashers:
            list(hashers.map(self.finish, self.parts))
        for _ in workers:
            self.todo.put(None)
        for worker in workers:
            worker.join(1 if self.failure else None)  # one may hang on a connection that says nothing
        for part in self.parts:
            part.close()
        self.is_complete = not self.failure

    @contextlib.contextmanager
    def judging(self, part: Part) -> Iterator[None]:
        """End the job for what the disk or the bucket does wrong."""
        try:
            yield
        except FetchError as error:
            self.fail(error)
        except OSError as error:  # those of the network never come this far
            self.fail(FetchError("disk", part.name, os.strerror(error.errno or 0)))

    def enqueue(self, part: Part) -> None:
        """Ask for the segments of *part* that are not there."""
        for segment in part.segments:
            if segment not in part.done:
                self.todo.put((part, segment))

    def work(self) -> None:
        """Fetch one segment after the other."""
        connections: Connections = {}
        while (task := self.todo.get()) and not self.failure:
            with self.judging(task[0]):
                self.fetch(*task, connections)
        for connection in connections.values():
            connection.close()

    def fail(self, error: FetchError) -> None:
        """End the job; the first error is the one that counts."""
        with self.moved:
            self.failure = self.failure or error
            self.moved.notify_all()

    def fetch(self, part: Part, segment: int, connections: Connections) -> None:
        """Fetch one segment, again and again while the network fails, from the byte where it broke off."""
        at, left, failures = segment * SEGMENT_BYTES, part.length(segment), 0
        while left and not self.failure:
            try:
                response = ask(part, at, left, connections, self.context)
                while left:
                    chunk = response.read(min(CHUNK_BYTES, left))
                    if not chunk:
                        raise http.client.IncompleteRead(b"", left)
                    write(part, chunk, at)
                    at, left, failures = at + len(chunk), left - len(chunk), 0
                    with self.moved:
                        self.bytes += len(chunk)
            except (http.client.HTTPException, OSError) as error:
                if broken := connections.pop(part.url.netloc, None):
                    broken.close()
                failures += 1
                if failures > RETRIES or isinstance(error, ssl.SSLCertVerificationError):
                    raise FetchError("network", part.name, f"{type(error).__name__}: {error}") from None
                time.sleep(min(BACKOFF_SECONDS * 2**failures, BACKOFF_MOST_SECONDS))
        with self.moved:
            if not left:
                part.note(segment)
            self.moved.notify_all()

    def finish(self, part: Part) -> None:
        """Hash *part* as it grows and keep it if it is right; if it is not, fetch it once more."""
        with self.judging(part):
            for last_try in (False, True):
                digest = self.hash(part)
                if self.failure:
                    return
                if digest == part.sha256:
                    part.keep()
                    return
                with self.moved:
                    self.bytes -= part.size
                part.forget()
                if not last_try:
                    self.enqueue(part)
            raise FetchError("corrupt", part.name, "what the bucket holds is not what its manifest says")

    def hash(self, part: Part) -> str:
        """Return the SHA-256 of *part*, waiting for each segment; empty if the job failed meanwhile."""
        digest = hashlib.sha256()
        for segment in part.segments:
            with self.moved:
                while segment not in part.done:
                    if self.failure:
                        return ""
                    self.moved.wait()
            at, end = segment * SEGMENT_BYTES, segment * SEGMENT_BYTES + part.length(segment)
            while at < end:
                chunk = os.pread(part.fd, min(CHUNK_BYTES, end - at), at)
                if not chunk:
                    raise FetchError("disk", part.name, "the disk lost what was written")
                digest.update(chunk)
                at += len(chunk)
        return digest.hexdigest()


def ask(
    part: Part, at: int, length: int, connections: Connections, context: ssl.SSLContext
) -> http.client.HTTPResponse:
    """Return the answer that carries *length* bytes of *part*, over a connection that is kept for the next."""
    url = part.url
    connection = connections.get(url.netloc)
    if connection is None:
        if url.scheme == "https":
            connection = http.client.HTTPSConnection(url.netloc, timeout=TIMEOUT_SECONDS, context=context)
        else:
            connection = http.client.HTTPConnection(url.netloc, timeout=TIMEOUT_SECONDS)
        connections[url.netloc] = connection
    connection.request("GET", f"{url.path}?{url.query}", headers={"Range": f"bytes={at}-{at + length - 1}"})
    response = connection.getresponse()
    whole = response.getheader("Content-Range", "").rpartition("/")[2]
    if response.status == 206 and whole == str(part.size):
        return response
    said = response.read(4096).decode(errors="replace")
    connection.close()
    if response.status == 206 or response.status == 416:
        raise FetchError("corrupt", part.name, f"the bucket holds {whole or 'another number of'} bytes of it")
    if response.status == 403:
        raise FetchError("expired", part.name, "the store refuses the URL: " + error_code(said))
    if response.status == 404:
        raise FetchError("missing", part.name, "not in the bucket")
    if response.status == 429 or response.status >= 500:
        raise http.client.HTTPException(f"the store answers {response.status}")
    raise FetchError("network", part.name, f"the store answers {response.status} {error_code(said)}")


def error_code(said: str) -> str:
    """Return the code in an S3 error, such as `AccessDenied`; never more, for it may quote the URL."""
    code = said.partition("<Code>")[2].partition("</Code>")[0]
    return code if code.isalnum() else "without saying why"


def write(part: Part, chunk: bytes, at: int) -> None:
    """Write all of *chunk*.

    Raises:
        FetchError: The disk does not take it.
    """
    view = memoryview(chunk)
    try:
        while view:
            written = os.pwrite(part.fd, view, at)
            view, at = view[written:], at + written
    except OSError as error:  # told apart here from those of the network, which are tried again
        raise FetchError("disk", part.name, os.strerror(error.errno or 0)) from None


def tls_context() -> ssl.SSLContext:
    """Return a context that trusts what this machine trusts.

    `SSL_CERT_FILE` is OpenSSL's own variable, `AWS_CA_BUNDLE` that of S3's clients. An image without system
    certificates may still carry certifi: vLLM needs it.
    """
    context = ssl.create_default_context()
    if bundle := os.environ.get("AWS_CA_BUNDLE"):
        context.load_verify_locations(bundle)
    if not context.cert_store_stats()["x509_ca"] and not ssl.get_default_verify_paths().capath:
        try:
            import certifi
        except ImportError:
            return context
        context.load_verify_locations(certifi.where())
    return context


def tell(path: Path, **state: object) -> None:
    """Put the progress where it is read, by rename: a reader never sees half of it."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(state))
    new.replace(path)


def main(root: Path) -> int:
    """Run the job in `run/fetch.json`, telling in `run/fetch.progress.json` how it goes."""
    job = json.loads((root / "run/fetch.json").read_text())
    progress = root / "run/fetch.progress.json"
    wanted = [Part(root, item) for item in job["files"]]
    fetch = Fetch([part for part in wanted if not part.path.exists()], tls_context())
    there = sum(part.size for part in wanted if part.path.exists())
    total = sum(part.size for part in wanted)
    runner = threading.Thread(target=fetch.run, daemon=True)
    runner.start()
    seen = [(time.monotonic(), fetch.bytes)]
    while runner.is_alive():
        runner.join(TICK_SECONDS)
        seen = [*(s for s in seen if s[0] > time.monotonic() - RATE_SECONDS), (time.monotonic(), fetch.bytes)]
        rate = (seen[-1][1] - seen[0][1]) / max(seen[-1][0] - seen[0][0], TICK_SECONDS)
        tell(progress, state="running", job=job["id"], bytes=there + fetch.bytes, total=total, rate=rate)
    failure = fetch.failure
    if failure:
        tell(progress, state="failed", job=job["id"], kind=failure.kind, file=failure.path, message=str(failure))
        print(f"{failure.path}: {failure.kind}: {failure}", flush=True)
    elif fetch.is_complete:
        (root / "run/fetch.json").unlink()  # its URLs have done their work
        tell(progress, state="done", job=job["id"])
    return 0 if fetch.is_complete else 1


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parents[2]))
