"""The gRPC services that programs and providers talk to: ResourceMonitor and Engine, on one port.

Source: Pulumi 3.260, pkg/resource/deploy/source_eval.go. What is not listed here answers UNIMPLEMENTED by itself.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.sandbox.engine.deployment import Deployment, Goal, Stopped
from tests.sandbox.engine.display import Display
from tests.sandbox.engine.errors import EngineError
from tests.sandbox.engine.project import Config
from tests.sandbox.engine.protocol import (
    CHANNEL_OPTIONS,
    empty_pb2,
    engine_pb2,
    engine_pb2_grpc,
    grpc,
    provider_pb2,
    resource_pb2,
    resource_pb2_grpc,
    struct_pb2,
)
from tests.sandbox.engine.providers import ReadOutputs, stack_reference
from tests.sandbox.engine.state import STACK_TYPE, Resource
from tests.sandbox.engine.steps import plain_outputs
from tests.sandbox.engine.values import UNKNOWN, Props, from_struct, plain, resolve_outputs, to_struct

_FEATURES = ("SECRETS", "RESOURCE_REFERENCES", "OUTPUT_VALUES", "ALIAS_SPECS", "DELETED_WITH", "INVOKE_DEPENDS_ON")
_NAMES = {  # what SupportsFeature calls them
    "secrets": "SECRETS",
    "resourceReferences": "RESOURCE_REFERENCES",
    "outputValues": "OUTPUT_VALUES",
    "aliasSpecs": "ALIAS_SPECS",
    "deletedWith": "DELETED_WITH",
}
# What a program may ask for and the stand-in does not do: better a loud no than a quiet difference.
_REFUSED = (
    "provider",
    "providers",
    "importId",
    "remote",
    "aliasURNs",
    "aliases",
    "transforms",
    "replaceOnChanges",
    "replace_with",
    "replacement_trigger",
    "state_migrations",
    "packageRef",
)
_HANDLERS = 256  # each call of the program holds one while its resource is made


class Monitor(resource_pb2_grpc.ResourceMonitorServicer):
    """Takes what the program registers."""

    def __init__(
        self, deployment: Deployment, stack: tuple[str, str], config: Config, read_outputs: ReadOutputs, parallel: int
    ) -> None:
        self._deployment = deployment
        self._project, self._stack = stack
        self._config = config
        self._read_outputs = read_outputs
        self._parallel = parallel
        self._root = f"urn:pulumi:{self._stack}::{self._project}::{STACK_TYPE}::{self._project}-{self._stack}"

    def GetDeploymentInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say what is deployed where, and what this engine can do.

        The SDK asks this before the program's first line runs, so a refresh can go on while it loads.
        """
        self._deployment.ready.wait()
        return resource_pb2.DeploymentInfo(
            project=self._project,
            stack=self._stack,
            organization="organization",
            config=self._config.values,
            configSecretKeys=sorted(self._config.secret_keys),
            dryRun=self._deployment.preview,
            parallel=self._parallel,
            supportedFeatures=[getattr(resource_pb2, f"RESOURCE_MONITOR_FEATURE_{name}") for name in _FEATURES],
        )

    def SupportsFeature(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Answer for one feature; older SDKs ask one by one."""
        return resource_pb2.SupportsFeatureResponse(hasSupport=_NAMES.get(request.id) in _FEATURES)

    def RegisterResource(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Bring a resource about; answers when that is done."""

        def act() -> Any:
            goal = self._goal(request)
            resource = self._deployment.register(goal)
            outputs = plain_outputs(resource)
            known_id = resource.id if resource.id != UNKNOWN else ""
            return resource_pb2.RegisterResourceResponse(
                urn=resource.urn,
                id=known_id,
                object=_struct(outputs if request.acceptSecrets else plain(outputs)),
                propertyDependencies={},
            )

        return self._answer(context, act)

    def ReadResource(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Read a resource that this stack does not own."""

        def act() -> Any:
            if request.provider or request.packageRef:
                raise EngineError(f"{request.type} {request.name}: the stand-in has default providers only")
            parent = request.parent or self._root
            resource = Resource(
                urn=self._urn(parent, request.type, request.name),
                type=request.type,
                custom=True,
                id=request.id,
                inputs=resolve_outputs(from_struct(request.properties)),
                parent=parent,
                external=True,
                dependencies=list(request.dependencies),
                additional_secret_outputs=list(request.additionalSecretOutputs),
            )
            self._deployment.read(resource)
            return resource_pb2.ReadResourceResponse(urn=resource.urn, properties=_struct(resource.outputs))

        return self._answer(context, act)

    def RegisterResourceOutputs(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Take a component's outputs, or the stack's."""
        self._deployment.register_outputs(request.urn, resolve_outputs(from_struct(request.outputs)))
        return empty_pb2.Empty()

    def Invoke(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Answer the engine's own functions; there are no other packages."""

        def act() -> Any:
            args = plain(resolve_outputs(from_struct(request.args)))
            result: Props
            if request.tok == "pulumi:pulumi:readStackOutputs":
                result = self._other_stack(request.tok, args["name"])
            elif request.tok == "pulumi:pulumi:getResource" and args["urn"] in self._deployment.news:
                found = self._deployment.news[args["urn"]]
                result = {"urn": found.urn, "id": found.id, "provider": found.provider, "state": found.outputs}
            else:
                raise EngineError(f"the stand-in does not know the function {request.tok!r}")
            return provider_pb2.InvokeResponse(**{"return": _struct(result)})

        return self._answer(context, act)

    def _other_stack(self, function: str, name: str) -> Props:
        try:
            return stack_reference(name, self._read_outputs)
        except EngineError as err:
            raise EngineError(f"invocation of {function} returned an error: {err}") from err

    def SignalAndWaitForShutdown(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Let the program go: nothing here calls it back."""
        return empty_pb2.Empty()

    def _answer(self, context: Any, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Stopped:
            # As the real engine: a program whose deployment has failed gets no answer, and is ended.
            self._deployment.closed.wait()
            context.abort(grpc.StatusCode.UNAVAILABLE, "resource monitor shut down")
        except EngineError as err:
            context.abort(grpc.StatusCode.UNKNOWN, str(err))

    def _goal(self, request: Any) -> Goal:
        _refuse(request)
        parent = request.parent or (self._root if request.type != STACK_TYPE else "")
        resource = Resource(
            urn=self._urn(parent, request.type, request.name),
            type=request.type,
            custom=request.custom,
            inputs=resolve_outputs(from_struct(request.object)),
            parent=parent,
            protect=request.protect,
            dependencies=sorted(request.dependencies),
            property_dependencies=(
                {key: sorted(request.propertyDependencies[key].urns) for key in sorted(request.propertyDependencies)}
                if request.custom
                else None
            ),
            additional_secret_outputs=list(request.additionalSecretOutputs),
            retain_on_delete=request.retainOnDelete,
            deleted_with=request.deletedWith,
            ignore_changes=list(request.ignoreChanges),
        )
        before = request.deleteBeforeReplace if request.deleteBeforeReplaceDefined else None
        return Goal(resource, list(request.ignoreChanges), before)

    def _urn(self, parent: str, kind: str, name: str) -> str:
        above = parent.split("::")[2] if parent else ""
        qualified = f"{above}${kind}" if above and above != STACK_TYPE else kind
        return f"urn:pulumi:{self._stack}::{self._project}::{qualified}::{name}"


class EngineLog(engine_pb2_grpc.EngineServicer):
    """Takes what programs log, and is what providers look for to see whether their engine lives."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._root = ""

    def Log(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Show a message at once; errors and warnings again at the end."""
        if request.severity == engine_pb2.INFO:
            self._display.info(request.message)
        elif request.severity in (engine_pb2.WARNING, engine_pb2.ERROR):
            severity = "warning" if request.severity == engine_pb2.WARNING else "error"
            self._display.diagnostic(severity, request.urn, request.message)
        return empty_pb2.Empty()

    def GetRootResource(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Return the urn set before."""
        return engine_pb2.GetRootResourceResponse(urn=self._root)

    def SetRootResource(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Keep the stack's urn."""
        self._root = request.urn
        return engine_pb2.SetRootResourceResponse()


def serve(monitor: Monitor, log: EngineLog) -> tuple[Any, str]:
    """Start the server; return it and its address."""
    server = grpc.server(ThreadPoolExecutor(max_workers=_HANDLERS), options=CHANNEL_OPTIONS)
    resource_pb2_grpc.add_ResourceMonitorServicer_to_server(monitor, server)
    engine_pb2_grpc.add_EngineServicer_to_server(log, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"127.0.0.1:{port}"


def _refuse(request: Any) -> None:
    """Raise if the program asks for what the stand-in does not do."""
    present = {descriptor.name for descriptor, _ in request.ListFields()}
    asked = [name for name in _REFUSED if name in present]
    if request.HasField("hooks") and request.hooks.ListFields():
        asked.append("hooks")
    if asked:
        raise EngineError(
            f"{request.type} {request.name}: the stand-in does not do {', '.join(asked)}; use the real CLI"
        )


def _struct(props: Props) -> Any:
    return to_struct(struct_pb2.Struct(), props)
