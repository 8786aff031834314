"""The official client, ready to be asked many things: it takes a second or two to start, so it starts once.

Run as a program this is the side where the client lives: it imports the command line once, and for each order forks a
child that runs it, or a few lines of Python, as a process of its own would.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

COMMAND = Path(sys.executable).parent / "vastai"
"""The official command line, as it was installed beside this Python."""


@dataclass(frozen=True)
class Said:
    """What a command left: exit status and output."""

    status: int
    out: str
    err: str

    @property
    def value(self) -> Any:
        """The output as JSON."""
        return json.loads(self.out)


def client_environment(home: Path, url: str, api_key: str) -> dict[str, str]:
    """Return all that the client may see: nothing of the operator's, so that it finds no real key and no real market.

    The URL has to be in the environment: of its own accord the client asks for GPU names there, whatever `--url` says.
    """
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "VAST_URL": url,
        "VAST_API_KEY": api_key,
        "VASTAI_NO_UPDATE_CHECK": "1",
    }


class OfficialClient:
    """The official command line and SDK against one market.

    Args:
        environment: See `client_environment`.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=10)
        self._process.stdout.close()

    def run(self, *words: object) -> Said:
        """Run `vastai` with these words."""
        return self._ask({"words": [str(word) for word in words]})

    def python(self, code: str, **names: Any) -> Said:
        """Run Python with these names set; it prints what it finds out."""
        return self._ask({"code": code, "names": names})

    def _ask(self, order: dict[str, Any]) -> Said:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Said(**json.loads(self._process.stdout.readline()))


def _serve() -> None:
    """Answer one line with one line, until there are no more."""
    from vastai.cli import main as command_line  # type: ignore[import-untyped]
    from vastai.cli.commands import billing, instances, keys, misc, offers  # type: ignore[import-untyped]  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if child == 0:
                _become(order, command_line.main, out.fileno(), err.fileno())
            _, status = os.waitpid(child, 0)
            said: dict[str, int | str] = {"status": os.waitstatus_to_exitcode(status)}
            for name, file in (("out", out), ("err", err)):
                file.seek(0)
                said[name] = file.read().decode()
        print(json.dumps(said), flush=True)


def _become(order: dict[str, Any], main: Any, out: int, err: int) -> None:
    """Run an order and end, with the status that the interpreter would end with."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdin = io.StringIO()
    status: Any = 0
    try:
        if "code" in order:
            exec(order["code"], dict(order["names"]))  # noqa: S102 (the tests' own)
        else:
            sys.argv = ["vastai", *order["words"]]
            main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int | None) else 1
    except BaseException:  # noqa: BLE001 (the interpreter's own last resort)
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


if __name__ == "__main__":
    _serve()
