"""The `gpu` command: what an operator does beside `pulumi`."""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dynamic_providers.credentials import ReadConfig, open_store
from dynamic_providers.errors import StackError
from dynamic_providers.store import binaries, transfer
from dynamic_providers.store.manifest import NAME, NAME_RULE
from dynamic_providers.vast.request import StoreAddress
from infra.progress import progress_shown, render_bytes
from infra.project import Project, find_project
from infra.settings import SECRETS, parse_store

PULUMI_LIMIT_SECONDS = 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpu", description="What you do beside `pulumi up` and `pulumi destroy`.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    models = commands.add_parser("models", help="the models in the bucket").add_subparsers(
        required=True, metavar="COMMAND"
    )
    push = models.add_parser("push", help="put a model into the bucket", description=_push.__doc__)
    push.add_argument("folder", type=Path, help="folder with config.json, tokenizer and weights")
    push.add_argument("--as", dest="name", metavar="NAME", help="its name in stack files (default: the folder's)")
    push.add_argument("-s", "--stack", help="whose bucket (default: the one that all stack files name)")
    push.set_defaults(run=_push)
    return parser


def _push(arguments: argparse.Namespace) -> None:
    """Put a model into the bucket: only what is not there yet. Creates the bucket where it is missing."""
    folder: Path = arguments.folder
    name = choose_name(folder, arguments.name)
    transfer.list_files(folder)  # a wrong folder is told before anything is asked of the network
    project = find_project()
    address, stack = choose_bucket(project, arguments.stack)
    store = open_store(address, _read_config(project, stack))
    if store.ensure_bucket():
        print(f"bucket {store.bucket} created at {store.endpoint}")
    with progress_shown() as report:
        binaries.push_binary(store, binaries.CADDY, report(f"{binaries.CADDY.name} {binaries.CADDY.version}"))
        manifest = transfer.push_folder(store, folder, name, report(name))
    print(f"{manifest.name}: {len(manifest.files)} files, {render_bytes(manifest.bytes_total)}, in {store.bucket}")
    print(f"to serve exactly this release, in a stack file:  name: {manifest.ref}")


def choose_name(folder: Path, given: str | None) -> str:
    """Return the model's name: as given, else the folder's, in small letters.

    Raises:
        StackError: What was given is no name.
    """
    if given is None:
        given = re.sub(r"[^a-z0-9.-]+", "-", folder.resolve().name.lower()).strip("-.")
    if not NAME.fullmatch(given):
        raise StackError(f"--as: {given!r} is no model's name: {NAME_RULE}")
    return given


def choose_bucket(project: Project, stack: str | None) -> tuple[StoreAddress, str]:
    """Return the stack's bucket, else the only one that stack files name; and a stack that names it.

    Raises:
        StackError: There is none, or more than one.
    """
    stacks = [stack] if stack else list(project.stacks())
    named: dict[StoreAddress, str] = {}
    for name in stacks:
        if address := parse_store(project.read_stack(name)):
            named.setdefault(address, name)
    if len(named) == 1:
        return next(iter(named.items()))
    if named:
        lines = [f"{address.bucket} at {address.location}: --stack {name}" for address, name in named.items()]
        raise StackError("\n  ".join(["stack files name several buckets; choose one of:", *lines]))
    where = f"stack {stack!r} names" if stack else f"the stack files in {project.stack_folder} name"
    raise StackError(f"{where} no bucket; write store: {{bucket: <name>, location: fsn1}}")


def _read_config(project: Project, stack: str) -> ReadConfig:
    """Return a reader of the stack's secrets, which only Pulumi can decrypt: it is asked for one when it is needed."""
    encrypted = [key for key in SECRETS if key in project.read_stack(stack)]

    def read(key: str) -> str | None:
        if key not in encrypted or os.environ.get("AWS_ACCESS_KEY_ID"):
            return None  # the environment comes first, and spares a question
        command = ["pulumi", "config", "get", key, "--stack", stack, "--non-interactive"]
        try:
            run = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=PULUMI_LIMIT_SECONDS,
                check=False,
                cwd=project.root,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StackError(f"{key}: `{' '.join(command)}` does not run: {error}") from error
        if run.returncode:
            raise StackError(f"{key}: cannot be decrypted: {run.stderr.strip()}")
        return run.stdout.strip()

    return read
