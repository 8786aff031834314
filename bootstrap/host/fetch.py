"""Fetch the files named in a job by their presigned URLs: in parallel, resumable, checked by SHA-256.

Runs on the machine: standard library only, Python 3.10. The job (`fetch.json`, mode 0600) holds the URLs, which are
secrets as long as they live: none is printed, none becomes a process argument. How it goes on stands in
`fetch.progress.json`, and once a second, a line of JSON each, in the log.
"""

import contextlib
import json
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bootstrap.host.fetching.job import Job

RATE_SECONDS = 5
"""Long enough for a steady number, short enough to see a stall."""
LINE_SECONDS = 1


class Progress:
    """Tells how a job goes on."""

    def __init__(self, path: Path, job_id: str, there: int, total: int) -> None:
        self.path = path
        self.job_id = job_id
        self.there = there
        self.total = total
        self.seen: deque[tuple[float, int]] = deque()
        self.printed = float("-inf")

    def tell_job(self, job: "Job") -> None:
        """Tell how far a job is, and what it waits for."""
        now = time.monotonic()
        while self.seen and self.seen[0][0] < now - RATE_SECONDS:
            self.seen.popleft()
        self.seen.append((now, job.bytes))
        since, before = self.seen[0]
        rate = max(job.bytes - before, 0) / (now - since) if now > since else 0.0
        state: dict[str, Any] = {"state": "running", "bytes": self.there + job.bytes, "total": self.total, "rate": rate}
        state["renewals"] = job.renewals
        if job.waiting:
            part, fault = job.waiting
            state |= {"state": "waiting", "kind": fault.kind, "file": part.name, "message": fault.message}
        self.tell(state, is_news=now - self.printed >= LINE_SECONDS)

    def tell(self, state: Mapping[str, Any], *, is_news: bool = True) -> None:
        """Put a state where it is read, by rename: a reader never sees half of it. A full disk ends nothing here."""
        line = json.dumps({**state, "job": self.job_id})
        new = self.path.with_name(self.path.name + ".new")
        with contextlib.suppress(OSError):
            new.write_text(line)
            new.replace(self.path)
            if is_news:
                self.printed = time.monotonic()
                print(line, flush=True)


def take_urls(path: Path) -> dict[str, str]:
    """Return the fresh URLs that were put there, and remove them; empty if there are none."""
    with contextlib.suppress(FileNotFoundError):
        urls: dict[str, str] = json.loads(path.read_text())
        path.unlink()
        return urls
    return {}


def main(root: Path) -> int:
    """Run the job in `run/fetch.json`."""
    from bootstrap.host.fetching.job import Job
    from bootstrap.host.fetching.part import Part

    run = root / "run"
    asked = json.loads((run / "fetch.json").read_text())
    wanted = [Part(root, item) for item in asked["files"]]
    absent = [part for part in wanted if not part.path.exists()]
    total = sum(part.size for part in wanted)
    progress = Progress(run / "fetch.progress.json", asked["id"], total - sum(part.size for part in absent), total)
    fresh = run / "fetch.urls.json"
    fresh.unlink(missing_ok=True)  # for a former job
    job = Job(absent, lambda: take_urls(fresh), lambda: progress.tell_job(job))
    job.run()
    if job.failure:
        part, fault = job.failure
        if fault.kind == "disk":
            part.discard()  # or there may be no room to say so
        progress.tell({"state": "failed", "kind": fault.kind, "file": part.name, "message": fault.message})
        return 1
    (run / "fetch.json").unlink()  # its URLs have done their work
    progress.tell({"state": "done"})
    return 0


if __name__ == "__main__":
    home = Path(__file__).resolve().parents[2]
    sys.path.insert(0, str(home / "bundle"))
    sys.exit(main(home))
