"""Which bucket a command is for, and how it is opened."""

import os
import subprocess

from dynamic_providers.credentials import ReadConfig, open_store
from dynamic_providers.errors import StackError
from dynamic_providers.store.address import StoreAddress
from dynamic_providers.store.client import Store
from infra.project import Project, find_project
from infra.shared_settings import SECRETS, parse_store

PULUMI_LIMIT_SECONDS = 60


def open_bucket(stack: str | None) -> Store:
    """Return the bucket of a stack, None for the only one that stack files name.

    Raises:
        StackError: There is none, or more than one, or no keys for it.
    """
    project = find_project()
    address, stack = choose_bucket(project, stack)
    return open_store(address, read_secrets(project, stack))


def choose_bucket(project: Project, stack: str | None) -> tuple[StoreAddress, str]:
    """Return the bucket's address, and a stack that names it.

    Raises:
        StackError: There is none, or more than one.
    """
    named: dict[StoreAddress, str] = {}
    for name in [stack] if stack else project.stacks():
        owner = name
        raw = project.read_stack(owner)
        if stack and isinstance(raw.get("platform"), str) and not raw.get("store"):
            owner = raw["platform"]  # a member of a platform has no bucket of its own
            raw = project.read_stack(owner)
        if address := parse_store(raw):
            named.setdefault(address, owner)
    if len(named) == 1:
        return next(iter(named.items()))
    if named:
        lines = [f"{address.bucket} at {address.location}: --stack {name}" for address, name in named.items()]
        raise StackError("\n  ".join(["stack files name several buckets; choose one of:", *lines]))
    where = f"stack {stack!r} names" if stack else f"the stack files in {project.stack_folder} name"
    raise StackError(f"{where} no bucket; write store: {{bucket: <name>, location: fsn1}}")


def read_secrets(project: Project, stack: str) -> ReadConfig:
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
