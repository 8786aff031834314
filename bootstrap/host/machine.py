"""What the other end of the SSH connection asks of this machine: look, make room, link, start, stop.

Runs on the machine: standard library, and what lies beside it. Started once for a connection, it answers each command,
a line of JSON, with a line of JSON.
"""

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import sys
import time
import xmlrpc.client
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.umask(0o077)  # before an import is compiled beside its source
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # was host/, whose modules have common names

from bootstrap.host.watching.clock import read_moment
from bootstrap.host.watching.sockets import UnixConnection, open_supervisor

RESERVE_BYTES = 512 * 2**20
"""Left free beside the weights: logs, compile caches."""
LOG_BYTES = 65536
SUPERVISOR_SECONDS = 60
HALT_SECONDS = 0.2
HALT_TRIES = 300
RELOAD_TRIES = 75
STOPPED = {"STOPPED", "EXITED", "FATAL", "BACKOFF", "UNKNOWN"}

Files = list[dict[str, Any]]


def supervisor() -> Any:
    """Return the supervisor's own interface."""
    return open_supervisor(SUPERVISOR_SECONDS).supervisor


def status() -> dict[str, Any]:
    """Return what runs, since when and from what, whether door and engine answer, how the download goes."""
    programs = {}
    for info in supervisor().getAllProcessInfo():
        note = Path("started", info["name"])
        programs[info["name"]] = {
            "state": info["statename"],
            "pid": info["pid"],
            "started": note.read_text().strip() if note.exists() else None,
        }
    healthy = is_door_up(programs["door"]["pid"]) and is_engine_healthy()
    return {"programs": programs, "healthy": healthy, "fetch": read_json("fetch.progress.json")}


def is_door_up(pid: int) -> bool:
    """Tell whether the door takes connections, where its own environment says that it listens."""
    with contextlib.suppress(OSError):
        for variable in Path("/proc", str(pid), "environ").read_bytes().decode().split("\0"):
            if variable.startswith("DOOR_LISTEN="):
                host, _, port = variable.partition("=")[2].rpartition(":")
                socket.create_connection((host.strip("[]") or "127.0.0.1", int(port)), timeout=5).close()
                return True
    return False


def is_engine_healthy() -> bool:
    """Tell whether the engine answers 200 on its socket."""
    return get("engine.sock", "/health") is not None


def get(sock: str, path: str, timeout: float = 5) -> bytes | None:
    """Return what a program answers on its socket; None if that is no 200."""
    connection = UnixConnection(sock, timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.read() if answer.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def state() -> dict[str, Any]:
    """Return what the agent says of the machine; empty if it says nothing. It looks around before it answers."""
    said = get("agent.sock", "/control/state", timeout=15)
    return json.loads(said) if said else {}


def lease(remaining: dict[str, Any]) -> dict[str, Any]:
    """Tell the agent how long this may last, counted from now by every clock that there is."""
    write_json("lease.json", {**remaining, "at": asdict(read_moment())})
    return {}


def ready(remaining: dict[str, Any], provisioning: dict[str, Any] | None) -> dict[str, Any]:
    """Tell the agent that the machine is ready, and how it came to be, unless it was told before."""
    if provisioning is not None:
        write_json("provisioning.json", provisioning)
    return lease(remaining)


def fetch(job: dict[str, Any]) -> dict[str, Any]:
    """Start a download, ending another one. The job holds URLs: for our eyes alone."""
    stop("fetch")
    Path("fetch.progress.json").unlink(missing_ok=True)
    write_json("fetch.json", job)
    supervisor().startProcess("fetch", False)
    return {}


def renew(urls: dict[str, str]) -> dict[str, Any]:
    """Hand fresh URLs, by SHA-256, to the download that runs."""
    write_json("fetch.urls.json", urls)
    return {}


def naming_code(paths: list[str]) -> list[str]:
    """Return those of the configurations that have code loaded which comes with the model."""
    return [path for path in paths if "auto_map" in read_object(Path("..", path))]


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if there is none: then nobody else can read it either."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def open_door(state: dict[str, Any]) -> dict[str, Any]:
    """Let requests in, and say from now on what is applied."""
    write_json("control/state.json", state)
    Path("closed").unlink(missing_ok=True)
    return {}


def halt() -> dict[str, Any]:
    """End the supervisor and all that it runs, if there is one."""
    with contextlib.suppress(OSError, http.client.HTTPException, xmlrpc.client.Fault):  # none, or on its way out
        supervisor().shutdown()
    for _ in range(HALT_TRIES):
        with socket.socket(socket.AF_UNIX) as client:
            if client.connect_ex("supervisor.sock"):
                return {}
        time.sleep(HALT_SECONDS)
    raise SystemExit("the former supervisor does not end")


def start(name: str) -> dict[str, Any]:
    """Start a program from what is asked now, ending it first if it runs; return its process id."""
    stop(name)
    supervisor().startProcess(name, False)
    return {"pid": supervisor().getProcessInfo(name)["pid"]}


def reload_door() -> dict[str, Any]:
    """Have the front door take what is asked now without ending an answer; say whether it did.

    Caddy reads its file again on SIGUSR1, certificates with it, and then says itself what it has loaded. Another
    program is not to be had that way.
    """
    folder, pid = Path("../bundle/door"), supervisor().getProcessInfo("door")["pid"]
    wanted = json.loads((folder / "door.json").read_bytes())["apps"]["http"]["servers"]["page"]["routes"][0]
    if not pid or Path("/proc", str(pid), "exe").readlink().name not in (folder / "run").read_text():
        return {"reloaded": False}
    os.kill(pid, signal.SIGUSR1)
    for _ in range(RELOAD_TRIES):
        if get("door.sock", "/loaded") == wanted["handle"][0]["body"].encode():
            files = sorted(folder.iterdir(), key=lambda path: path.name.encode())  # as program.sh notes it
            digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
            Path("started/door.new").write_text(digest + "\n")
            Path("started/door.new").replace("started/door")
            return {"reloaded": True}
        time.sleep(HALT_SECONDS)
    return {"reloaded": False}


def stop(name: str) -> dict[str, Any]:
    """End a program; it will not come back with the container."""
    info = supervisor().getProcessInfo(name)
    if info["statename"] not in STOPPED - {"BACKOFF"}:
        try:
            supervisor().stopProcess(name)
        except xmlrpc.client.Fault as fault:
            if "NOT_RUNNING" not in fault.faultString:  # it ended by itself meanwhile
                raise
    Path("started", name).unlink(missing_ok=True)
    return {}


def tail(name: str, pid: int) -> dict[str, Any]:
    """Return the last lines that a program printed as process *pid*, whatever was started after it."""
    log = Path("../log", f"{name}.log")
    if not log.exists():
        return {"lines": []}
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_BYTES))
        text = file.read().decode(errors="replace")
    starts = f"=== {name} starts as "
    own = text.rpartition(f"{starts}{pid},")[2].partition(starts)[0]
    return {"lines": own.splitlines()[1:]}


def missing(files: Files) -> dict[str, Any]:
    """Return which files are not there, and how many bytes the disk is short of for them."""
    absent = [item for item in files if not Path("..", item["path"]).exists()]
    need = sum(item["size"] for item in absent) - sum(allocated(partial(item)) for item in absent)
    free = shutil.disk_usage("..").free
    short = need + RESERVE_BYTES - free if absent else 0
    return {"files": absent, "short_bytes": max(0, short), "need_bytes": need, "free_bytes": free}


def allocated(path: Path) -> int:
    """Return what a file takes on the disk; a partial one has holes."""
    return path.stat().st_blocks * 512 if path.exists() else 0


def partial(item: dict[str, Any]) -> Path:
    """Return where a file grows; see fetch.py."""
    path = Path("..", item["path"])
    return path.with_name(path.name + ".part")


def prune(files: Files) -> dict[str, Any]:
    """Remove every model and blob but *files*, and all compile caches: what both have stays."""
    keep = {Path(item["path"]).name for item in files}
    shutil.rmtree("../models", ignore_errors=True)
    shutil.rmtree("../caches", ignore_errors=True)
    for blob in Path("../blobs").glob("*"):
        if blob.name.partition(".")[0] not in keep:
            blob.unlink()
    return {}


def link(folder: str, links: Files) -> dict[str, Any]:
    """Make a model's folder of hard links to blobs, whole or not at all. Says whether anything changed."""
    target, new = Path("..", folder), Path("..", folder + ".new")
    if target.exists() and all(is_linked(target, item) for item in links):
        return {"changed": False}
    shutil.rmtree(new, ignore_errors=True)
    for item in links:
        path = new / item["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(Path("..", item["blob"]), path)
    shutil.rmtree(target, ignore_errors=True)
    new.replace(target)
    return {"changed": True}


def is_linked(target: Path, item: dict[str, Any]) -> bool:
    """Tell whether a path of the model is the blob that it should be."""
    path, blob = target / item["path"], Path("..", item["blob"])
    return path.exists() and blob.exists() and path.samefile(blob)


def read_json(path: str) -> Any:
    """Return what stands in a file; None if it is not there."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        return None


def write_json(path: str, value: object) -> None:
    """Put a file there, by rename."""
    new = Path(path + ".new")
    new.write_text(json.dumps(value))
    new.replace(path)


COMMANDS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(status, state, lease, ready, start, stop, reload_door, fetch, renew, naming_code),
        *(open_door, halt, tail, missing, prune, link),
    )
}


def main(root: Path, questions: Iterable[str]) -> None:
    """Answer each line, a command and its arguments, with a line; in the working directory of everything."""
    os.chdir(root / "run")
    for question in questions:
        command, *arguments = json.loads(question)
        print(json.dumps(COMMANDS[command](*arguments)), flush=True)


if __name__ == "__main__":
    main(Path(__file__).resolve().parents[2], sys.stdin)
