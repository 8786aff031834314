"""preview, up, refresh and destroy, from the lock to the last line."""

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tests.sandbox.engine.backend import FileBackend
from tests.sandbox.engine.crypto import Vault, read_passphrase
from tests.sandbox.engine.deployment import Deployment
from tests.sandbox.engine.display import Display
from tests.sandbox.engine.errors import EngineError
from tests.sandbox.engine.monitor import EngineLog, Monitor, serve
from tests.sandbox.engine.processes import Child, start_program
from tests.sandbox.engine.project import Config, Project, StackFile, open_vault
from tests.sandbox.engine.registry import Registry
from tests.sandbox.engine.state import STACK_TYPE, Checkpoint, Snapshot, unsealing
from tests.sandbox.engine.values import Props, any_value, is_secret, map_value

_ERROR_SHOWN = 32  # the program's exit code when its error is in the log already


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    refresh: bool
    skip_preview: bool = False
    preview_only: bool = False
    yes: bool = False
    interactive: bool = False
    show_secrets: bool = False
    json: bool = False
    parallel: int = 4 * (os.cpu_count() or 1)  # as the real CLI


class Operation:
    """One command that reads or changes one stack."""

    def __init__(
        self, kind: str, project: Project, backend: FileBackend, stack: str, file: StackFile, options: Options
    ) -> None:
        self._kind = kind
        self._project = project
        self._backend = backend
        self._stack = stack
        self._options = options
        backend.require(stack)
        raw_salt = ((backend.raw(stack).get("secrets_providers") or {}).get("state") or {}).get("salt", "")
        with _context("getting stack configuration: get stack secrets manager"):
            self._vault = open_vault(file, raw_salt)
        self._file = file
        self._parallel = options.parallel
        self._deployment: Deployment | None = None
        self._program: Child | None = None
        self._lock_file: Path | None = None
        self._signals = 0
        self._aborting: threading.Thread | None = None

    def run(self) -> int:
        """Preview, ask, do it; return the exit code."""
        options = self._options
        if not (options.yes or options.skip_preview or options.preview_only or options.interactive):
            raise EngineError(
                "--yes or --skip-preview or --preview-only must be passed in to proceed "
                "when running in non-interactive mode",
                2,
            )
        with _context("getting stack configuration: get stack secrets manager"):
            self._vault.check()
        config = Config.of(self._project, self._file, self._vault, self._stack)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        if options.preview_only:
            return self._deploy(config, preview=True)
        with self._backend.lock(self._stack) as self._lock_file:
            if not options.skip_preview and (code := self._deploy(config, preview=True)):
                return code
            if not options.yes and not options.skip_preview and not self._confirmed():
                print("confirmation declined, not proceeding with the", self._kind)
                return 1
            code = self._deploy(config, preview=False)
        if self._kind == "destroy" and code == 0:
            print(
                "The resources in the stack have been deleted, but the history and configuration associated with "
                "the stack are still maintained. \n"
                f"If you want to remove the stack completely, run `pulumi stack rm {self._stack}`."
            )
        return code

    def _confirmed(self) -> bool:
        answer = input(f"Do you want to perform this {self._kind}? [yes/no] ")
        return answer.strip().lower() in ("y", "yes")

    def _deploy(self, config: Config, *, preview: bool) -> int:
        """Run the deployment once, as a preview or in earnest."""
        # Read again each time: a preview leaves its marks on the records.
        checkpoint = self._backend.read(self._stack, self._vault)
        checkpoint.salt = self._vault.state
        olds = checkpoint.stack_outputs()
        snapshot = Snapshot(checkpoint, self._save)
        options = self._options
        display = Display(
            self._kind, self._stack, preview=preview, show_secrets=options.show_secrets, quiet=options.json
        )
        registry = Registry(self._project, config, self._stack, self._read_outputs, preview=preview)
        registry.on_line = display.info
        deployment = Deployment(snapshot, registry, display, preview=preview, parallel=self._parallel)
        self._deployment = deployment
        if self._signals:  # it came between two deployments
            deployment.cancel()
        monitor = Monitor(deployment, (self._project.name, self._stack), config, self._read_outputs, self._parallel)
        server, registry.address = serve(monitor, EngineLog(display))
        display.header()
        try:
            self._steps(deployment, config, registry.address)
        finally:
            deployment.close()
            registry.close()
            server.stop(0)
            if self._aborting:
                self._aborting.join()  # it ends the providers, and then us
        if options.json:
            print(_preview_json(config, deployment))
        news = self._outputs_after(deployment, olds)
        stack_urn = f"urn:pulumi:{self._stack}::{self._project.name}::{STACK_TYPE}::{self._project.name}-{self._stack}"
        if deployment.cancelled:
            display.diagnostic("error", stack_urn, f"{self._kind} canceled")
        elif deployment.failed and not display.errors_of(stack_urn):
            display.diagnostic("error", stack_urn, "preview failed" if preview else f"{self._kind} failed")
        display.closing(olds, news, stack_urn)
        return 1 if deployment.ended or display.errors else 0

    def _steps(self, deployment: Deployment, config: Config, address: str) -> None:
        if self._kind == "update":
            self._program = self._start_program(deployment, config, address)
        if self._options.refresh or self._kind == "refresh":
            deployment.refresh(counted=self._kind == "refresh")
        if self._kind == "update":
            deployment.ready.set()
            if self._finish_program(deployment):
                deployment.delete_rest()
        elif self._kind == "destroy" and not deployment.ended:
            deployment.delete_all(deployment.snapshot.resources())

    def _start_program(self, deployment: Deployment, config: Config, address: str) -> Child:
        """Start the program, and see to it that it does not outlive a deployment that failed or was cancelled."""
        program = start_program(
            self._project,
            self._stack,
            config,
            address,
            dry_run=deployment.preview,
            parallel=self._parallel,
            on_line=lambda line: None if deployment.ended else deployment.display.info(line),
        )

        def end() -> None:
            deployment.wait_for_end()
            deployment.wait_for_steps()
            program.kill()

        threading.Thread(target=end, daemon=True).start()
        return program

    def _finish_program(self, deployment: Deployment) -> bool:
        """Wait for the program's end; say whether it and all it asked for succeeded."""
        display = deployment.display
        assert self._program is not None
        code = self._program.wait()
        if deployment.ended:
            deployment.wait_for_steps()
            return False
        if code not in (0, _ERROR_SHOWN):
            display.diagnostic(
                "error", "", f"an unhandled error occurred: program exited with non-zero exit code: {code}"
            )
        if code:
            display.count("errored")
            deployment.fail()
            deployment.wait_for_steps()
        return not (deployment.ended or display.errors)

    def _outputs_after(self, deployment: Deployment, olds: Props) -> Props | None:
        """Return the stack's outputs as they are now, or None where nothing is to be said of them."""
        if deployment.ended or deployment.display.errors:
            return None
        if self._kind == "destroy":
            return {}
        return olds if self._kind == "refresh" else deployment.stack_outputs

    def _save(self, checkpoint: Checkpoint) -> None:
        self._backend.write(self._stack, checkpoint.write(self._vault))

    def _read_outputs(self, name: str) -> Props:
        """Return the outputs of another stack, `organization/project/stack` or shorter."""
        parts = name.split("/")
        stack, project = parts[-1], parts[-2] if len(parts) > 1 else self._project.name
        if not self._backend.path(stack, project).exists():
            raise EngineError(f"unknown stack {json.dumps(name)}")
        raw = self._backend.raw(stack, project)
        record: dict[str, Any] = next(
            (found for found in raw.get("resources") or [] if found["type"] == STACK_TYPE), {}
        )
        outputs: Props = record.get("outputs") or {}
        if not any_value(outputs, lambda node: isinstance(node, dict) and "ciphertext" in node):
            return outputs
        vault = Vault(read_passphrase(), raw["secrets_providers"]["state"]["salt"])
        return self._unsealed(name, outputs, vault)

    def _unsealed(self, name: str, outputs: Props, vault: Vault) -> Props:
        try:
            return dict(unsealing(vault)(outputs))
        except EngineError:
            # The real engine goes on as well, with an empty object in each secret's place, however deep.
            if self._deployment:
                self._deployment.display.info(f"eliding undecryptable secrets for stack reference '{name}'")
            return {
                key: map_value(value, lambda node: {} if is_secret(node) else node) for key, value in outputs.items()
            }

    # Ctrl-C. The first asks everyone to stop and waits; the second ends everything.

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals == 1:
            threading.Thread(target=self._cancel, daemon=True).start()
        elif self._signals == 2:
            self._aborting = threading.Thread(target=self._abort, daemon=True)
            self._aborting.start()

    def _cancel(self) -> None:
        print(
            "^C received; cancelling. If you would like to terminate immediately, press ^C again.\n"
            "Note that terminating immediately may lead to orphaned resources and other inconsistencies.",
            file=sys.stderr,
            flush=True,
        )
        if self._deployment:
            self._deployment.cancel()

    def _abort(self) -> None:
        with contextlib.suppress(Exception):
            if self._deployment:
                self._deployment.snapshot.freeze()
            if self._program:
                self._program.kill()
            if self._deployment:
                self._deployment.registry.abort()
        if self._lock_file:
            self._lock_file.unlink(missing_ok=True)
        print("error: update canceled", file=sys.stderr, flush=True)
        os._exit(1)


@contextlib.contextmanager
def _context(prefix: str) -> Iterator[None]:
    try:
        yield
    except EngineError as err:
        raise EngineError(f"{prefix}: {err}", err.exit_code) from err


def _preview_json(config: Config, deployment: Deployment) -> str:
    shown = {key: "[secret]" if key in config.secret_keys else value for key, value in config.values.items()}
    document = {
        "config": shown,
        "steps": [{"op": operation, "urn": urn} for operation, urn in deployment.display.steps],
        "diagnostics": [
            {"severity": severity, "urn": urn, "message": text}
            for severity, urn, text in deployment.display.diagnostics
        ],
        "changeSummary": {key: count for key, count in deployment.display.counts.items() if count},
    }
    return json.dumps({key: value for key, value in document.items() if value or key == "changeSummary"}, indent=4)
