"""`pulumi stack …`, `login`, `cancel`: everything about stacks that starts no program."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.sandbox.engine.backend import backend_url, save_login
from tests.sandbox.engine.crypto import Vault, read_passphrase
from tests.sandbox.engine.display import as_json, as_table
from tests.sandbox.engine.errors import EngineError
from tests.sandbox.engine.flags import Line
from tests.sandbox.engine.project import as_text, open_vault
from tests.sandbox.engine.state import Checkpoint, unsealing
from tests.sandbox.engine.values import Props, redact
from tests.sandbox.engine.workspace import Workspace


def login(workspace: Workspace, line: Line) -> int:
    """Remember a backend; without an argument say which one is used."""
    url = line.words[0] if line.words else backend_url(None)
    if not url.startswith("file://"):
        raise EngineError(f"the stand-in keeps state in files only (file://…), not in {url}")
    save_login(url)
    print(f"Logged in to {url}")
    return 0


def logout(workspace: Workspace, line: Line) -> int:
    """Forget the backend."""
    save_login("")
    print("Logged out")
    return 0


def init(workspace: Workspace, line: Line) -> int:
    """Create an empty stack, its salt in its file, and select it."""
    if not line.words and not line.text("stack"):
        raise EngineError("a stack name is required: pulumi stack init <name>")
    if (kind := line.text("secrets-provider")) not in ("", "default", "passphrase"):
        raise EngineError(f"the stand-in knows the secrets provider passphrase only, not {kind!r}")
    stack = workspace.stack(line.words[0] if line.words else "")
    if workspace.backend.path(stack).exists():
        raise EngineError(f"stack '{workspace.backend.full_name(stack)}' already exists")
    vault = open_vault(workspace.stack_file(stack))
    vault.check()
    workspace.backend.write(stack, Checkpoint(salt=vault.state).write(vault))
    if not line.on("no-select"):
        workspace.backend.select(stack)
    print(f"Created stack '{stack}'")
    return 0


def select(workspace: Workspace, line: Line) -> int:
    """Choose the stack for commands without `-s`."""
    stack = workspace.stack(line.words[0] if line.words else "")
    if line.on("create") and not workspace.backend.path(stack).exists():
        return init(workspace, Line([stack], line.flags))
    workspace.backend.require(stack)
    workspace.backend.select(stack)
    return 0


def ls(workspace: Workspace, line: Line) -> int:
    """List the project's stacks."""
    backend = workspace.backend
    current = backend.selected()
    rows = []
    for stack in backend.stacks():
        deployment = backend.raw(stack)
        rows.append((stack, (deployment.get("manifest") or {}).get("time", ""), len(deployment.get("resources") or [])))
    if line.on("json"):
        listed = [
            {"name": name, "current": name == current, "lastUpdate": time, "resourceCount": count}
            for name, time, count in rows
        ]
        print(as_json(listed))
        return 0
    table = [("NAME", "LAST UPDATE", "RESOURCE COUNT")]
    table += [(f"{name}*" if name == current else name, _ago(time), str(count)) for name, time, count in rows]
    print("\n".join(as_table(table)))
    return 0


def show(workspace: Workspace, line: Line) -> int:
    """Show what a stack holds."""
    stack = workspace.existing_stack()
    state = workspace.backend.read(stack, None)
    print(f"Current stack is {stack}:")
    if state.resources:
        print(f"    Last updated: {_ago(state.time)} ({state.time})")
    print(f"Current stack resources ({len(state.resources)}):")
    if state.resources:
        table = [("TYPE", "NAME"), *((found.type, found.name) for found in state.resources)]
        print("\n".join(f"    {row}" for row in as_table(table)), "\n")
        _print_outputs(_outputs(workspace, stack, show_secrets=line.on("show-secrets")))
    else:
        print("    No resources currently in this stack")
    print("\nUse `pulumi stack select` to change stack; `pulumi stack ls` lists known ones")
    return 0


def output(workspace: Workspace, line: Line) -> int:
    """Show all outputs, or print one."""
    outputs = _outputs(workspace, workspace.existing_stack(), show_secrets=line.on("show-secrets"))
    if line.words:
        name = line.words[0]
        if name not in outputs:
            raise EngineError(f"current stack does not have output property '{name}'")
        print(as_json(outputs[name]) if line.on("json") else as_text(outputs[name]))
    elif line.on("json"):
        print(as_json(outputs))
    else:
        _print_outputs(outputs)
    return 0


def export(workspace: Workspace, line: Line) -> int:
    """Print the state, secrets sealed unless asked for."""
    stack = workspace.existing_stack()
    deployment: dict[str, Any] = workspace.backend.raw(stack)
    if line.on("show-secrets"):
        deployment = workspace.backend.read(stack, _vault(deployment)).write(None)
    text = json.dumps({"version": 3, "deployment": deployment}, indent=4, ensure_ascii=False)
    if line.text("file"):
        Path(line.text("file")).write_text(text + "\n")
    else:
        print(text)
    return 0


def import_(workspace: Workspace, line: Line) -> int:
    """Replace the state by an export; what was under way in it is dropped, as the real CLI does."""
    stack = workspace.existing_stack()
    text = Path(line.text("file")).read_text() if line.text("file") else sys.stdin.read()
    try:
        deployment = json.loads(text)["deployment"]
    except (ValueError, KeyError, TypeError) as err:
        raise EngineError(f"could not read the deployment: {err}") from err
    ours = f"urn:pulumi:{stack}::{workspace.project.name}::"
    for record in deployment.get("resources") or []:
        if not record["urn"].startswith(ours):
            raise EngineError(f"resource '{record['urn']}' is not of stack '{stack}'")
    vault = _vault(deployment)
    state = Checkpoint.read(deployment, vault)  # proves that the passphrase opens what is in it
    own = open_vault(workspace.stack_file(stack), state.salt)
    own.check()
    state.salt, state.pending = own.state, []
    with workspace.backend.lock(stack):
        workspace.backend.write(stack, state.write(own))
    print("Import complete.")
    return 0


def rm(workspace: Workspace, line: Line) -> int:
    """Remove a stack without resources, and its file."""
    stack = workspace.existing_stack(line.words[0] if line.words else "")
    if not line.on("yes"):
        if line.on("non-interactive") or not sys.stdin.isatty():
            raise EngineError("non-interactive mode requires --yes flag")
        if input(f"This will permanently remove the '{stack}' stack!\nPlease confirm by typing its name: ") != stack:
            raise EngineError("confirmation declined")
    if workspace.backend.raw(stack).get("resources") and not line.on("force"):
        raise EngineError(
            f"'{stack}' still has resources; removal rejected. Possible actions:\n"
            f"- Make sure that '{stack}' is the stack that you want to destroy\n"
            "- Run `pulumi destroy` to delete the resources, then run `pulumi stack rm`\n"
            "- Run `pulumi stack rm --force` to override this error"
        )
    workspace.backend.remove(stack)
    if not line.on("preserve-config"):
        workspace.stack_file(stack).path.unlink(missing_ok=True)
    if workspace.backend.selected() == stack:
        workspace.backend.select("")
    print(f"Stack '{stack}' has been removed!")
    return 0


def cancel(workspace: Workspace, line: Line) -> int:
    """Take the lock away that a killed engine left."""
    stack = workspace.existing_stack(line.words[0] if line.words else "")
    workspace.backend.cancel(stack)
    print(f"The currently running update for '{stack}' has been canceled!")
    return 0


def _vault(deployment: dict[str, Any]) -> Vault:
    salt = ((deployment.get("secrets_providers") or {}).get("state") or {}).get("salt")
    if not salt:
        raise EngineError("the state names no passphrase secrets provider")
    vault = Vault(read_passphrase(), salt)
    vault.check()
    return vault


def _outputs(workspace: Workspace, stack: str, *, show_secrets: bool) -> Props:
    """Return the outputs for the eye; the passphrase is needed only to show secrets."""
    raw = workspace.backend.raw(stack)
    unseal = unsealing(_vault(raw) if show_secrets else None)
    outputs = Checkpoint.read({**raw, "resources": (raw.get("resources") or [])[:0]}, None).stack_outputs()
    for record in raw.get("resources") or []:
        if record["type"] == "pulumi:pulumi:Stack":
            outputs = redact(unseal(record.get("outputs") or {}), show_secrets=show_secrets)
    return dict(sorted(outputs.items()))


def _print_outputs(outputs: Props) -> None:
    print(f"Current stack outputs ({len(outputs)}):")
    if not outputs:
        print("    No output values currently in this stack")
        return
    table = [("OUTPUT", "VALUE")]
    for name, value in outputs.items():
        first, *more = as_text(value).split("\n")
        table += [(name, first), *(("", line) for line in more)]
    print("\n".join(f"    {row}".rstrip() for row in as_table(table)))


def _ago(time: str) -> str:
    if not time:
        return "n/a"
    seconds = int((datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds())
    for length, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")):
        if (count := seconds // length) > 0:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "now"
