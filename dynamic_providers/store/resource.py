"""Bucket and Model as Pulumi sees them; the only file of this package that knows Pulumi."""

from collections.abc import Mapping
from typing import Any

from pulumi import Input, Output, ResourceOptions
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from dynamic_providers.clock import Clock
from dynamic_providers.credentials import open_store
from dynamic_providers.process import STOP, say
from dynamic_providers.resource import Provider
from dynamic_providers.stopping import StoppableClock
from dynamic_providers.store import binaries, bucket, model
from dynamic_providers.store.address import StoreAddress
from dynamic_providers.store.client import Store
from dynamic_providers.store.model import ModelTerms
from dynamic_providers.store.transfer import Report

_TERMS = ("fleet_id", "project", "keys", "take_over", "force_destroy", "programs")


class BucketProvider(Provider):
    """A platform's bucket."""

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Make it, or adopt our own."""
        return CreateResult(props["store"]["bucket"], {**props, **self._bring_about(props)})

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """Ask the server what stands there."""
        outs = bucket.read(self._store(props), props, self._clock())
        return ReadResult(id_, {**props, **outs}) if outs is not None else ReadResult("", {})

    def diff(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        """Compare what is asked with what stands there; another address is another bucket."""
        was, is_ = (StoreAddress.from_props(props["store"]) for props in (olds, news))
        moved = (was.bucket, was.location, was.endpoint) != (is_.bucket, is_.location, is_.endpoint)
        changed = [key for key in _TERMS if olds.get(key) != news.get(key)]
        drifted = [] if moved else bucket.drift(self._store(news), _terms(news), olds)
        if drifted:
            say(f"bucket {is_.bucket}: not as it should be: {', '.join(drifted)}; an update puts that right")
        # The old one first: it is not deleted while models are in it, and then nothing is to change.
        return DiffResult(bool(moved or changed or drifted), ["store"] if moved else [], delete_before_replace=True)

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        """Put right what is not as it should be."""
        # Another fleet of the same platform takes over from its predecessor.
        return UpdateResult(
            {**news, **self._bring_about(news | {"take_over": news.get("take_over") or olds["fleet_id"]})}
        )

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        """Delete it, unless models are in it."""
        bucket.remove(self._store(props), _terms(props), self._clock())

    def _bring_about(self, props: Mapping[str, Any]) -> dict[str, Any]:
        store = self._store(props)
        outs = bucket.bring_about(store, _terms(props), self._clock())
        lacking = binaries.push_binaries(store, _tell_once())
        unsupported = [*outs["unsupported"], *(f"programs: {line}" for line in lacking)]
        return outs | {"unsupported": unsupported}

    def _store(self, props: Mapping[str, Any]) -> Store:
        return open_store(StoreAddress.from_props(props["store"]), self._config)

    def _clock(self) -> Clock:
        return StoppableClock(STOP)


class Bucket(Resource, module="store", name="Bucket"):
    """A bucket that is ours alone.

    Attributes:
        unsupported: What its server refuses, a line each: `<feature>: <its word for that>`.
    """

    unsupported: Output[list[str]]

    OUTPUTS = ("owner", "owner_project", "lifecycle", "versioning", "policy", "unsupported")

    def __init__(self, name: str, props: Mapping[str, Input[Any]], opts: ResourceOptions | None = None) -> None:
        """Declare it.

        Args:
            name: Of the resource.
            props: `store` (its address), `stack`, and the terms of `bucket.BucketTerms`.
            opts: Pulumi's.
        """
        # Another version of ours brings other programs for machines to fetch.
        programs = {pin.name: pin.sha256 for pin in (binaries.CADDY, binaries.VMAGENT)}
        super().__init__(BucketProvider(), name, {**props, "programs": programs, **dict.fromkeys(self.OUTPUTS)}, opts)


def _tell_once() -> Report:
    told = set[str]()

    def report(phase: str, done: int, total: int) -> None:
        if total and phase not in told:
            told.add(phase)
            say(f"programs that machines fetch: {phase} of {total / 1e6:.0f} MB")

    return report


class ModelProvider(Provider):
    """A model in a bucket."""

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Push it."""
        outs = model.bring_about(self._store(props), ModelTerms.from_props(props), None, say, STOP.check)
        return CreateResult(props["name"], {**props, **outs})

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """Ask the bucket what is there."""
        outs = model.read(self._store(props), ModelTerms.from_props(props), props["digest"])
        return ReadResult(id_, {**props, **outs}) if outs is not None else ReadResult("", {})

    def diff(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        """Compare what is asked with what was pushed, by names and times alone."""
        was, is_ = (StoreAddress.from_props(props["store"]) for props in (olds, news))
        moved = (was.bucket, was.location, was.endpoint) != (is_.bucket, is_.location, is_.endpoint)
        replaces = ["store"] * moved + ["name"] * (olds["name"] != news["name"])
        terms = ModelTerms.from_props(news)
        retagged = set(olds.get("tags") or ()) != set(terms.tags)
        return DiffResult(bool(replaces) or retagged or model.is_new(olds, terms), replaces)

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        """Push what is new, and move the tags."""
        outs = model.bring_about(self._store(news), ModelTerms.from_props(news), olds, say, STOP.check)
        return UpdateResult({**news, **outs})

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        """Let go of it: stacks may name it, and a destroy that the bucket refuses must have taken nothing away."""
        say(f"model {props['name']} stays in bucket {props['store']['bucket']}, with its tags")

    def _store(self, props: Mapping[str, Any]) -> Store:
        return open_store(StoreAddress.from_props(props["store"]), self._config)


class Model(Resource, module="store", name="Model"):
    """A release of a model.

    Attributes:
        digest: Of the release, hex.
        release: `name@sha256:<digest>`, as stack files name it.
        size_bytes: Of all its files.
    """

    digest: Output[str]
    release: Output[str]
    size_bytes: Output[int]

    OUTPUTS = ("digest", "release", "size_bytes")

    def __init__(self, name: str, props: Mapping[str, Input[Any]], opts: ResourceOptions | None = None) -> None:
        """Declare it.

        Args:
            name: Of the resource.
            props: `store` (the bucket's address) and the fields of `model.ModelTerms`, without those that are None.
            opts: Pulumi's; it depends on its bucket.
        """
        super().__init__(ModelProvider(), name, {**props, **dict.fromkeys(self.OUTPUTS)}, opts)


def _terms(props: Mapping[str, Any]) -> bucket.BucketTerms:
    return bucket.BucketTerms(
        fleet_id=props["fleet_id"],
        stack=props["stack"],
        project=props.get("project"),
        keys=tuple(props.get("keys") or ()),
        take_over=props.get("take_over"),
        force_destroy=bool(props.get("force_destroy")),
    )
