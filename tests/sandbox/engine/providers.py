"""Providers: the SDK's host of dynamic resources over gRPC, and the engine's own `pulumi`, which reads other stacks.

Source: Pulumi 3.260, pkg/resource/plugin/provider_plugin.go and pkg/resource/deploy/{builtins,default_providers}.go.
"""

import contextlib
import os
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tests.sandbox.engine.errors import EngineError, ResourceError
from tests.sandbox.engine.processes import Child, start_provider
from tests.sandbox.engine.project import Config, Project
from tests.sandbox.engine.protocol import CHANNEL_OPTIONS, empty_pb2, grpc, provider_pb2, provider_pb2_grpc, struct_pb2
from tests.sandbox.engine.state import PROVIDER_PREFIX, Resource, now
from tests.sandbox.engine.trace import trace
from tests.sandbox.engine.values import (
    UNKNOWN,
    Props,
    Value,
    contains_secret,
    from_struct,
    mark_like,
    plain,
    secret,
    to_struct,
)

STACK_REFERENCE = "pulumi:pulumi:StackReference"
# What the SDK's host answers to methods that it does not have; a busy one may not answer a Cancel in time.
_NO_ANSWER = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED)
ReadOutputs = Callable[[str], Props]


@dataclass(frozen=True)
class Diff:
    """What a provider says about a change."""

    changed: bool
    replaces: tuple[str, ...] = ()
    delete_before_replace: bool = False


@dataclass(frozen=True)
class Read:
    """What a provider finds; an empty id says that it is gone."""

    id: str
    inputs: Props
    outputs: Props


class Provider(Protocol):
    """What a step asks of a provider."""

    def check(self, resource: Resource, olds: Props, news: Props) -> tuple[Props, list[tuple[str, str]]]: ...
    def diff(self, old: Resource, news: Props) -> Diff: ...
    def create(self, resource: Resource) -> tuple[str, Props]: ...
    def update(self, old: Resource, news: Props) -> Props: ...
    def read(self, resource: Resource) -> Read: ...
    def delete(self, resource: Resource) -> None: ...


class DynamicProvider:
    """One process of `python -m pulumi.dynamic`."""

    def __init__(self, project: Project, address: str, on_line: Callable[[str], None]) -> None:
        self.child: Child
        self.child, port = start_provider(project, address, on_line)
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS)
        self._stub = provider_pb2_grpc.ResourceProviderStub(self._channel)
        self._probe("Handshake", provider_pb2.ProviderHandshakeRequest(engine_address=address, configure_with_urn=True))

    def configure(self, record: Resource) -> None:
        """Hand over the stack's configuration."""
        args = plain(record.inputs)
        request = provider_pb2.ConfigureRequest(
            variables={
                f"{record.type.removeprefix(PROVIDER_PREFIX)}:config:{key}": value for key, value in args.items()
            },
            args=_struct(args),
            acceptSecrets=True,
            acceptResources=True,
            sends_old_inputs=True,
            sends_old_inputs_to_delete=True,
            id=record.id,
            urn=record.urn,
            name=record.name,
            type=record.type,
        )
        self._call("Configure", record.urn, request)

    def probe_config(self, record: Resource, old: Resource | None) -> None:
        """Ask what the real engine asks of every new process; the SDK's host implements neither."""
        news = _struct(plain(record.inputs))
        olds = _struct(plain(old.inputs) if old else {})
        named: dict[str, Any] = {"urn": record.urn, "name": record.name, "type": record.type}
        self._probe("CheckConfig", provider_pb2.CheckRequest(olds=olds, news=news, **named))
        if old:
            outputs = _struct(plain(old.outputs))
            self._probe("DiffConfig", provider_pb2.DiffRequest(olds=outputs, news=news, old_inputs=olds, **named))

    def check(self, resource: Resource, olds: Props, news: Props) -> tuple[Props, list[tuple[str, str]]]:
        """Return the inputs as the provider wants them, and what is wrong with them."""
        request = provider_pb2.CheckRequest(
            olds=_struct(plain(olds)), news=_struct(plain(news)), randomSeed=os.urandom(32), **_named(resource)
        )
        answer = self._call("Check", resource.urn, request)
        failures = [(failure.property, failure.reason) for failure in answer.failures]
        return mark_like(from_struct(answer.inputs), news), failures

    def diff(self, old: Resource, news: Props) -> Diff:
        """Ask whether *news* are a change; the provider may leave that to us."""
        request = provider_pb2.DiffRequest(
            id=old.id,
            olds=_struct(plain(old.outputs)),
            news=_struct(plain(news)),
            old_inputs=_struct(plain(old.inputs)),
            ignoreChanges=old.ignore_changes,
            **_named(old),
        )
        answer = self._call("Diff", old.urn, request)
        if answer.changes == provider_pb2.DiffResponse.DIFF_UNKNOWN:
            changed = plain(old.inputs) != plain(news)
        else:
            changed = answer.changes == provider_pb2.DiffResponse.DIFF_SOME
        return Diff(changed, tuple(answer.replaces), answer.deleteBeforeReplace)

    def create(self, resource: Resource) -> tuple[str, Props]:
        """Create it; return its id and outputs."""
        request = provider_pb2.CreateRequest(properties=_struct(plain(resource.inputs)), **_named(resource))
        answer = self._call("Create", resource.urn, request)
        if not answer.id:
            raise ResourceError(
                resource.urn, f"plugin for package '{_package(resource)}' returned empty resource.ID from create"
            )
        return answer.id, mark_like(from_struct(answer.properties), resource.inputs)

    def update(self, old: Resource, news: Props) -> Props:
        """Update it in place; return its outputs."""
        request = provider_pb2.UpdateRequest(
            id=old.id,
            olds=_struct(plain(old.outputs)),
            news=_struct(plain(news)),
            old_inputs=_struct(plain(old.inputs)),
            **_named(old),
        )
        return mark_like(from_struct(self._call("Update", old.urn, request).properties), news)

    def read(self, resource: Resource) -> Read:
        """Return what it is now."""
        request = provider_pb2.ReadRequest(
            id=resource.id,
            properties=_struct(plain(resource.outputs)),
            inputs=_struct(plain(resource.inputs)),
            **_named(resource),
        )
        answer = self._call("Read", resource.urn, request)
        inputs = (
            mark_like(from_struct(answer.inputs), resource.inputs) if answer.HasField("inputs") else resource.inputs
        )
        return Read(answer.id, inputs, mark_like(from_struct(answer.properties), resource.outputs))

    def delete(self, resource: Resource) -> None:
        """Delete it."""
        request = provider_pb2.DeleteRequest(
            id=resource.id,
            properties=_struct(plain(resource.outputs)),
            old_inputs=_struct(plain(resource.inputs)),
            **_named(resource),
        )
        self._call("Delete", resource.urn, request)

    def cancel(self) -> None:
        """Tell it that the person wants to stop. What runs goes on; the answer may wait behind four running calls."""
        trace("Cancel", "request_started", empty_pb2.Empty())
        self._stub.Cancel.future(empty_pb2.Empty())

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(EngineError):  # it may be gone already
            self._probe("Cancel", empty_pb2.Empty(), timeout=1)
        self._channel.close()
        self.child.stop()

    def _call(self, method: str, urn: str, request: Any) -> Any:
        try:
            return self._traced(method, request)
        except grpc.RpcError as err:
            raise ResourceError(urn, err.details() or str(err.code())) from err

    def _probe(self, method: str, request: Any, timeout: float | None = None) -> None:
        try:
            self._traced(method, request, timeout)
        except grpc.RpcError as err:
            if err.code() not in _NO_ANSWER:
                raise EngineError(f"the provider's process does not answer {method}: {err.details()}") from err

    def _traced(self, method: str, request: Any, timeout: float | None = None) -> Any:
        trace(method, "request_started", request)
        try:
            response = getattr(self._stub, method)(request, timeout=timeout)
        except grpc.RpcError as err:
            trace(method, "response_completed", request, error=err.details() or str(err.code()))
            raise
        trace(method, "response_completed", request, response)
        return response


class BuiltinProvider:
    """The engine's own package: stack references."""

    def __init__(self, read_outputs: ReadOutputs) -> None:
        self._read_outputs = read_outputs

    def read(self, resource: Resource) -> Read:
        """Read the other stack's outputs again."""
        return Read(resource.id, resource.inputs, stack_reference(resource.inputs["name"], self._read_outputs))

    def check(self, resource: Resource, olds: Props, news: Props) -> tuple[Props, list[tuple[str, str]]]:
        """Refuse: nothing of this package is created."""
        raise ResourceError(resource.urn, f"the stand-in cannot create a resource of type {resource.type!r}")

    def diff(self, old: Resource, news: Props) -> Diff:
        """Say that a reference never changes by itself."""
        return Diff(False)

    def create(self, resource: Resource) -> tuple[str, Props]:
        """Never reached: `check` refuses."""
        raise NotImplementedError

    def update(self, old: Resource, news: Props) -> Props:
        """Never reached: `check` refuses."""
        raise NotImplementedError

    def delete(self, resource: Resource) -> None:
        """Do nothing: what it refers to is not ours."""


def stack_reference(name: str, read_outputs: ReadOutputs) -> Props:
    """Return what a StackReference, and the invoke `readStackOutputs`, answer."""
    outputs = read_outputs(name)
    hidden = sorted(key for key, value in outputs.items() if contains_secret(value))
    return {"name": name, "outputs": outputs, "secretOutputNames": hidden}


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
            provider = DynamicProvider(self._project, self.address, self.on_line)
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
        """End every process."""
        for _, provider in list(self._running.values()):
            provider.close()
        self._running.clear()

    def abort(self) -> None:
        """End every process without asking."""
        for _, provider in list(self._running.values()):
            provider.child.stop()


def _struct(props: dict[str, Value]) -> Any:
    return to_struct(struct_pb2.Struct(), props)


def _named(resource: Resource) -> dict[str, Any]:
    return {"urn": resource.urn, "name": resource.name, "type": resource.type}


def _package(resource: Resource) -> str:
    return resource.type.split(":", 1)[0]
