"""Pulumi's engine, played: keeps every request that the program sends, and answers as it is told."""

import asyncio
import logging
import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format
from pulumi.runtime import mocks, settings, stack


class Engine(mocks.MockMonitor):
    """Keeps what the program sends; answers with the outputs that it is told resources and other stacks have."""

    def __init__(self, outputs: dict[str, Any], stacks: dict[str, dict[str, Any]] | None = None) -> None:
        super().__init__(_Answers(outputs, stacks or {}))
        self.requests: dict[str, Any] = {}
        self.exports: dict[str, Any] = {}

    def RegisterResource(self, request: Any) -> Any:  # noqa: N802 - the engine's name
        self.requests[request.name] = request
        return super().RegisterResource(request)  # type: ignore[no-untyped-call]

    def RegisterResourceOutputs(self, request: Any) -> Any:  # noqa: N802 - the engine's name
        self.exports = json_format.MessageToDict(request.outputs)
        return super().RegisterResourceOutputs(request)  # type: ignore[no-untyped-call]

    def inputs(self, name: str) -> dict[str, Any]:
        return dict(json_format.MessageToDict(self.requests[name].object))


class _UnknownError(grpc.RpcError):  # type: ignore[misc]
    """What the engine's refusal of a call becomes in the SDK."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNKNOWN

    def details(self) -> str:
        return str(self)


class _Answers(mocks.Mocks):
    def __init__(self, outputs: dict[str, Any], stacks: dict[str, dict[str, Any]]) -> None:
        self.outputs = outputs
        self.stacks = stacks

    def call(self, args: mocks.MockCallArgs) -> Any:
        assert args.token == "pulumi:pulumi:readStackOutputs", f"the program calls {args.token}"
        name = args.args["name"]
        if name not in self.stacks:
            raise _UnknownError(f'unknown stack "{name}"')
        return {"name": name, "outputs": self.stacks[name], "secretOutputNames": []}

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        return f"{args.name}-id", {**args.inputs, **self.outputs.get(args.name, {})}


def run_program(path: Path, engine: Engine, *, preview: bool) -> None:
    """Run a program as Pulumi's Python host does; it takes project and stack for `gpu-on-demand` and `gpu-on`."""
    # As `set_mocks`, but for its stack: the program gets one of its own, whose outputs we can see.
    settings.configure(
        mocks.MockSettings(  # type: ignore[no-untyped-call]
            monitor=engine,
            monitor_features=set(engine.GetDeploymentInfo(None).supportedFeatures),  # type: ignore[no-untyped-call]
            engine=mocks.MockEngine(logging.getLogger("program")),
            project="gpu-on-demand",
            stack="gpu-on",
            dry_run=preview,
            organization="organization",
            callbacks=None,
        )
    )
    settings.set_root_resource(None)  # type: ignore[arg-type]
    # Calls go out from threads, each of which opens a loop of its own that nobody closes.
    loops = []

    def open_loop() -> None:
        loops.append(asyncio.new_event_loop())
        asyncio.set_event_loop(loops[-1])

    def execute() -> None:
        runpy.run_path(str(path))

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(initializer=open_loop))
        await stack.run_in_stack(execute)

    try:
        asyncio.run(main())
    finally:
        for loop in loops:
            loop.close()
        settings.set_root_resource(None)  # type: ignore[arg-type]
        settings.reset_options()
