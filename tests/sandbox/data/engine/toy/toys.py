# mypy: ignore-errors
"""A resource that does what its inputs say; every deed is a line in the file $TOY_LOG."""

import os
import sys
import threading
import time
from typing import Any

from pulumi import Output
from pulumi import dynamic as d


def _note(deed: str, props: dict[str, Any]) -> None:
    with open(os.environ["TOY_LOG"], "a") as log:
        log.write(f"{deed} {props['text']}\n")


CANCELLED = threading.Event()


def _hear_cancel(self, request, context):
    from google.protobuf import empty_pb2  # this code runs in the SDK's main module, in the place of its own
    from toys import CANCELLED

    CANCELLED.set()
    return empty_pb2.Empty()


class ToyProvider(d.ResourceProvider):
    serialize_as_secret_always = False

    def diff(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> d.DiffResult:
        keys = {key for key in {*olds, *news} if olds.get(key) != news.get(key)} - {"answer"}
        before = bool(news.get("delete_first"))
        return d.DiffResult(bool(keys), ["text"] if "text" in keys else [], delete_before_replace=before)

    def create(self, props: dict[str, Any]) -> d.CreateResult:
        if say := props.get("say"):
            print(say)
        if os.environ.get("TOY_STUBBORN"):
            _note("begin", props)
        if props.get("until_cancelled"):
            sys.modules["__main__"].DynamicResourceProviderServicer.Cancel.__code__ = _hear_cancel.__code__
            _note("wait", props)
            _note("cancelled" if CANCELLED.wait(20) else "never cancelled", props)
        time.sleep(float(props.get("slow_s", 0)))
        if props.get("fail"):
            _note("fail", props)
            raise RuntimeError(f"{props['text']} does not work")
        _note("create", props)
        return d.CreateResult(f"id-{props['text']}", {**props, "answer": f"from {props['text']}"})

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> d.UpdateResult:
        _note("update", news)
        return d.UpdateResult({**news, "answer": olds.get("answer")})

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        _note("delete", props)


class Toy(d.Resource, module="toy", name="Toy"):
    answer: Output[str]

    def __init__(self, name: str, props: dict[str, Any], opts: Any = None) -> None:
        super().__init__(ToyProvider(), name, {"answer": None, **props}, opts)
