"""A platform's bucket: made or adopted, kept as it should be, taken away. Knows nothing of Pulumi.

bring_about  make it, or adopt it if nothing in it is somebody else's; then lifecycle, versioning, policy
read         as it is now
drift        what of that is not as it should be
remove       only once no model is in it, unless that is asked for
"""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from dynamic_providers.clock import Clock
from dynamic_providers.errors import StoreError
from dynamic_providers.store import failures, features, policy, startup_cache
from dynamic_providers.store.client import Store
from dynamic_providers.store.manifest import MODELS

if TYPE_CHECKING:  # boto3 takes a third of a second to import: only when a bucket is really used
    from mypy_boto3_s3 import S3Client

MARKER = "gpu-on-demand.json"
"""The object that says whose the bucket is: Hetzner's buckets take no tags."""
LEDGER = "ledger/"
OURS = ("blobs/", startup_cache.PREFIX, LEDGER, MODELS, MARKER)
DELETES_AT_ONCE = 8
SHOWN = 5
"""So many names of what is in the way are told."""


@dataclass(frozen=True)
class BucketTerms:
    """What a platform asks of its bucket.

    Attributes:
        fleet_id: Whose it is to be.
        stack: The platform's name, for messages.
        project: Number of the Hetzner project that the keys belong to; None: as the server names the owner.
        keys: Ids of all keys that may use it; empty: those that it lets in already, and the one in use.
        take_over: Id of the fleet that it belonged to before.
        force_destroy: Remove it with all that is in it.
    """

    fleet_id: str
    stack: str
    project: str | None = None
    keys: tuple[str, ...] = ()
    take_over: str | None = None
    force_destroy: bool = False


@dataclass(frozen=True)
class BucketState:
    """The bucket as it is.

    Attributes:
        owner: Id of the fleet whose it is; empty for nobody's.
        lifecycle: The rules by which it forgets, in canonical form.
        versioning: `Enabled`, `Suspended` or nothing.
        policy: Who is kept out, in canonical form.
    """

    owner: str
    lifecycle: str
    versioning: str
    policy: str


def bring_about(store: Store, terms: BucketTerms, clock: Clock) -> dict[str, Any]:
    """Make or adopt the bucket, and set what can be set; return its outputs.

    Raises:
        StoreError: It is somebody else's, or the keys are not for it.
    """
    _enter(store, terms, clock)
    _own(store, terms, clock)
    unsupported = {"lifecycle": features.apply_lifecycle(store, clock)}
    if unsupported["lifecycle"]:
        unsupported["versioning"] = "left as it is: nothing would ever end the old versions, which are paid for"
    else:
        unsupported["versioning"] = features.apply_versioning(store, clock)
    project = terms.project or _project(store, clock)
    unsupported |= _close(store, terms, project, clock)
    told = [f"{feature}: {reason}" for feature, reason in unsupported.items() if reason]
    return {**asdict(_state(store, clock)), "owner_project": project or "", "unsupported": told}


def read(store: Store, outs: Mapping[str, Any], clock: Clock) -> dict[str, Any] | None:
    """Return the outputs as they are now; None if the bucket is gone.

    Args:
        store: The bucket.
        outs: Its outputs until now: what cannot be seen stays as it was.
        clock: To wait by.
    """
    try:
        store.list_models()  # the first question: is it there, and are we let in?
    except failures.NoSuchBucketError:
        return None
    except failures.AccessError:
        found = features.read_policy(store, clock)
        if not policy.is_ours(found):
            raise
        return {**outs, "policy": policy.canonical(found)}  # a new key, which `update` lets in
    return {**outs, **asdict(_state(store, clock))}


def drift(store: Store, terms: BucketTerms, outs: Mapping[str, Any]) -> list[str]:
    """Name what is not as it should be; what the server refuses is not counted. Asks nothing of the network."""
    refused = {line.partition(":")[0] for line in outs["unsupported"]}
    wanted = {
        "owner": terms.fleet_id,
        "lifecycle": policy.canonical_rules(policy.lifecycle_rules()),
        "versioning": "Enabled",
        "policy": _wanted_policy(store, terms, outs, refused),
    }
    return [name for name, value in wanted.items() if name not in refused and outs[name] != value]


def remove(store: Store, terms: BucketTerms, clock: Clock) -> None:
    """Delete the bucket, with every version of whatever is in it.

    Raises:
        StoreError: Models are in it and nobody asked for their end, or it is not ours.
    """
    try:
        models = store.list_models()
    except failures.NoSuchBucketError:
        return
    owner = _owner(store, clock)
    if owner not in ("", terms.fleet_id):
        raise StoreError(f"bucket {store.bucket!r} belongs to fleet {owner} by now: it is not ours to delete")
    _refuse_foreign(store, clock)
    if not terms.force_destroy:
        _refuse_full(store, models, clock)
    _empty(store, clock)
    features.ask(store, clock, lambda s3: s3.delete_bucket(Bucket=store.bucket))


def _enter(store: Store, terms: BucketTerms, clock: Clock) -> None:
    """Make the bucket if it is missing, and see that we are let in."""
    if terms.keys and store.access_key_id not in terms.keys:
        raise StoreError(
            f"bucket {store.bucket!r}: the key in use, {store.access_key_id}, is not among store.keys and would lock "
            f"itself out; add it there, or use one of {', '.join(terms.keys)}"
        )
    try:
        store.ensure_bucket()
    except failures.AccessError:
        # Either it is somebody else's, or our own policy does not know this key yet, or was left half-tried.
        if not policy.is_ours(features.read_policy(store, clock)):
            raise
        _close(store, terms, terms.project or _project(store, clock), clock)
        store.ensure_bucket()


def _own(store: Store, terms: BucketTerms, clock: Clock) -> None:
    """Make the bucket ours, or raise."""
    owner = _owner(store, clock)
    if owner == terms.fleet_id:
        return
    if owner and owner != terms.take_over:
        raise StoreError(
            f"bucket {store.bucket!r} belongs to another fleet, {owner}. Name another one as store.bucket;\n"
            f'  or, if that fleet is gone for good and its models are to be yours: store: {{take_over: "{owner}"}}'
        )
    _refuse_foreign(store, clock)
    body = json.dumps({"fleet": terms.fleet_id, "stack": terms.stack}).encode()
    features.ask(
        store,
        clock,
        lambda s3: s3.put_object(Bucket=store.bucket, Key=MARKER, Body=body, ContentType="application/json"),
    )


def _owner(store: Store, clock: Clock) -> str:
    """Return the id of the fleet that the bucket says it belongs to; empty for nobody's."""

    def act(s3: "S3Client") -> bytes:
        try:
            return s3.get_object(Bucket=store.bucket, Key=MARKER)["Body"].read()
        except s3.exceptions.NoSuchKey:
            return b""

    data = features.ask(store, clock, act)
    if not data:
        return ""
    try:
        return str(json.loads(data)["fleet"])
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"bucket {store.bucket!r}: {MARKER} is not ours; name another bucket, or remove it") from error


def _refuse_foreign(store: Store, clock: Clock) -> None:
    """Raise if anything lies in the bucket that we would not have put there."""
    top = features.ask(store, clock, lambda s3: s3.list_objects_v2(Bucket=store.bucket, Delimiter="/"))
    names = [entry.get("Prefix", "") for entry in top.get("CommonPrefixes", [])]
    names += [entry["Key"] for entry in top.get("Contents", [])]
    if foreign := [name for name in names if name not in OURS]:
        shown = ", ".join(foreign[:SHOWN]) + (", …" if len(foreign) > SHOWN else "")
        raise StoreError(
            f"bucket {store.bucket!r} holds what is not ours: {shown}.\n"
            f"  A platform's bucket is its own: name an empty one, or one that does not exist yet, as store.bucket"
        )


def _refuse_full(store: Store, models: list[str], clock: Clock) -> None:
    """Raise if anything lies in the bucket that somebody may miss."""
    ledger = features.ask(store, clock, lambda s3: s3.list_objects_v2(Bucket=store.bucket, Prefix=LEDGER, MaxKeys=1))
    held = [f"model {name}" for name in models] + (["the ledger"] if ledger.get("Contents") else [])
    if held:
        raise StoreError(
            f"bucket {store.bucket!r} still holds {', '.join(held)}: nothing was deleted.\n"
            f"  To delete it with all that is in it: store: {{force_destroy: true}}, `pulumi up`, then destroy;\n"
            f"  to keep it and let the stack forget it: pulumi state delete <its URN, in `pulumi stack --show-urns`>"
        )


def _empty(store: Store, clock: Clock) -> None:
    """Delete every version of every object, and the parts of broken pushes; what says whose it is last."""
    with store.s3() as s3:
        pages = s3.get_paginator("list_multipart_uploads").paginate(Bucket=store.bucket)
        for upload in chain.from_iterable(page.get("Uploads", []) for page in pages):
            s3.abort_multipart_upload(Bucket=store.bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    def delete(found: tuple[str, str]) -> None:
        # One by one: for many at once servers ask for checksums, each for another one.
        key, version = found
        features.ask(store, clock, lambda s3: s3.delete_object(Bucket=store.bucket, Key=key, VersionId=version))

    for is_last in (False, True):
        with ThreadPoolExecutor(DELETES_AT_ONCE) as pool:
            for _ in pool.map(delete, [found for found in _versions(store) if (found[0] == MARKER) is is_last]):
                pass


def _versions(store: Store) -> Iterator[tuple[str, str]]:
    with store.s3() as s3:
        for page in s3.get_paginator("list_object_versions").paginate(Bucket=store.bucket):
            for entry in chain(page.get("Versions", []), page.get("DeleteMarkers", [])):
                yield entry["Key"], entry["VersionId"]


def _close(store: Store, terms: BucketTerms, project: str | None, clock: Clock) -> dict[str, str]:
    """Keep everybody else out, as far as the server can; return what it has against it."""
    refused = {}
    if project:
        document = _keys_policy(store, terms, project, features.read_policy(store, clock))
        refused["keys"] = features.apply_policy(store, document, clock)
    else:
        refused["keys"] = "every key of its owner is let in: set store.project, the number of your Hetzner project"
    if refused["keys"]:
        refused["policy"] = features.apply_policy(store, policy.tls_policy(store.bucket), clock)
    return refused


def _wanted_policy(store: Store, terms: BucketTerms, outs: Mapping[str, Any], refused: set[str]) -> str:
    project = terms.project or outs["owner_project"]
    if "keys" in refused or not project:
        return policy.canonical(policy.tls_policy(store.bucket))
    return policy.canonical(_keys_policy(store, terms, project, outs["policy"]))


def _keys_policy(store: Store, terms: BucketTerms, project: str, present: str) -> str:
    keys = {store.access_key_id, *(terms.keys or policy.keys_in(present))}
    readers = policy.readers_in(present) | ({store.reader.access_key_id} if store.reader else set())
    return policy.keys_policy(store.bucket, project, keys - readers, readers)


def _project(store: Store, clock: Clock) -> str | None:
    """Return the number of the project that the keys belong to, if the server names owners so."""
    with suppress(features.RefusedError):
        answer = features.ask(store, clock, lambda s3: s3.list_buckets())
        return policy.project_of(answer.get("Owner", {}).get("ID", ""))
    return None


def _state(store: Store, clock: Clock) -> BucketState:
    return BucketState(
        owner=_owner(store, clock),
        lifecycle=features.read_lifecycle(store, clock),
        versioning=features.read_versioning(store, clock),
        policy=policy.canonical(features.read_policy(store, clock)),
    )
