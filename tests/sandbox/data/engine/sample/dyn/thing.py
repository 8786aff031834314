# ruff: noqa
# mypy: ignore-errors
"""A resource that exists only as a file; enough to show every call the engine makes."""

import os
import time
from typing import Any

from pulumi import Output, ResourceOptions
from pulumi import dynamic as d

HERE = os.environ["SAMPLE_DIR"]


class ThingProvider(d.ResourceProvider):
    serialize_as_secret_always = False

    def check(self, olds: dict[str, Any], news: dict[str, Any]) -> d.CheckResult:
        bad = [d.CheckFailure("size", "must not be negative")] if news.get("size", 0) < 0 else []
        return d.CheckResult(news, bad)

    def diff(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> d.DiffResult:
        replaces = [key for key in ("name",) if olds.get(key) != news.get(key)]
        changed = any(olds.get(key) != news.get(key) for key in ("name", "size", "after"))
        return d.DiffResult(changed, replaces, delete_before_replace=True)

    def create(self, props: dict[str, Any]) -> d.CreateResult:
        if props["name"] == "broken":
            raise RuntimeError("this one never boots")
        if props["name"] == "slow":
            time.sleep(float(os.environ.get("SAMPLE_SLOW_S", "6")))
        open(f"{HERE}/{props['name']}", "w").close()
        return d.CreateResult(f"id-{props['name']}", {**props, "token": "s3cret"})

    def read(self, id_: str, props: dict[str, Any]) -> d.ReadResult:
        if not os.path.exists(f"{HERE}/{props['name']}"):
            return d.ReadResult("", {})
        return d.ReadResult(id_, props)

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> d.UpdateResult:
        return d.UpdateResult({**olds, **news})

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        path = f"{HERE}/{props['name']}"
        if os.path.exists(path):
            os.remove(path)


class Thing(d.Resource, module="sample", name="Thing"):
    token: Output[str]
    size: Output[int]

    def __init__(self, resource_name: str, *, name, size, after=None, opts=None):
        opts = ResourceOptions.merge(opts, ResourceOptions(additional_secret_outputs=["token"]))
        super().__init__(
            ThingProvider(), resource_name, {"name": name, "size": size, "after": after, "token": None}, opts
        )
