"""What a bucket can be told to do by itself: each thing is set, read back, and named where the server refuses it."""

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from dynamic_providers.clock import Clock
from dynamic_providers.errors import StoreError
from dynamic_providers.store import failures, policy
from dynamic_providers.store.client import Store

if TYPE_CHECKING:  # boto3 takes a third of a second to import: only when a bucket is really used
    from mypy_boto3_s3 import S3Client

Result = TypeVar("Result")

SETTLES_WITHIN = timedelta(seconds=30)
"""A new bucket, and what is set on it, is there for everybody only after a while."""
LOOK_SECONDS = 1.0
PROBES = 3
"""So many looks in a row must be let in: the servers behind one address need not agree at once."""
_ABSENT = ("NoSuchLifecycleConfiguration", "NoSuchBucketPolicy")
# The server itself says no, and would again: 503 is Hetzner's answer to a policy that names what it does not know.
_REFUSALS = {400, 403, 405, 409, 411, 412, 415, 422, 501, 503}
_NOT_THE_FEATURE = (
    *("InvalidAccessKeyId", "SignatureDoesNotMatch", "RequestTimeTooSkewed", "InvalidToken", "SlowDown"),
    *("AuthorizationHeaderMalformed", "OperationAborted"),
)


class RefusedError(StoreError):
    """The server does not do what was asked.

    Args:
        store: Whose server.
        word: Its own for why.
    """

    def __init__(self, store: Store, word: str) -> None:
        self.word = word
        super().__init__(f"bucket {store.bucket!r} at {store.endpoint}: refused, {word}")


def read_lifecycle(store: Store, clock: Clock) -> str:
    """Return the rules by which the bucket forgets, in canonical form; empty for none."""
    answer = _read(store, clock, lambda s3: s3.get_bucket_lifecycle_configuration(Bucket=store.bucket))
    return policy.canonical_rules(answer["Rules"]) if answer else ""


def read_versioning(store: Store, clock: Clock) -> str:
    """Return `Enabled`, `Suspended`, or nothing where there was never any."""
    answer = _read(store, clock, lambda s3: s3.get_bucket_versioning(Bucket=store.bucket))
    return answer.get("Status", "") if answer else ""


def read_policy(store: Store, clock: Clock) -> str:
    """Return the bucket's policy as the server words it; empty for none."""
    answer = _read(store, clock, lambda s3: s3.get_bucket_policy(Bucket=store.bucket))
    return answer["Policy"] if answer else ""


def apply_lifecycle(store: Store, clock: Clock) -> str:
    """Have the bucket forget broken pushes and old versions; return what the server has against it."""
    rules = policy.lifecycle_rules()
    return _apply(
        lambda: read_lifecycle(store, clock),
        policy.canonical_rules(rules),
        lambda s3: s3.put_bucket_lifecycle_configuration(
            Bucket=store.bucket,
            LifecycleConfiguration={"Rules": rules},  # type: ignore[typeddict-item]
        ),
        store,
        clock,
    )


def apply_versioning(store: Store, clock: Clock) -> str:
    """Have the bucket keep what is deleted or replaced; return what the server has against it."""
    return _apply(
        lambda: read_versioning(store, clock),
        "Enabled",
        lambda s3: s3.put_bucket_versioning(Bucket=store.bucket, VersioningConfiguration={"Status": "Enabled"}),
        store,
        clock,
    )


def apply_policy(store: Store, document: str, clock: Clock) -> str:
    """Set the bucket's policy, unless it locks us out; return what the server, or we, have against it.

    Raises:
        StoreError: It locks us out, and cannot be taken back.
    """
    former = read_policy(store, clock)
    if policy.canonical(former) == policy.canonical(document):
        former = ""  # a run that was broken off may have left it: no way back to what locks us out
    refusal = _apply(
        lambda: policy.canonical(read_policy(store, clock)),
        policy.canonical(document),
        lambda s3: s3.put_bucket_policy(Bucket=store.bucket, Policy=document),
        store,
        clock,
    )
    if not refusal and all(_is_let_in(store, clock) for _ in range(PROBES)):
        return ""
    if policy.canonical(read_policy(store, clock)) != policy.canonical(former):
        _take_back(store, former, clock)
    return refusal or "it locked us out, and was taken back"


def ask(store: Store, clock: Clock, call: Callable[["S3Client"], Result]) -> Result:
    """Return what *call* gives; waits for a bucket that is not there for everybody yet.

    Raises:
        RefusedError: The server does not do this.
        StoreError: Anything else.
    """
    from botocore.exceptions import ClientError

    until = clock.monotonic() + SETTLES_WITHIN.total_seconds()
    while True:
        with store.s3() as s3:
            try:
                return call(s3)
            except ClientError as error:
                code, status = failures.code_of(error), failures.status_of(error)
                if code in _NOT_THE_FEATURE or (code == "NoSuchBucket" and clock.monotonic() > until):
                    raise
                if code != "NoSuchBucket":
                    if status not in _REFUSALS and code not in _ABSENT:
                        raise
                    raise RefusedError(store, code or f"HTTP {status}") from error
        clock.sleep(LOOK_SECONDS)


def _read(store: Store, clock: Clock, call: Callable[["S3Client"], Result]) -> Result | None:
    """Return what *call* gives; None where there is no such thing, or the server knows none."""
    try:
        return ask(store, clock, call)
    except RefusedError:
        return None


def _apply(
    read: Callable[[], str], wanted: str, write: Callable[["S3Client"], object], store: Store, clock: Clock
) -> str:
    """Set one thing if it is not so already, and read it back until it is; return what is against it."""
    if read() == wanted:
        return ""
    try:
        ask(store, clock, write)
    except RefusedError as error:
        return f"refused, {error.word}"
    until = clock.monotonic() + SETTLES_WITHIN.total_seconds()
    while (found := read()) != wanted:
        if clock.monotonic() > until:
            return f"it was taken, but what stands there is {found or 'nothing'}"
        clock.sleep(LOOK_SECONDS)
    return ""


def _is_let_in(store: Store, clock: Clock) -> bool:
    """Say whether our keys still open the bucket."""
    reader = store.signer("s3v4", "path", store.reader) if store.reader else None
    try:
        ask(store, clock, lambda s3: s3.list_objects_v2(Bucket=store.bucket, MaxKeys=1))
        if reader:
            ask(store, clock, lambda _: reader.list_objects_v2(Bucket=store.bucket, MaxKeys=1))
    except RefusedError:
        return False
    return True


def _take_back(store: Store, former: str, clock: Clock) -> None:
    """Put the former policy in place, or none."""

    def act(s3: "S3Client") -> None:
        if former:
            s3.put_bucket_policy(Bucket=store.bucket, Policy=former)
        else:
            s3.delete_bucket_policy(Bucket=store.bucket)

    try:
        ask(store, clock, act)
    except RefusedError as error:
        raise StoreError(
            f"bucket {store.bucket!r}: the policy just set locks us out, and cannot be taken back ({error.word}).\n"
            f"  Remove the bucket's policy with another key of its owner, or in the provider's console, and run this "
            f"again"
        ) from error
