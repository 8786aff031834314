"""The provider processes of one deployment: started when first needed, ended with it whatever they are at.

Source: Pulumi 3.260, pkg/resource/deploy/default_providers.go and pkg/resource/plugin/host.go.
"""

import threading
import uuid
from collections.abc import Callable

from tests.sandbox.engine.errors import EngineError, ResourceError
from tests.sandbox.engine.processes import Child, start_provider, stop_all
from tests.sandbox.engine.project import Config, Project
from tests.sandbox.engine.providers import BuiltinProvider, DynamicProvider, Provider, ReadOutputs
from tests.sandbox.engine.state import PROVIDER_PREFIX, Resource, now
from tests.sandbox.engine.values import UNKNOWN, Props, plain, secret


class Registry:
    """The provider processes of one preview or update, and their records in the state."""

    def __init__(
        self, project: Project, config: Config, stack: str, read_outputs: ReadOutputs, *, preview: bool
    ) -> None:
        self.address = ""  # the engine's own; known once its server listens
        self.on_line: Callable[[str], None] = lambda line: None
        self._project = project
        self._config = config
        self._stack = stack
        self._preview = preview
        self._builtin = BuiltinProvider(read_outputs)
        self._lock = threading.Lock()
        self._running: dict[str, tuple[Resource, DynamicProvider]] = {}  # by the record's urn
        self._starting = threading.Lock()
        self._children: list[Child] = []  # also those that have yet to answer for the first time, and never may
        self._ended = False

    def record(self, package: str, old: Resource | None) -> Resource:
        """Return the record of a package's default provider as it should be now."""
        if package not in ("pulumi", "pulumi-python"):
            raise EngineError(
                f"no provider for package '{package}': the sandbox's stand-in serves Python dynamic resources"
            )
        kind = f"{PROVIDER_PREFIX}{package}"
        inputs: Props = {}
        if package == "pulumi-python":
            for key, value in self._config.values.items():
                inputs[key] = secret(value) if key in self._config.secret_keys else value
        urn = f"urn:pulumi:{self._stack}::{self._project.name}::{kind}::default"
        fresh = UNKNOWN if self._preview else str(uuid.uuid4())
        same = old is not None and plain(old.inputs) == plain(inputs)
        return Resource(
            urn=urn,
            type=kind,
            custom=True,
            id=old.id if old else fresh,
            inputs=inputs,
            outputs=dict(inputs),
            created=old.created if old else now(),
            modified=old.modified if old and same else now(),
        )

    def open(self, record: Resource, old: Resource | None = None) -> Provider:
        """Return the provider that *record* describes; one that runs with other settings is ended first."""
        if record.type == f"{PROVIDER_PREFIX}pulumi":
            return self._builtin
        with self._lock:
            if found := self._running.get(record.urn):
                if plain(found[0].inputs) == plain(record.inputs):
                    return found[1]
                found[1].close()
            provider = DynamicProvider(self._start(), self.address)
            if old is not record:
                provider.probe_config(record, old)
            provider.configure(record)
            self._running[record.urn] = (record, provider)
            return provider

    def of(self, resource: Resource, records: list[Resource]) -> Provider:
        """Return the provider of a resource of the state; *records* are where its own record stands."""
        if found := self._running.get(resource.provider_urn):
            return found[1]
        for record in records:
            if record.urn == resource.provider_urn:
                return self.open(record, record)
        raise ResourceError(resource.urn, f"unknown provider {resource.provider!r}")

    def cancel(self) -> None:
        """Send `Cancel` to every process."""
        for _, provider in list(self._running.values()):
            provider.cancel()

    def close(self) -> None:
        """End every process, and start no more."""
        if not self._end():
            return  # `abort` does it
        for _, provider in list(self._running.values()):
            provider.close()
        stop_all(self._children)

    def abort(self) -> None:
        """End every process without asking, and start no more."""
        self._end()
        stop_all(self._children)

    def _start(self) -> Child:
        with self._starting:
            if self._ended:
                raise EngineError("no process is started any more: the engine ends")
            self._children.append(start_provider(self._project, self.address, self.on_line))
            return self._children[-1]

    def _end(self) -> bool:
        """Let no process start any more; say whether one could until now."""
        with self._starting:
            could, self._ended = not self._ended, True
            return could
