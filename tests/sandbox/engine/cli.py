"""The `pulumi` command of the stand-in: finds the command, reads its flags, shows errors as the real CLI does."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.sandbox.engine import config_commands, stack_commands
from tests.sandbox.engine.errors import EngineError
from tests.sandbox.engine.flags import SWITCH, TEXT, Line, parse
from tests.sandbox.engine.workspace import Workspace

VERSION = "v3.260.0+stand-in"
_DEPLOY = {
    "yes": SWITCH,
    "skip-preview": SWITCH,
    "preview-only": SWITCH,
    "refresh": SWITCH,
    "show-secrets": SWITCH,
    "json": SWITCH,
    "diff": SWITCH,
    "parallel": TEXT,
    "message": TEXT,
    "suppress-progress": SWITCH,
    "suppress-outputs": SWITCH,
}
_REFUSED = ("diff", "suppress-outputs")  # known to the real CLI, not done here


@dataclass(frozen=True)
class Command:
    """One command."""

    about: str
    run: Callable[[Workspace, Line], int]
    flags: dict[str, str] = field(default_factory=dict)
    words: int = 0  # how many arguments it takes at most


def _version(workspace: Workspace, line: Line) -> int:
    print(VERSION)
    return 0


def _deploy(kind: str, *, preview_only: bool = False) -> Callable[[Workspace, Line], int]:
    def run(workspace: Workspace, line: Line) -> int:
        from tests.sandbox.engine.operations import Operation, Options  # late: gRPC takes a while to import

        for flag in _REFUSED:
            if line.on(flag):
                raise EngineError(f"the stand-in does not do --{flag}")
        if line.on("json") and not preview_only:
            raise EngineError("the stand-in does --json for preview and for what reads, not for what changes")
        yes = line.on("yes") or os.environ.get("PULUMI_SKIP_CONFIRMATIONS", "").lower() in ("true", "1")
        options = Options(
            refresh=line.on("refresh", workspace.project.refresh),
            skip_preview=line.on("skip-preview"),
            preview_only=preview_only or line.on("preview-only"),
            yes=yes,
            interactive=not line.on("non-interactive") and sys.stdin.isatty() and sys.stdout.isatty(),
            show_secrets=line.on("show-secrets"),
            json=line.on("json"),
            **_parallel(line.text("parallel")),
        )
        stack = workspace.stack()
        return Operation(kind, workspace.project, workspace.backend, stack, workspace.stack_file(stack), options).run()

    return run


def _parallel(text: str) -> dict[str, int]:
    if not text:
        return {}
    if not text.isdigit() or text == "0":
        raise EngineError(f"invalid argument {text!r} for --parallel: the stand-in wants a number above 0")
    return {"parallel": int(text)}


_CONFIG = {"path": SWITCH, "secret": SWITCH, "plaintext": SWITCH, "json": SWITCH, "show-secrets": SWITCH}
COMMANDS: dict[str, Command] = {
    "preview": Command("show what an up would do", _deploy("update", preview_only=True), _DEPLOY),
    "up": Command("create or update the stack's resources", _deploy("update"), _DEPLOY),
    "refresh": Command("read what is really there into the state", _deploy("refresh"), _DEPLOY),
    "destroy": Command("delete the stack's resources", _deploy("destroy"), _DEPLOY),
    "cancel": Command("take the stack's lock away", stack_commands.cancel, {"yes": SWITCH}, words=1),
    "login": Command("set where state is kept (file://…)", stack_commands.login, words=1),
    "logout": Command("forget where state is kept", stack_commands.logout, words=1),
    "stack": Command("show the stack", stack_commands.show, {"show-secrets": SWITCH}),
    "stack init": Command(
        "create a stack", stack_commands.init, {"no-select": SWITCH, "secrets-provider": TEXT}, words=1
    ),
    "stack select": Command(
        "choose the stack for commands without -s", stack_commands.select, {"create": SWITCH}, words=1
    ),
    "stack ls": Command("list stacks", stack_commands.ls, {"json": SWITCH}),
    "stack output": Command("show outputs", stack_commands.output, {"json": SWITCH, "show-secrets": SWITCH}, words=1),
    "stack export": Command("print the state", stack_commands.export, {"file": TEXT, "show-secrets": SWITCH}),
    "stack import": Command("replace the state", stack_commands.import_, {"file": TEXT, "force": SWITCH}),
    "stack rm": Command(
        "remove a stack", stack_commands.rm, {"yes": SWITCH, "force": SWITCH, "preserve-config": SWITCH}, 1
    ),
    "config": Command("show the configuration", config_commands.show, _CONFIG),
    "config set": Command("set a value", config_commands.set_, _CONFIG, words=2),
    "config get": Command("print a value", config_commands.get, _CONFIG, words=1),
    "config rm": Command("remove a value", config_commands.rm, _CONFIG, words=1),
    "version": Command("print the version", _version),
}
COMMANDS["update"] = COMMANDS["up"]


def main(argv: list[str]) -> int:
    """Run one command line; return the exit code."""
    try:
        return _run(argv)
    except EngineError as err:
        print(f"error: {err}", file=sys.stderr)
        return err.exit_code
    except BrokenPipeError:  # `pulumi stack export | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(argv: list[str]) -> int:
    name, rest = _command(argv)
    if not name:
        return _help()
    command = COMMANDS[name]
    short = {"file": "f"} if "file" in command.flags else {}
    line = parse(rest, command.flags, _shorts(short))
    if line.on("help"):
        print(f"pulumi {name}: {command.about}. Flags: {', '.join('--' + flag for flag in command.flags) or 'none'}.")
        print("This is the sandbox's stand-in for the Pulumi CLI.")
        return 0
    if len(line.words) > command.words:
        raise EngineError(f"accepts at most {command.words} arg(s), received {len(line.words)}")
    folder = Path(line.text("cwd") or ".")
    if not folder.is_dir():
        raise EngineError(f"chdir {folder}: no such directory")
    os.chdir(folder)
    return command.run(Workspace(Path.cwd(), line.text("stack"), line.text("config-file")), line)


def _shorts(own: dict[str, str]) -> dict[str, str]:
    from tests.sandbox.engine.flags import SHORT

    return {**SHORT, **{letter: flag for flag, letter in own.items()}}


def _command(argv: list[str]) -> tuple[str, list[str]]:
    """Find the command's one or two words among *argv*; flags may stand between and before them."""
    at = _words_at(argv)
    if not at:
        return ("version", []) if "--version" in argv else ("", argv)
    first = argv[at[0]]
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    if len(at) > 1 and f"{first} {argv[at[1]]}" in COMMANDS:
        return f"{first} {argv[at[1]]}", [part for index, part in enumerate(argv) if index not in at[:2]]
    if first in COMMANDS and not (first in groups and len(at) > 1):
        return first, [part for index, part in enumerate(argv) if index != at[0]]
    unknown = argv[at[1]] if first in groups else first
    owner = f"pulumi {first}" if first in groups else "pulumi"
    raise EngineError(f'unknown command "{unknown}" for "{owner}"\nRun \'{owner} --help\' for usage.')


def _words_at(argv: list[str]) -> list[int]:
    """Return where the first two plain words stand; a flag's separate value is none."""
    from tests.sandbox.engine.flags import GLOBAL, SHORT

    found = []
    skip = False
    for index, part in enumerate(argv):
        if skip:
            skip = False
        elif part == "--":
            break
        elif part.startswith("-"):
            name = part[2:] if part.startswith("--") else SHORT.get(part[1:2], "") if len(part) == 2 else ""
            skip = GLOBAL.get(name) == TEXT
        else:
            found.append(index)
    return found[:2]


def _help() -> int:
    print("The sandbox's stand-in for the Pulumi CLI: the same commands, files and words, for machines without one.\n")
    for name, command in COMMANDS.items():
        print(f"  {name:14} {command.about}")
    print("\nEverywhere: -s/--stack, -C/--cwd, --config-file, --non-interactive. PULUMI_OPTION_<FLAG> sets any flag.")
    return 0
