"""Providers: the SDK's host of dynamic resources over gRPC, and the engine's own `pulumi`, which reads other stacks.

Source: Pulumi 3.260, pkg/resource/plugin/provider_plugin.go and pkg/resource/deploy/builtins.go.
"""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tests.sandbox.engine.errors import EngineError, ResourceError
from tests.sandbox.engine.processes import Child, read_port, stop_all
from tests.sandbox.engine.protocol import CHANNEL_OPTIONS, empty_pb2, grpc, provider_pb2, provider_pb2_grpc, struct_pb2
from tests.sandbox.engine.state import PROVIDER_PREFIX, Resource
from tests.sandbox.engine.trace import trace
from tests.sandbox.engine.values import (
    Props,
    Value,
    contains_secret,
    from_struct,
    mark_like,
    plain,
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

    def __init__(self, child: Child, address: str) -> None:
        self._child = child
        self._channel = grpc.insecure_channel(f"127.0.0.1:{read_port(child)}", options=CHANNEL_OPTIONS)
        self._stub = provider_pb2_grpc.ResourceProviderStub(self._channel)
        self._cancelling: Any = None
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
        # Kept: a call that nobody refers to is taken back, often before it was sent.
        self._cancelling = self._stub.Cancel.future(empty_pb2.Empty())

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(EngineError):  # it may be gone already
            self._probe("Cancel", empty_pb2.Empty(), timeout=1)
        self._channel.close()
        stop_all([self._child])

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


def _struct(props: dict[str, Value]) -> Any:
    return to_struct(struct_pb2.Struct(), props)


def _named(resource: Resource) -> dict[str, Any]:
    return {"urn": resource.urn, "name": resource.name, "type": resource.type}


def _package(resource: Resource) -> str:
    return resource.type.split(":", 1)[0]
